"""A `TransformedOptimizer` looks like the optimizer inside: to callbacks, users and files."""

from __future__ import annotations

import copy
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, differ, numpy, two_layers, value, values, weights
from tests.training.optimizers.kinds import MULTI, X, Y, several
from tests.training.small_models import fit_small, net, train, with_batch_norm

T = kt.transforms
O = keras.optimizers  # noqa: E741


def compiled(optimizer: Any, transforms: Any = None) -> Any:
    model = kt.with_train_ops(two_layers())
    model.compile(optimizer, "mse", gradient_transforms=transforms or T.Scale(1.0))
    return model


def fit(model: Any, **options: Any) -> Any:
    return model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, **options)


def rates(model: Any) -> list[float]:
    parts = model.optimizer.inner_optimizer.optimizers
    return [float(numpy(keras.ops.convert_to_tensor(part.learning_rate))) for part in parts]


def multi() -> Any:
    return several(O.SGD(0.1), O.Adam(0.01))


def test_refuses_what_it_must_not_wrap() -> None:
    clip = T.ClipByNorm(1.0)
    with pytest.raises(ValueError, match="must be the optimizer inside the LossScaleOptimizer"):
        kt.TransformedOptimizer(O.LossScaleOptimizer(O.SGD()), clip)
    with pytest.raises(ValueError, match=r"must be a Keras optimizer. Received: 'sgd'"):
        kt.TransformedOptimizer("sgd", clip)
    with pytest.raises(ValueError, match="must be a Keras optimizer"):
        kt.TransformedOptimizer(kt.TransformedOptimizer(O.SGD(), clip), clip)


@pytest.mark.parametrize("argument", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_refuses_to_clip_twice(argument: str) -> None:
    optimizer = O.SGD(0.1, **{argument: 1.0})
    with pytest.raises(ValueError, match=rf"clips gradients itself \({argument}=1.0\)"):
        net().compile(optimizer, "mse", gradient_transforms=[T.Scale(2.0), T.ClipByNorm(1.0)])
    kt.TransformedOptimizer(optimizer, T.Scale(2.0))  # a transform that does not clip is fine


@MULTI
def test_refuses_parts_that_clip_or_accumulate() -> None:
    with pytest.raises(ValueError, match=r"'sgd' inside a MultiOptimizer has gradient_accum"):
        kt.TransformedOptimizer(
            several(O.SGD(gradient_accumulation_steps=2, name="sgd"), O.Adam()), T.Scale(1.0)
        )
    with pytest.raises(ValueError, match=r"'adam' clips gradients itself \(clipnorm=1.0\)"):
        kt.TransformedOptimizer(
            several(O.SGD(), O.Adam(clipnorm=1.0, name="adam")), T.ClipByNorm(1.0)
        )


def test_learning_rate_and_iterations_are_the_inner_ones() -> None:
    model = net()
    train(model, O.SGD(0.5), gradient_transforms=T.ClipByNorm(1.0))
    optimizer, inner = model.optimizer, model.optimizer.inner_optimizer
    assert optimizer.iterations == inner.iterations == 8
    optimizer.learning_rate = 0.25
    assert float(keras.ops.convert_to_tensor(inner.learning_rate)) == 0.25
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    fit_small(model, callbacks=[halve])
    assert float(keras.ops.convert_to_tensor(inner.learning_rate)) == 0.125
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=1e9)
    fit_small(model, epochs=2, callbacks=[plateau])
    assert float(keras.ops.convert_to_tensor(inner.learning_rate)) == pytest.approx(0.0125)


def test_learning_rate_callbacks_act_on_every_part() -> None:
    model = compiled(multi())
    fit(model, callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)])
    np.testing.assert_allclose(rates(model), [0.005, 0.05], rtol=1e-6)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=1e9)
    fit(model, epochs=2, callbacks=[plateau])
    np.testing.assert_allclose(rates(model), [0.0005, 0.005], rtol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_swaps_averages_as_without_transforms(scaled: bool) -> None:
    found = []
    for transforms in (None, T.Scale(1.0)):
        optimizer: Any = O.Adam(0.1, use_ema=True, ema_momentum=0.5)
        if scaled:
            optimizer = O.LossScaleOptimizer(optimizer, initial_scale=8.0)
        model = kt.with_train_ops(two_layers())
        model.compile(optimizer, "mse", gradient_transforms=transforms)
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        logs = fit(model, epochs=2, validation_data=(X, Y), callbacks=[swap]).history
        found.append([*weights(model), np.array(logs["val_loss"])])
    for ours, stock in zip(*found, strict=True):
        np.testing.assert_allclose(ours, stock, atol=1e-6)


def test_reads_and_sets_the_inner_optimizers_hyperparameters() -> None:
    inner = O.Adam(0.1, use_ema=True, weight_decay=0.1, gradient_accumulation_steps=2)
    optimizer = kt.TransformedOptimizer(inner, T.Scale(1.0))
    assert optimizer.use_ema
    assert (optimizer.weight_decay, optimizer.gradient_accumulation_steps) == (0.1, 2)
    assert optimizer.beta_1 == inner.beta_1
    assert not hasattr(optimizer, "optimizers")
    assert not hasattr(optimizer, "typo")
    optimizer.beta_1, optimizer.clipnorm = 0.5, 3.0
    assert (inner.beta_1, inner.clipnorm) == (0.5, 3.0)
    optimizer.name = "mine"
    assert inner.name != "mine"
    assert len(kt.TransformedOptimizer(multi(), T.Scale(1.0)).optimizers) == 2
    with pytest.raises(AttributeError, match="cannot be accessed on a MultiOptimizer"):
        _ = kt.TransformedOptimizer(multi(), T.Scale(1.0)).learning_rate
    with pytest.raises(AttributeError, match="'TransformedOptimizer' object has no attribute"):
        _ = copy.copy(object.__new__(kt.TransformedOptimizer)).beta_1


class Count(T.GradientTransform):
    """Counts its runs."""

    def build(self, variables: Any) -> None:
        self.runs = self.add_variable("runs")

    def __call__(self, gradients: Any, variables: Any) -> Any:
        self.runs.assign_add(1.0)
        return gradients


def test_variables_are_the_inner_ones_and_then_state() -> None:
    count = Count()
    model = compiled(O.Adam(0.1), count)
    fit(model)
    optimizer = model.optimizer
    expected = [*optimizer.inner_optimizer.variables, count.runs]
    assert [id(v) for v in optimizer.variables] == [id(v) for v in expected]
    assert [v.name for v in optimizer.variables[:2]] == ["iteration", "learning_rate"]


def test_set_weights_restores_the_whole_state() -> None:
    model = compiled(O.Adam(0.1), Count())
    fit(model)
    state = [value(v) for v in model.optimizer.variables]
    other = compiled(O.Adam(0.5), Count())
    with pytest.raises(ValueError, match="an optimizer that has not yet been built"):
        other.optimizer.set_weights(state)
    other.optimizer.build(other.trainable_variables)
    other.optimizer.set_weights(state)
    assert_same([value(v) for v in other.optimizer.variables], state)
    assert value(other.optimizer.iterations) == 3
    with pytest.raises(ValueError, match=r"`weights` must be \d+ arrays of the shapes"):
        other.optimizer.set_weights(state[:-1])


def test_loads_files_that_begin_with_two_dead_variables() -> None:
    """Old files hold those two, then the state of transforms, then the inner optimizer's."""
    model = compiled(O.Adam(0.1), Count())
    fit(model)
    optimizer = model.optimizer
    inner = [value(v) for v in optimizer.inner_optimizer.variables]
    state = [np.int64(0), np.float32(0), np.float32(3), *inner]
    other = compiled(O.Adam(0.5), Count())
    other.optimizer.build(other.trainable_variables)
    other.optimizer.load_own_variables({str(i): each for i, each in enumerate(state)})
    assert_same(
        [value(v) for v in other.optimizer.variables], [value(v) for v in optimizer.variables]
    )


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("whose", ["the user's", "the model's", "none"])
def test_tensorflow_checkpoints_take_either_optimizer(whose: str) -> None:
    import tensorflow as tf

    def checkpoint(model: Any, optimizer: Any) -> Any:
        given = {"the user's": optimizer, "the model's": model.optimizer}
        return tf.train.Checkpoint(model, **({"optimizer": given[whose]} if whose in given else {}))

    optimizer, other = O.Adam(0.1), O.Adam(0.5)
    model, second = compiled(optimizer, Count()), compiled(other, Count())
    fit(model)
    path = checkpoint(model, optimizer).save("checkpoint")
    fit(second, epochs=2)
    checkpoint(second, other).restore(path)
    kept = [value(v) for v in (model if whose != "the user's" else optimizer_of(model)).variables]
    found = (second if whose != "the user's" else optimizer_of(second)).variables
    assert_same([value(v) for v in found], kept)
    assert value(other.iterations) == 3
    assert tf.train.Checkpoint(model=model, optimizer=optimizer).save("pair")


def optimizer_of(model: Any) -> Any:
    return model.optimizer.inner_optimizer


def test_continues_a_saved_run_exactly() -> None:
    @keras.saving.register_keras_serializable(package="tests")
    class Momentum(T.GradientTransform):
        """Has state that changes its results."""

        def build(self, variables: Any) -> None:
            self.sums = [self.add_variable(f"sum{i}", v.shape) for i, v in enumerate(variables)]

        def __call__(self, gradients: Any, variables: Any) -> Any:
            for total, gradient in zip(self.sums, gradients, strict=True):
                total.assign(0.5 * total + gradient)
            return [keras.ops.convert_to_tensor(total) for total in self.sums]

    model = with_batch_norm()
    model.compile(O.Adam(0.01), "mse", gradient_transforms=[Momentum(), T.ClipByGlobalNorm(0.5)])
    fit_small(model)
    model.save("middle.keras")
    continued = keras.saving.load_model("middle.keras")
    assert type(continued) is kt.TrainOpsModel
    assert [type(t).__name__ for t in continued.optimizer.chain.transforms] == [
        "Momentum",
        "ClipByGlobalNorm",
    ]
    assert_same(values(continued), values(model))
    for each in (continued, model):
        fit_small(each)
    assert_same(weights(continued), weights(model))


def test_weights_files_fit_with_and_without_mixin() -> None:
    plain, mixed = with_batch_norm(keras.Model), with_batch_norm()
    train(mixed, O.Adam(0.01), gradient_transforms=Count())
    mixed.save_weights("mixed.weights.h5")
    plain.load_weights("mixed.weights.h5")
    assert_same(weights(plain), weights(mixed))
    train(plain, "adam")
    plain.save_weights("plain.weights.h5")
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        mixed.load_weights("plain.weights.h5")  # the optimizers differ
    assert_same(weights(mixed), weights(plain))


def test_refuses_to_save_functions_that_are_not_registered() -> None:
    def halve(gradients: Any, variables: Any) -> Any:
        return [g * 0.5 for g in gradients]

    model = net()
    train(model, O.SGD(0.01), gradient_transforms=halve)
    with pytest.raises(ValueError, match=r"'halve' cannot be saved.*register_keras_serializable"):
        model.save("m.keras")
    model.save_weights("m.weights.h5")
    keras.saving.register_keras_serializable(package="transformed_tests")(halve)
    model.save("m.keras")
    loaded = keras.saving.load_model("m.keras")
    assert loaded.optimizer.chain.transforms[0].function is halve


def test_averaged_weights_can_be_trained_further() -> None:
    """In stock Keras a second `fit` fails on JAX: weights and averages share their values."""
    model = net()
    train(model, O.Adam(0.01, use_ema=True), gradient_transforms=T.Scale(1.0))
    before = weights(model)
    fit_small(model)
    assert differ(weights(model), before) > 1e-6
