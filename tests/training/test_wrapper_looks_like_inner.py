"""A `TransformedOptimizer` looks like what it wraps: to callbacks, to users, and in files."""

from __future__ import annotations

import copy
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, numpy, two_layers, value, weights

T = kt.transforms
O = keras.optimizers  # noqa: E741
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")


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
    return O.MultiOptimizer(O.OptimizerMap(O.SGD(0.1), {"head/.*": O.Adam(0.01)}))


def test_callbacks_of_the_learning_rate_act_on_each_part_of_a_multi_optimizer() -> None:
    model = compiled(multi())
    fit(model, callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)])
    np.testing.assert_allclose(rates(model), [0.005, 0.05], rtol=1e-6)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=1e9)
    fit(model, epochs=2, callbacks=[plateau])
    np.testing.assert_allclose(rates(model), [0.0005, 0.005], rtol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_averages_are_swapped_in_as_without_transforms(scaled: bool) -> None:
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


def test_hyperparameters_are_read_and_set_on_the_inner_optimizer() -> None:
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
    """Has state."""

    def build(self, variables: Any) -> None:
        self.runs = self.add_variable("runs")

    def __call__(self, gradients: Any, variables: Any) -> Any:
        self.runs.assign_add(1.0)
        return gradients


def test_variables_are_the_inner_ones_and_then_the_state_of_transforms() -> None:
    count = Count()
    model = compiled(O.Adam(0.1), count)
    fit(model)
    optimizer = model.optimizer
    expected = [*optimizer.inner_optimizer.variables, count.runs]
    assert [id(v) for v in optimizer.variables] == [id(v) for v in expected]
    assert [v.name for v in optimizer.variables[:2]] == ["iteration", "learning_rate"]


def test_set_weights_restores_all_of_the_state() -> None:
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


def test_the_state_of_an_optimizer_whose_file_begins_with_two_dead_variables() -> None:
    """As `TransformedOptimizer` wrote it first: those, the transforms' state, the inner one's."""
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
def test_checkpoints_of_tensorflow_take_either_optimizer(whose: str) -> None:
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
