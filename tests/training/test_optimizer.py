"""The chain stands where it must: equalities with stock Keras, bit for bit, and between routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, assert_same_arithmetic, differ, values, weights

T = kt.transforms
O = keras.optimizers  # noqa: E741
RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype("float32")
Y = RNG.normal(size=(32, 2)).astype("float32") * 10


def net(model_class: type[keras.Model] = keras.Model, policy: str = "float32") -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="relu", name="trunk", dtype=policy)(inputs)
    x = keras.layers.BatchNormalization(name="norm", dtype=policy)(x)
    outputs = keras.layers.Dense(2, name="head", dtype="float32")(x)
    model = model_class(inputs, outputs)
    model.dtype_policy = policy
    return model


def train(model: keras.Model, optimizer: Any, epochs: int = 3, **compile_options: Any) -> list[Any]:
    model.compile(optimizer, "mse", **compile_options)
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return weights(model)


CLIPS = {
    "global_clipnorm": (0.5, T.ClipByGlobalNorm),
    "clipnorm": (0.3, T.ClipByNorm),
    "clipvalue": (0.05, T.ClipByValue),
}
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": lambda **k: O.SGD(0.05, momentum=0.9, **k),
    "adam": lambda **k: O.Adam(0.01, **k),
    "adamw": lambda **k: O.AdamW(0.01, weight_decay=0.1, **k),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ema": {"use_ema": True, "ema_momentum": 0.9},
    "loss scale": {"loss_scale_factor": 8.0},
    "accumulation": {"gradient_accumulation_steps": 4},
}


@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bit_for_bit_the_stock_clip(name: str, clip: str, eager: bool) -> None:
    limit, transform = CLIPS[clip]
    make = OPTIMIZERS[name]
    stock = train(net(), make(**{clip: limit}), run_eagerly=eager)
    ours = train(
        net(kt.TrainOpsModel), make(), gradient_transforms=transform(limit), run_eagerly=eager
    )
    assert_same(ours, stock)
    assert differ(stock, train(net(), make(), run_eagerly=eager)) > 1e-4  # the clip bites


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_bit_for_bit_under_each_option_of_an_optimizer(name: str, option: str) -> None:
    make, options = OPTIMIZERS[name], OPTIONS[option]
    stock = train(net(), make(global_clipnorm=0.5, **options))
    ours = train(
        net(kt.TrainOpsModel), make(**options), gradient_transforms=T.ClipByGlobalNorm(0.5)
    )
    assert_same_arithmetic(ours, stock)


@pytest.mark.backends("tensorflow", "jax")  # PyTorch has no XLA
def test_bit_for_bit_under_a_schedule_and_xla() -> None:
    def schedule() -> Any:
        return O.schedules.ExponentialDecay(0.1, 3, 0.5)

    clip = T.ClipByGlobalNorm(0.5)
    stock = train(net(), O.SGD(schedule(), global_clipnorm=0.5), jit_compile=True)
    ours = train(
        net(kt.TrainOpsModel), O.SGD(schedule()), gradient_transforms=clip, jit_compile=True
    )
    np.testing.assert_allclose(
        np.concatenate([w.ravel() for w in ours]),
        np.concatenate([w.ravel() for w in stock]),
        rtol=1e-6,
        atol=1e-7,
    )


def test_the_plain_model_with_a_transformed_optimizer() -> None:
    stock = train(net(), O.Adam(0.01, global_clipnorm=0.5))
    ours = train(net(), kt.TransformedOptimizer(O.Adam(0.01), T.ClipByGlobalNorm(0.5)))
    assert_same(ours, stock)


class CountRuns(T.GradientTransform):
    """Counts its runs and keeps the largest gradient element it has seen."""

    def build(self, variables: Any) -> None:
        self.runs = self.add_variable("runs", dtype="int32")
        self.largest = self.add_variable("largest")

    def __call__(self, gradients: Any, variables: Any) -> Any:
        peaks = [keras.ops.max(keras.ops.abs(g)) for g in gradients]
        self.runs.assign_add(1)
        self.largest.assign(keras.ops.maximum(self.largest, keras.ops.max(keras.ops.stack(peaks))))
        return gradients


def without_statistics(model_class: type[keras.Model] = keras.Model) -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="tanh", name="trunk")(inputs)
    return model_class(inputs, keras.layers.Dense(2, name="head")(x))


def test_accumulation_equals_the_large_batch_and_runs_the_chain_once_per_update() -> None:
    def run(batch: int, **options: Any) -> tuple[list[Any], CountRuns]:
        model, count = without_statistics(kt.TrainOpsModel), CountRuns()
        model.compile(
            O.Adam(0.01, **options), "mse", gradient_transforms=[count, T.ClipByGlobalNorm(0.5)]
        )
        model.fit(X, Y, batch_size=batch, epochs=5, shuffle=False, verbose=0)
        return weights(model), count

    whole, whole_count = run(16)
    accumulated, count = run(4, gradient_accumulation_steps=4)
    assert count.runs == whole_count.runs == 10
    assert differ(accumulated, whole) < 1e-6
    assert differ(accumulated, weights(without_statistics())) > 1e-2


def test_the_chain_sees_unscaled_gradients() -> None:
    seen = []
    for options in ({}, {"loss_scale_factor": 1024.0}):
        count = CountRuns()
        train(
            without_statistics(kt.TrainOpsModel), O.SGD(0.0, **options), gradient_transforms=count
        )
        seen.append(float(keras.ops.convert_to_tensor(count.largest)))
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)


def test_mixed_float16_equals_its_stock_run() -> None:
    stock = net(policy="mixed_float16")
    train(stock, O.Adam(0.01, global_clipnorm=0.5))
    ours = net(kt.TrainOpsModel, policy="mixed_float16")
    train(ours, O.Adam(0.01), gradient_transforms=T.ClipByGlobalNorm(0.5))
    assert isinstance(ours.optimizer, O.LossScaleOptimizer)
    assert isinstance(ours.optimizer.inner_optimizer, kt.TransformedOptimizer)
    assert_same(weights(ours), weights(stock))


def test_an_overflow_step_changes_nothing_but_the_loss_scale() -> None:
    model, count = net(kt.TrainOpsModel, policy="mixed_float16"), CountRuns()
    train(model, O.Adam(0.01), gradient_transforms=count)
    before, runs = weights(model), int(keras.ops.convert_to_tensor(count.runs))
    scale = float(keras.ops.convert_to_tensor(model.optimizer.dynamic_scale))
    model.train_on_batch(X[:8], np.full((8, 2), np.inf, "float32"))
    kernels = [i for i, v in enumerate(model.weights) if v.trainable]
    assert_same([weights(model)[i] for i in kernels], [before[i] for i in kernels])
    assert count.runs == runs
    assert float(keras.ops.convert_to_tensor(model.optimizer.dynamic_scale)) == scale / 2


def words(model_class: type[keras.Model] = keras.Model, dense: bool = False) -> keras.Model:
    """An embedding by lookup or, the same function with dense gradients, by one-hot product."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5,), dtype="int32")
    if dense:
        one_hot = keras.ops.one_hot(inputs, 7)
        x = keras.layers.Dense(4, use_bias=False, name="words", kernel_initializer="uniform")(
            one_hot
        )
    else:
        x = keras.layers.Embedding(7, 4, name="words")(inputs)
    outputs = keras.layers.Dense(2, name="head")(keras.layers.Flatten()(x))
    return model_class(inputs, outputs)


IDS = RNG.integers(0, 7, size=(32, 5)).astype("int32")  # duplicate rows in every batch


@pytest.mark.parametrize(
    "jit",
    [
        pytest.param(False, id="graph"),
        pytest.param(True, id="xla", marks=pytest.mark.backends("tensorflow")),
    ],
)
@pytest.mark.parametrize(
    "transform",
    [
        T.ClipByGlobalNorm(0.5),
        T.ClipByNorm(0.3),
        T.ClipByValue(0.05),
        [lambda g, v: [x * 0.5 for x in g], T.ClipByNorm(0.3)],  # a callable gets it dense
    ],
    ids=["global", "norm", "value", "callable"],
)
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_sparse_gradient_gives_what_the_dense_one_gives(
    name: str, transform: Any, jit: bool
) -> None:
    results = []
    for dense in (False, True):
        model = words(kt.TrainOpsModel, dense)
        randomised = np.random.default_rng(1)
        for variable in model.weights:
            variable.assign(randomised.normal(size=variable.shape))
        model.compile(OPTIMIZERS[name](), "mse", gradient_transforms=transform, jit_compile=jit)
        model.fit(IDS, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        results.append(weights(model))
    assert differ(*results) < 2e-5
    assert differ(results[0], weights(words())) > 1e-2


def test_learning_rate_and_iterations_are_the_inner_ones() -> None:
    model = without_statistics(kt.TrainOpsModel)
    train(model, O.SGD(0.5), gradient_transforms=T.ClipByNorm(1.0))
    optimizer, inner = model.optimizer, model.optimizer.inner_optimizer
    assert optimizer.iterations == inner.iterations == 12
    optimizer.learning_rate = 0.25
    assert float(keras.ops.convert_to_tensor(inner.learning_rate)) == 0.25
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    model.fit(X, Y, verbose=0, callbacks=[halve])
    assert float(keras.ops.convert_to_tensor(inner.learning_rate)) == 0.125
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=1e9)
    model.fit(X, Y, verbose=0, epochs=2, callbacks=[plateau])
    assert float(keras.ops.convert_to_tensor(inner.learning_rate)) == pytest.approx(0.0125)


def test_compiling_again_replaces_the_transforms_and_never_stacks_them() -> None:
    first, second, optimizer = CountRuns(), CountRuns(), O.SGD(0.01)
    model = without_statistics(kt.TrainOpsModel)
    train(model, optimizer, 1, gradient_transforms=first)
    train(model, optimizer, 1, gradient_transforms=second)
    train(model, model.optimizer, 1, gradient_transforms=second)
    assert first.runs == 4
    assert model.optimizer.inner_optimizer is optimizer
    runs = int(keras.ops.convert_to_tensor(second.runs))
    model.fit(X, Y, batch_size=8, verbose=0)
    assert second.runs == runs + 4


def test_what_must_not_be_wrapped() -> None:
    clip = T.ClipByNorm(1.0)
    with pytest.raises(ValueError, match="must be the optimizer inside the LossScaleOptimizer"):
        kt.TransformedOptimizer(O.LossScaleOptimizer(O.SGD()), clip)
    with pytest.raises(ValueError, match=r"must be a Keras optimizer. Received: 'sgd'"):
        kt.TransformedOptimizer("sgd", clip)
    with pytest.raises(ValueError, match="must be a Keras optimizer"):
        kt.TransformedOptimizer(kt.TransformedOptimizer(O.SGD(), clip), clip)


@pytest.mark.parametrize("argument", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_clipping_twice_is_refused(argument: str) -> None:
    optimizer = O.SGD(0.1, **{argument: 1.0})
    with pytest.raises(ValueError, match=rf"clips gradients itself \({argument}=1.0\)"):
        without_statistics(kt.TrainOpsModel).compile(
            optimizer, "mse", gradient_transforms=[T.Scale(2.0), T.ClipByNorm(1.0)]
        )
    kt.TransformedOptimizer(optimizer, T.Scale(2.0))  # what does not clip, may stand beside


def test_a_loss_scale_optimizer_of_ones_own_gets_the_transforms_inside() -> None:
    optimizer = O.LossScaleOptimizer(O.SGD(0.01), initial_scale=8.0)
    model = net(kt.TrainOpsModel, policy="mixed_float16")
    train(model, optimizer, gradient_transforms=T.ClipByNorm(1.0))
    assert type(model.optimizer) is type(optimizer)
    assert isinstance(model.optimizer.inner_optimizer, kt.TransformedOptimizer)
    assert isinstance(optimizer.inner_optimizer, O.SGD)
    assert optimizer.dynamic_scale is model.optimizer.dynamic_scale


def test_saved_in_the_middle_and_continued_equals_the_uninterrupted_run() -> None:
    @keras.saving.register_keras_serializable(package="tests")
    class Momentum(T.GradientTransform):
        """Has state that matters."""

        def build(self, variables: Any) -> None:
            self.sums = [self.add_variable(f"sum{i}", v.shape) for i, v in enumerate(variables)]

        def __call__(self, gradients: Any, variables: Any) -> Any:
            for total, gradient in zip(self.sums, gradients, strict=True):
                total.assign(0.5 * total + gradient)
            return [keras.ops.convert_to_tensor(total) for total in self.sums]

    def fit(model: keras.Model) -> keras.Model:
        model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return model

    model = net(kt.TrainOpsModel)
    model.compile(O.Adam(0.01), "mse", gradient_transforms=[Momentum(), T.ClipByGlobalNorm(0.5)])
    fit(model).save("middle.keras")
    continued = keras.saving.load_model("middle.keras")
    assert type(continued) is kt.TrainOpsModel
    assert [type(t).__name__ for t in continued.optimizer.chain.transforms] == [
        "Momentum",
        "ClipByGlobalNorm",
    ]
    assert_same(values(continued), values(model))
    assert_same(weights(fit(continued)), weights(fit(model)))


def test_weights_files_of_the_plain_model_fit_both_ways() -> None:
    plain, mixed = net(), net(kt.TrainOpsModel)
    train(mixed, O.Adam(0.01), gradient_transforms=CountRuns())
    mixed.save_weights("mixed.weights.h5")
    plain.load_weights("mixed.weights.h5")
    assert_same(weights(plain), weights(mixed))
    train(plain, "adam")
    plain.save_weights("plain.weights.h5")
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        mixed.load_weights("plain.weights.h5")  # the optimizers differ, as Keras says
    assert_same(weights(mixed), weights(plain))
