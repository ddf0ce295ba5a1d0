"""The position of the chain of transforms, skipped updates, scaled steps, several optimizers."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import optax
import pytest
from keras import ops

import keras_trainops as kt
from tests.helpers import (
    assert_same,
    assert_same_arithmetic,
    differ,
    randomise,
    value,
    values,
    weights,
)
from tests.training.optimizers.kinds import MULTI, several
from tests.training.small_models import X, Y, net, train, with_batch_norm

T = kt.transforms
O = keras.optimizers  # noqa: E741


class KeepLargest(T.GradientTransform):
    """Counts its runs and keeps the largest gradient element it has seen."""

    def build(self, variables: Any) -> None:
        self.runs = self.add_variable("runs", dtype="int32")
        self.largest = self.add_variable("largest")

    def __call__(self, gradients: Any, variables: Any) -> Any:
        peaks = [keras.ops.max(keras.ops.abs(g)) for g in gradients]
        self.runs.assign_add(1)
        self.largest.assign(keras.ops.maximum(self.largest, keras.ops.max(keras.ops.stack(peaks))))
        return gradients


def test_accumulation_equals_the_large_batch() -> None:
    def run(batch: int, **options: Any) -> tuple[list[Any], KeepLargest]:
        model, count = net(), KeepLargest()
        model.compile(
            O.Adam(0.01, **options), "mse", gradient_transforms=[count, T.ClipByGlobalNorm(0.5)]
        )
        model.fit(X, Y, batch_size=batch, epochs=5, shuffle=False, verbose=0)
        return weights(model), count

    whole, whole_count = run(16)
    accumulated, count = run(4, gradient_accumulation_steps=4)
    assert count.runs == whole_count.runs == 10
    assert differ(accumulated, whole) < 1e-6
    assert differ(accumulated, weights(net())) > 1e-2


def test_the_chain_sees_unscaled_gradients() -> None:
    seen = []
    for options in ({}, {"loss_scale_factor": 1024.0}):
        count = KeepLargest()
        train(net(), O.SGD(0.0, **options), gradient_transforms=count)
        seen.append(float(keras.ops.convert_to_tensor(count.largest)))
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)


def words(model_class: type[keras.Model] = keras.Model, dense: bool = False) -> keras.Model:
    """Return a model with an embedding: a lookup or, for dense gradients, a one-hot product."""
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


IDS = np.random.default_rng(0).integers(0, 7, size=(32, 5))  # duplicate rows in every batch
OPTIMIZERS = {"sgd": lambda: O.SGD(0.05, momentum=0.9), "adam": lambda: O.Adam(0.01)}
CLIPS: dict[str, Any] = {
    "global": T.ClipByGlobalNorm(0.5),
    "norm": T.ClipByNorm(0.3),
    "value": T.ClipByValue(0.05),
    "callable": [lambda g, v: [x * 0.5 for x in g], T.ClipByNorm(0.3)],  # it gets them dense
}


def trained_words(name: str, clip: str, *, dense: bool, jit: bool = False) -> list[np.ndarray]:
    model = randomise(words(kt.TrainOpsModel, dense), 1)
    model.compile(OPTIMIZERS[name](), "mse", gradient_transforms=CLIPS[clip], jit_compile=jit)
    model.fit(IDS, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return weights(model)


@functools.cache
def trained_densely(name: str, clip: str) -> list[np.ndarray]:
    return trained_words(name, clip, dense=True)


@pytest.mark.parametrize(
    "jit",
    [
        pytest.param(False, id="graph"),
        pytest.param(True, id="xla", marks=pytest.mark.backends("tensorflow")),
    ],
)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_sparse_gradients_give_what_dense_ones_give(name: str, clip: str, jit: bool) -> None:
    sparse = trained_words(name, clip, dense=False, jit=jit)
    assert differ(sparse, trained_densely(name, clip)) < 2e-5
    assert differ(sparse, weights(randomise(words(), 1))) > 1e-2


def gradients_for(steps: int) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(5)
    return [
        [rng.normal(size=(3, 2)).astype("float32"), rng.normal(size=2).astype("float32")]
        for _ in range(steps)
    ]


def apply_all(optimizer: Any, sequence: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """Return the weights after each of the optimizer's steps."""
    made = [
        keras.Variable(np.ones((3, 2)), name="kernel"),
        keras.Variable(np.zeros(2), name="bias"),
    ]
    optimizer.build(made)
    history = []
    for gradients in sequence:
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients], made)
        history.append([value(v) for v in made])
    return history


def test_skips_follow_optax_step_by_step() -> None:
    sequence = gradients_for(12)
    for step in (1, 4, 5, 6, 7):  # 7 is the fourth in a row, which passes
        sequence[step][0][0, 0] = np.inf if step % 2 else np.nan
    sequence = sequence[:8]
    transform = optax.apply_if_finite(optax.sgd(0.1, momentum=0.9), max_consecutive_errors=3)
    params = [np.ones((3, 2), "float32"), np.zeros(2, "float32")]
    state, expected = transform.init(params), []
    for gradients in sequence:
        steps, state = transform.update(gradients, state, params)
        params = [np.asarray(p + s) for p, s in zip(params, steps, strict=True)]
        expected.append(params)
    skip = T.SkipNonFinite(max_consecutive=3)
    ours = apply_all(kt.TransformedOptimizer(O.SGD(0.1, momentum=0.9), skip), sequence)
    for mine, theirs in zip(ours, expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert value(skip.skipped) == 4
    assert not np.isfinite(ours[-1][0]).all()


@pytest.mark.parametrize("count", [None, 2], ids=["plain", "accumulation"])
@pytest.mark.parametrize("skip", [T.SkipNonFinite(), T.SkipLarge(1e6)], ids=["finite", "large"])
def test_a_skipped_update_leaves_no_trace(skip: Any, count: int | None) -> None:
    """Weights, slots, averages, decay, iterations, schedules, and the state of transforms."""

    def run(x: np.ndarray, y: np.ndarray) -> Any:
        model = net()
        schedule = O.schedules.ExponentialDecay(0.05, 2, 0.5)
        # Under accumulation Keras averages weights after every batch: once too often here.
        options = {"gradient_accumulation_steps": count} if count else {"use_ema": True}
        optimizer = O.AdamW(schedule, weight_decay=0.1, **options)
        own = type(skip).from_config(skip.get_config())
        chain = [T.AdaptiveNormClip(), T.Noise(0.01, seed=3), own]
        train(model, optimizer, y, x, gradient_transforms=chain)
        return model

    batches = 2 if count else 1  # one weight update's worth is bad
    longer = np.insert(X, [8 * batches] * 8 * batches, 1.0, axis=0)
    bad = np.insert(Y, [8 * batches] * 8 * batches, np.nan, axis=0)
    with_bad, without = run(longer, bad), run(X, Y)
    kept = [
        [value(v) for v in [*m.weights, *m.optimizer.variables] if "skip" not in v.path]
        for m in (with_bad, without)
    ]
    assert_same_arithmetic(*kept)
    assert value(with_bad.optimizer.iterations) == 8 // batches


def test_a_function_can_skip_updates() -> None:
    def every_other(gradients: Any, variables: Any) -> Any:
        T.skip_update_if(ops.equal(ops.sign(gradients[0][0, 0]), -1))
        return gradients

    sequence = gradients_for(6)
    ours = apply_all(kt.TransformedOptimizer(O.SGD(0.1), every_other), sequence)
    weight = np.ones((3, 2), "float32")
    for gradients, got in zip(sequence, ours, strict=True):
        if gradients[0][0, 0] >= 0:
            weight = weight - 0.1 * gradients[0]
        np.testing.assert_allclose(got[0], weight, rtol=1e-6)
    with pytest.raises(RuntimeError, match="Only a transform that an optimizer runs can skip"):
        T.skip_update_if(ops.convert_to_tensor(True))


def test_an_overflow_changes_only_the_loss_scale() -> None:
    model, count = with_batch_norm(policy="mixed_float16"), KeepLargest()
    train(model, O.Adam(0.01), gradient_transforms=count)
    before, runs = weights(model), int(keras.ops.convert_to_tensor(count.runs))
    scale = float(keras.ops.convert_to_tensor(model.optimizer.dynamic_scale))
    model.train_on_batch(X[:8], np.full((8, 2), np.inf, "float32"))
    kernels = [i for i, v in enumerate(model.weights) if v.trainable]
    assert_same([weights(model)[i] for i in kernels], [before[i] for i in kernels])
    assert count.runs == runs
    assert float(keras.ops.convert_to_tensor(model.optimizer.dynamic_scale)) == scale / 2


def test_an_overflow_leaves_the_transforms_state_alone() -> None:
    model = net(policy="mixed_float16")
    chain = [T.AdaptiveNormClip(), T.Noise(0.01, seed=1), T.Monitor(), T.SkipNonFinite(1)]
    train(model, O.Adam(0.01), gradient_transforms=chain)
    own = {id(v) for v in (model.optimizer.dynamic_scale, model.optimizer.step_counter)}
    before = [value(v) for v in [*model.variables, *model.optimizer.variables] if id(v) not in own]
    scale = value(model.optimizer.dynamic_scale)
    model.train_on_batch(X[:8], np.full((8, 2), np.inf, "float32"))
    after = [value(v) for v in [*model.variables, *model.optimizer.variables] if id(v) not in own]
    metrics = {id(v) for v in model.metrics_variables}
    counted = [v for v in [*model.variables, *model.optimizer.variables] if id(v) not in own]
    pairs = [(a, b) for v, a, b in zip(counted, before, after, strict=True) if id(v) not in metrics]
    assert_same([a for a, _ in pairs], [b for _, b in pairs])
    assert value(model.optimizer.dynamic_scale) == scale / 2


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Lion"])
def test_a_step_multiplier_is_a_learning_rate_multiplier(name: str) -> None:
    """The kernel steps as with a tenth of the rate, the bias with the whole rate."""
    make = getattr(O, name)
    sequence = gradients_for(8)
    ours = apply_all(kt.TransformedOptimizer(make(0.1), T.ScaleStep({"kernel": 0.1})), sequence)
    slow, fast = apply_all(make(0.01), sequence), apply_all(make(0.1), sequence)
    for got, a, b in zip(ours, slow, fast, strict=True):
        np.testing.assert_allclose(got[0], a[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(got[1], b[1])
    scaled = apply_all(kt.TransformedOptimizer(make(0.1), T.Scale({"kernel": 0.1})), sequence)
    if name != "SGD":  # scaling the gradient does not scale the step
        assert np.abs(scaled[-1][0] - slow[-1][0]).max() > 0.01


def test_step_multipliers_may_be_zero_or_schedules() -> None:
    schedule = O.schedules.PiecewiseConstantDecay([1], [0.0, 1.0])  # of the iterations before
    sequence = gradients_for(4)
    optimizer = kt.TransformedOptimizer(O.Adam(0.1), T.ScaleStep({"bias": schedule, "kernel": 0.0}))
    ours = apply_all(optimizer, sequence)
    np.testing.assert_array_equal(ours[-1][0], np.ones((3, 2)))
    np.testing.assert_array_equal(ours[1][1], np.zeros(2))
    assert (ours[2][1] != 0).all()


@MULTI
@pytest.mark.parametrize("scale", [None, 8.0])
def test_several_optimizers_share_one_global_norm(scale: float | None) -> None:
    clip = T.ClipByGlobalNorm(0.5)
    inner = several(O.SGD(0.05), O.SGD(0.05), loss_scale_factor=scale)
    ours = train(net(), inner, gradient_transforms=clip)
    stock = train(net(keras.Model), O.SGD(0.05, global_clipnorm=0.5))
    assert_same_arithmetic(ours, stock)
    apart = several(O.SGD(0.05, global_clipnorm=0.5), O.SGD(0.05, global_clipnorm=0.5))
    assert differ(train(net(keras.Model), apart), stock) > 1e-3


@MULTI
def test_several_optimizers_skip_scale_steps_and_are_saved() -> None:
    model = net()
    chain = [T.SkipNonFinite(), T.ScaleStep({"head": 0.0})]
    bad = Y.copy()
    bad[:8] = np.nan
    head = value(model.get_layer("head").kernel)
    train(model, several(O.Adam(0.01), O.SGD(0.05)), bad, gradient_transforms=chain)
    assert model.optimizer.iterations == 6
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), head)
    model.save("several.keras")
    loaded = keras.saving.load_model("several.keras")
    assert_same(values(loaded), values(model))
    for each in (model, loaded):
        each.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    assert_same(weights(loaded), weights(model))
