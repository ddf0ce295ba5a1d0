"""What the engine adds to an optimizer: skips, scaled steps, several optimizers, carried state."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import optax
import pytest
from keras import ops

import keras_trainops as kt
from tests.helpers import assert_same, assert_same_arithmetic, differ, numpy, value, values, weights

T = kt.transforms
O = keras.optimizers  # noqa: E741
RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype("float32")
Y = RNG.normal(size=(32, 2)).astype("float32") * 10


def net(model_class: type[keras.Model] = kt.TrainOpsModel, policy: str = "float32") -> Any:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="tanh", name="trunk", dtype=policy)(inputs)
    model = model_class(inputs, keras.layers.Dense(2, name="head", dtype="float32")(x))
    model.dtype_policy = policy
    return model


def train(model: Any, optimizer: Any, y: Any = Y, x: Any = X, **options: Any) -> Any:
    epochs, batch = options.pop("epochs", 2), options.pop("batch_size", 8)
    model.compile(optimizer, "mse", **options)
    model.fit(x, y, batch_size=batch, epochs=epochs, shuffle=False, verbose=0)
    return weights(model)


STOCK = [
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "Adamax",
    "AdamW",
    "Ftrl",
    "Lamb",
    "Lion",
    "Muon",
    "Nadam",
    "RMSprop",
    "SGD",
]


def test_the_list_holds_every_stock_optimizer() -> None:
    found = {
        name
        for name, kind in vars(O).items()
        if isinstance(kind, type) and issubclass(kind, O.Optimizer)
    }
    others = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
    assert found - others - {"ScheduleFreeAdamW"} == set(STOCK)


@pytest.mark.parametrize("name", STOCK)
def test_every_stock_optimizer_takes_the_step_it_takes_alone(name: str) -> None:
    make = getattr(O, name)
    stock = train(net(keras.Model), make(0.01, global_clipnorm=0.5))
    ours = train(net(), make(0.01), gradient_transforms=T.ClipByGlobalNorm(0.5))
    assert_same_arithmetic(ours, stock)
    assert differ(ours, weights(net())) > 1e-4


def gradients_for(steps: int) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(5)
    return [
        [rng.normal(size=(3, 2)).astype("float32"), rng.normal(size=2).astype("float32")]
        for _ in range(steps)
    ]


def apply_all(optimizer: Any, sequence: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """The weights after each of the optimizer's steps."""
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
    for step in (1, 4, 5, 6, 7):  # 7: the fourth in a row, which is let through
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
def test_a_skipped_update_is_as_if_it_had_not_been(skip: Any, count: int | None) -> None:
    """Weights, slots, averages, decay, iterations, schedules, and the state of transforms."""

    def run(x: np.ndarray, y: np.ndarray) -> Any:
        model = net()
        schedule = O.schedules.ExponentialDecay(0.05, 2, 0.5)
        # Under accumulation Keras averages weights after every batch, which is a batch more here.
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


def test_a_function_can_skip_too() -> None:
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


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Lion"])
def test_a_step_multiplier_is_a_learning_rate_multiplier(name: str) -> None:
    """The kernel's steps are those of a tenth of the rate, the bias's the whole ones."""
    make = getattr(O, name)
    sequence = gradients_for(8)
    ours = apply_all(kt.TransformedOptimizer(make(0.1), T.ScaleStep({"kernel": 0.1})), sequence)
    slow, fast = apply_all(make(0.01), sequence), apply_all(make(0.1), sequence)
    for got, a, b in zip(ours, slow, fast, strict=True):
        np.testing.assert_allclose(got[0], a[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(got[1], b[1])
    scaled = apply_all(kt.TransformedOptimizer(make(0.1), T.Scale({"kernel": 0.1})), sequence)
    if name != "SGD":  # a factor on the gradient is none on the step
        assert np.abs(scaled[-1][0] - slow[-1][0]).max() > 0.01


def test_a_step_multiplier_of_zero_and_a_schedule() -> None:
    schedule = O.schedules.PiecewiseConstantDecay([1], [0.0, 1.0])  # of the iterations before
    sequence = gradients_for(4)
    engine = kt.TransformedOptimizer(O.Adam(0.1), T.ScaleStep({"bias": schedule, "kernel": 0.0}))
    ours = apply_all(engine, sequence)
    np.testing.assert_array_equal(ours[-1][0], np.ones((3, 2)))
    np.testing.assert_array_equal(ours[1][1], np.zeros(2))
    assert (ours[2][1] != 0).all()


MULTI = pytest.mark.skipif(
    not hasattr(O, "MultiOptimizer"), reason="keras.optimizers.MultiOptimizer needs a newer Keras"
)


def several(first: Any, second: Any, **options: Any) -> Any:
    return O.MultiOptimizer(O.OptimizerMap(first, {"head/.*": second}), **options)


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
def test_several_optimizers_are_saved_skip_and_scale_steps() -> None:
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


@MULTI
def test_what_several_optimizers_must_not_do() -> None:
    with pytest.raises(ValueError, match=r"'sgd' inside a MultiOptimizer has gradient_accum"):
        kt.TransformedOptimizer(
            several(O.SGD(gradient_accumulation_steps=2, name="sgd"), O.Adam()), T.Scale(1.0)
        )
    with pytest.raises(ValueError, match=r"'adam' clips gradients itself \(clipnorm=1.0\)"):
        kt.TransformedOptimizer(
            several(O.SGD(), O.Adam(clipnorm=1.0, name="adam")), T.ClipByNorm(1.0)
        )


def test_an_overflow_step_changes_no_state_but_the_loss_scale() -> None:
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


def test_variables_to_train_may_change_between_fits_and_state_goes_on() -> None:
    """Head first, then all, then the trunk: slots, averages, iterations and rate are kept."""
    optimizer = O.AdamW(0.01, weight_decay=0.1, use_ema=True)
    noise = T.Noise(0.01, seed=1)
    model = net()
    train(model, optimizer, variables_to_train="head", gradient_transforms=noise)
    model.optimizer.learning_rate = 0.02
    inner = model.optimizer.inner_optimizer
    slots = {v.path: value(v) for v in inner.variables if "head_kernel" in v.path}
    drawn = [value(v) for v in noise.variables]
    model.compile(model.optimizer, "mse")
    inner = model.optimizer.inner_optimizer
    carried = {v.path: value(v) for v in inner.variables if "head_kernel" in v.path}
    assert carried.keys() == slots.keys()
    assert len(slots) == 3
    assert_same(list(carried.values()), list(slots.values()))
    assert inner is not optimizer
    assert [value(v).tolist() for v in noise.variables] == [v.tolist() for v in drawn]
    assert value(model.optimizer.iterations) == 8
    assert float(numpy(ops.convert_to_tensor(model.optimizer.learning_rate))) == pytest.approx(0.02)
    trunk = value(model.get_layer("trunk").kernel)
    model.fit(X, Y, batch_size=8, verbose=0)
    assert differ([value(model.get_layer("trunk").kernel)], [trunk]) > 1e-3
    model.compile(model.optimizer, "mse", variables_to_train="trunk")
    head = value(model.get_layer("head").kernel)
    model.fit(X, Y, batch_size=8, verbose=0)
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), head)
    assert value(model.optimizer.iterations) == 16


def test_the_same_choice_again_keeps_the_optimizer_itself() -> None:
    optimizer, model = O.Adam(0.01), net()
    train(model, optimizer, variables_to_train="head")
    train(model, optimizer, variables_to_train="head")
    assert model.optimizer is optimizer
    assert optimizer.iterations == 16


@pytest.mark.parametrize("change", ["less", "more"])
def test_a_layer_frozen_or_not_after_compile_is_an_error_before_training(change: str) -> None:
    model = net()
    model.get_layer("trunk").trainable = change == "less"
    train(model, O.Adam(0.01))
    model.get_layer("trunk").trainable = change == "more"
    before = weights(model)
    with pytest.raises(ValueError, match=r"have changed .*: trunk/kernel, trunk/bias. Compile ag"):
        model.fit(X, Y, verbose=0)
    assert_same(weights(model), before)
    model.compile(model.optimizer, "mse")
    model.fit(X, Y, verbose=0)


def test_a_function_that_is_not_registered_is_not_saved_in_silence() -> None:
    def halve(gradients: Any, variables: Any) -> Any:
        return [g * 0.5 for g in gradients]

    model = net()
    train(model, O.SGD(0.01), gradient_transforms=halve)
    with pytest.raises(ValueError, match=r"'halve' cannot be saved.*register_keras_serializable"):
        model.save("m.keras")
    model.save_weights("m.weights.h5")
    keras.saving.register_keras_serializable(package="engine_tests")(halve)
    model.save("m.keras")
    loaded = keras.saving.load_model("m.keras")
    assert loaded.optimizer.chain.transforms[0].function is halve


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # stock says so too
def test_unknown_length_gives_as_many_updates_as_batches() -> None:
    """keras-facts 12: the call that finds no more data used to run one more update."""
    import tensorflow as tf

    inputs = keras.Input((6,))
    x = keras.layers.Dropout(0.5, seed=1)(inputs)
    model = kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="head")(x))
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).filter(lambda x, y: True)
    model.compile(O.AdamW(0.01, weight_decay=0.5), "mse")
    model.fit(data, epochs=5, verbose=0, shuffle=False)
    assert model.optimizer.iterations == 20
    (seed,) = [value(v) for v in model.variables if v.name == "seed_generator_state"]
    assert seed[1] == 20


def test_averaged_weights_can_be_trained_on() -> None:
    """In stock Keras a second fit fails on JAX: weights and averages share their values."""
    model = net()
    train(model, O.Adam(0.01, use_ema=True), gradient_transforms=T.Scale(1.0))
    before = weights(model)
    model.fit(X, Y, verbose=0)
    assert differ(weights(model), before) > 1e-6
