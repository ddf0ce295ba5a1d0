from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_trainops.transforms.chain import as_transform
from keras_trainops.transforms.scope import update_scope
from tests.gradients import GRADIENTS, PATHS, T, close, each, run, variables
from tests.helpers import numpy

GLOBAL = np.sqrt(sum((g**2).sum() for g in GRADIENTS if g is not None))


@pytest.mark.parametrize("limit", [0.5, 3.0, 1000.0])
def test_clip_by_norm(limit: float) -> None:
    norms = [np.linalg.norm(g) for g in GRADIENTS if g is not None]
    assert min(norms) < 3.0 < max(norms)
    close(run(T.ClipByNorm(limit)), each(lambda g: g * limit / max(np.linalg.norm(g), limit)))


@pytest.mark.parametrize("limit", [0.5, 1000.0])
def test_clip_by_global_norm(limit: float) -> None:
    close(run(T.ClipByGlobalNorm(limit)), each(lambda g: g * limit / max(GLOBAL, limit)))


def test_clip_by_value() -> None:
    close(run(T.ClipByValue(0.7)), each(lambda g: np.clip(g, -0.7, 0.7)))


def test_scale_takes_the_first_pattern_that_matches() -> None:
    g = GRADIENTS
    expected = [g[0] * 0.5, g[1] * 2, None, g[3]]
    close(run(T.Scale({"bias": 2.0, "trunk": 0.5})), expected)
    close(run(T.Scale(3.0)), each(lambda g: g * 3))
    made = variables()
    scale = T.Scale([(made[1], 2.0), (made[0], 0.5)])
    scale.build(made)
    tensors = [None if x is None else ops.convert_to_tensor(x, "float32") for x in g]
    close([None if x is None else numpy(x) for x in scale(tensors, made)], expected)
    again = T.Scale.from_config(scale.get_config())
    close(run(again), expected)


def test_numbers_may_be_schedules_of_the_weight_updates() -> None:
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([10], [1.0, 0.25])
    for step, factor in ((3, 1.0), (30, 0.25)):
        scaled = run(T.Scale({"trunk": schedule}), iterations=step)
        close(scaled[:2], [g * factor for g in GRADIENTS[:2]])
        expected = each(lambda g, c=factor: g * c / max(GLOBAL, c))
        close(run(T.ClipByGlobalNorm(schedule), iterations=step), expected)
    scale, made = T.Scale(schedule), variables()
    scale.build(made)
    with pytest.raises(RuntimeError, match="A schedule has a value only while an optimizer runs"):
        scale([ops.ones(v.shape) for v in made], made)


def test_pairs_may_come_back_in_another_order() -> None:
    def halve_and_turn(pairs: Any) -> Any:
        return [(None if g is None else g * 0.5, v) for g, v in reversed(pairs)]

    close(run(T.FromPairs(halve_and_turn)), each(lambda g: g * 0.5))


def test_callables_and_lists_apply_in_their_order() -> None:
    def double(gradients: Any, variables: Any) -> Any:
        assert [v.path for v in variables] == PATHS
        return [None if g is None else g * 2 for g in gradients]

    close(run([double, T.ClipByValue(0.7)]), each(lambda g: np.clip(2 * g, -0.7, 0.7)))
    close(run([T.ClipByValue(0.7), double]), each(lambda g: 2 * np.clip(g, -0.7, 0.7)))


COLUMNS = {"kernel": (0,)}  # the layout, as these variables belong to no layer
ALL = {
    "AdaptiveClip": T.AdaptiveClip(0.1, axes=COLUMNS),
    "AdaptiveNormClip": T.AdaptiveNormClip(),
    "Centralize": T.Centralize(axes=COLUMNS),
    "Chain": T.Chain([T.Scale(0.5), T.ClipByNorm(0.5)]),
    "ClipByGlobalNorm": T.ClipByGlobalNorm(0.5),
    "ClipByNorm": T.ClipByNorm(0.5),
    "ClipByValue": T.ClipByValue(0.5),
    "FromFunction": T.FromFunction(lambda g, v: g),
    "FromPairs": T.FromPairs(lambda pairs: [(None if g is None else g * 2, v) for g, v in pairs]),
    "LayerwiseDecay": T.LayerwiseDecay(0.5, ["trunk", "head"]),
    "Monitor": T.Monitor(["head"], histogram=True),
    "Noise": T.Noise(0.01, seed=1),
    "Normalize": T.Normalize(),
    "Only": T.Only("head", T.ClipByNorm(0.5)),
    "Scale": T.Scale({"head": 3.0}),
    "ScaleStep": T.ScaleStep({"head": 3.0}),
    "SkipLarge": T.SkipLarge(1.0),
    "SkipNonFinite": T.SkipNonFinite(2),
    "ZeroNonFinite": T.ZeroNonFinite(),
}


def test_the_table_holds_every_public_transform() -> None:
    assert set(ALL) == set(T.__all__) - {"GradientTransform", "skip_update_if"}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_none_shape_and_dtype_are_kept(name: str, dtype: str) -> None:
    if dtype == "float64" and keras.backend.backend() == "jax":
        dtype = "float32"  # JAX has float64 only where it is switched on for the whole process
    full = run(ALL[name])
    low = run(ALL[name], dtype=dtype)  # the chain refuses another shape or dtype
    # Random numbers differ between dtypes.
    rtol = 1.0 if name == "Noise" else {"float16": 1e-2, "bfloat16": 5e-2}.get(dtype, 2e-6)
    close(low, full, rtol=rtol)


def compiled(function: Any, *, xla: bool) -> Any:
    """`function` as the backend compiles a training step."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=xla)
    import jax

    return jax.jit(function)


@pytest.mark.backends("tensorflow", "jax")  # on PyTorch Keras runs every operation by itself
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "xla",
    [
        pytest.param(False, id="graph", marks=pytest.mark.backends("tensorflow")),
        pytest.param(True, id="xla"),
    ],
)
def test_compiled_gives_the_same(name: str, xla: bool) -> None:
    if name == "Noise" and keras.backend.backend() == "tensorflow" and xla:
        return  # TensorFlow draws other random numbers under XLA
    made = variables()
    ALL[name].build(made)
    state = ALL[name].variables

    def step(a: Any, b: Any, c: Any) -> Any:
        mapping = [(v, ops.convert_to_tensor(v)) for v in [*made, *state]]
        with keras.StatelessScope(mapping), update_scope(lambda: 0):
            return [g for g in ALL[name]([a, b, None, c], made) if g is not None]

    out = compiled(step, xla=xla)(
        *[ops.convert_to_tensor(g, "float32") for g in GRADIENTS if g is not None]
    )
    close([numpy(g) for g in out], [g for g in run(ALL[name]) if g is not None], rtol=2e-6)


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("FromPairs", "FromFunction")])
def test_a_configuration_makes_the_same_transform(name: str) -> None:
    config = keras.saving.serialize_keras_object(ALL[name])
    again = keras.saving.deserialize_keras_object(config)
    close(run(again), run(ALL[name]))
    made = variables()
    for transform in (again, ALL[name]):
        transform.build(made)
    assert list(again.step_factors(made)) == list(ALL[name].step_factors(made))
    assert keras.saving.serialize_keras_object(again) == config


@keras.saving.register_keras_serializable(package="tests")
def thirds(gradients: Any, variables: Any) -> Any:
    return [None if g is None else g / 3 for g in gradients]


def test_a_registered_function_is_saved_by_name() -> None:
    config = keras.saving.serialize_keras_object(T.FromFunction(thirds))
    close(run(keras.saving.deserialize_keras_object(config)), each(lambda g: g / 3))


def test_float16_norms_do_not_overflow() -> None:
    gradient = np.array([[300.0, 300.0, 0.0]] * 4)
    gradients = [gradient, None, None, None]
    norm = np.linalg.norm(gradient)
    for clip in (T.ClipByNorm(1.0), T.ClipByGlobalNorm(1.0)):
        close(run(clip, gradients, "float16"), [gradient / norm, None, None, None], rtol=1e-3)


def test_a_norm_that_is_not_finite_poisons_all_gradients_as_in_keras() -> None:
    gradients = [np.full((4, 3), np.inf), np.ones(3), None, np.ones((3, 2))]
    assert all(np.isnan(g).all() for g in run(T.ClipByGlobalNorm(1.0), gradients) if g is not None)


@pytest.mark.parametrize("kind", [T.ClipByNorm, T.ClipByGlobalNorm, T.ClipByValue])
@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf"), True, "1", None])
def test_a_limit_must_be_positive(kind: Any, bad: Any) -> None:
    with pytest.raises(ValueError, match=r"`max_(norm|value)` must be > 0. Received: max_"):
        kind(bad)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"heads": 2.0}, "Pattern 'heads' matches no variable. Closest paths: 'head/kernel'"),
        ({"kernel": 2.0, "head": 1.0}, "Pattern 'head' never applies"),
        ({"head": "2"}, "A factor must be a finite number .* Received: '2' for Pattern 'head'"),
        ({"head": float("nan")}, "A factor must be a finite number"),
        ({}, "`factors` must name at least one pattern"),
        ("head", "A factor must be a finite number"),
    ],
)
def test_factors_that_make_no_sense(factors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(T.Scale(factors))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda g, v: g[:2], r"FromFunction\(<lambda>\) returned 2 gradients for 4 variables"),
        (lambda g, v: None, "must return a list of gradients. Received: None"),
        (
            lambda g, v: [0 if x is None else x for x in g],
            "'unused/kernel', whose gradient was None",
        ),
        (lambda g, v: [None for x in g], "'trunk/kernel', whose gradient was shape"),
        (
            lambda g, v: [x if x is None else ops.sum(x) for x in g],
            r"returned a gradient of shape \(\) and dtype float32 for 'trunk/kernel'",
        ),
        (
            lambda g, v: [x if x is None else ops.cast(x, "float16") for x in g],
            "and dtype float16 for 'trunk/kernel', which was of .*float32",
        ),
    ],
)
def test_what_a_transform_must_not_change(function: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(function)


@pytest.mark.parametrize("bad", [3, "clip", T.ClipByNorm, [T.ClipByNorm(1.0), None]])
def test_what_is_no_transform_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="A gradient transform must be a `GradientTransform`"):
        as_transform(bad)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda pairs: pairs[:2], "must return each of its 4 variables once. It returned 2 pairs"),
        (lambda pairs: [pairs[0]] * 4, "It returned 4 pairs with 1 different variables"),
        (lambda pairs: [g for g, _ in pairs], r"must return \(gradient, variable\) pairs"),
    ],
)
def test_pairs_that_are_not_all_variables(function: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(T.FromPairs(function))
