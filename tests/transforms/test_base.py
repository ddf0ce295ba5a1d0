"""The protocol of transforms, tested on every public one."""

from __future__ import annotations

from typing import Any

import keras
import optax
import pytest
from keras import ops

from keras_trainops.transforms.scope import update_scope
from tests.helpers import numpy
from tests.transforms.gradients import GRADIENTS, T, close, run, variables


@keras.saving.register_keras_serializable(package="tests")
def always(updates: Any) -> Any:
    return updates >= 0


@keras.saving.register_keras_serializable(package="tests")
def by_optax() -> Any:
    return optax.scale_by_adam()


COLUMNS = {"kernel": (0,)}  # the layout, as these variables belong to no layer
ALL = {
    "AdaptiveClip": T.AdaptiveClip(0.1, axes=COLUMNS),
    "AdaptiveNormClip": T.AdaptiveNormClip(),
    "Centralize": T.Centralize(axes=COLUMNS),
    "Chain": T.Chain([T.Scale(0.5), T.ClipByNorm(0.5)]),
    "ClipByBlockRMS": T.ClipByBlockRMS(0.5),
    "ClipByGlobalNorm": T.ClipByGlobalNorm(0.5),
    "ClipByNorm": T.ClipByNorm(0.5),
    "ClipByValue": T.ClipByValue(0.5),
    "Ema": T.Ema(0.9),
    "FromFunction": T.FromFunction(lambda g, v: g),
    "FromPairs": T.FromPairs(lambda pairs: [(None if g is None else g * 2, v) for g, v in pairs]),
    "LayerwiseDecay": T.LayerwiseDecay(0.5, ["trunk", "head"]),
    "Momentum": T.Momentum(0.9, nesterov=True),
    "Monitor": T.Monitor(["head"], histogram=True),
    "Noise": T.Noise(0.01, seed=1),
    "Normalize": T.Normalize(),
    "Only": T.Only("head", T.ClipByNorm(0.5)),
    "Scale": T.Scale({"head": 3.0}),
    "Scale by a variable": T.Scale({"head": keras.Variable(3.0, trainable=False)}),
    "ScaleStep": T.ScaleStep({"head": 3.0}),
    "SkipLarge": T.SkipLarge(1.0),
    "SkipNonFinite": T.SkipNonFinite(2),
    "Trust": T.Trust(0.1),
    "When": T.When(always, T.Momentum(0.9)),
    "ZeroNonFinite": T.ZeroNonFinite(),
}
if keras.backend.backend() == "jax":
    ALL["FromOptax"] = T.FromOptax(by_optax)


def test_the_table_is_complete() -> None:
    tested = {type(transform).__name__ for transform in ALL.values()}
    assert {*tested, "FromOptax"} == set(T.__all__) - {"GradientTransform", "skip_update_if"}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "dtype",
    [
        *("float32", "float16", "bfloat16"),
        # JAX has float64 only where it is switched on for the whole process.
        pytest.param("float64", marks=pytest.mark.backends("tensorflow", "torch")),
    ],
)
def test_keeps_none_shape_and_dtype(name: str, dtype: str) -> None:
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


# TensorFlow draws other random numbers under XLA, and JAX compiles with XLA only.
COMPILED = [
    pytest.param(
        name, xla, id=f"{name}-{'xla' if xla else 'graph'}", marks=pytest.mark.backends(*on)
    )
    for name in ALL
    for xla, on in [
        (False, ["tensorflow"]),
        (True, ["jax"] if name == "Noise" else ["tensorflow", "jax"]),
    ]
]


@pytest.mark.backends("tensorflow", "jax")  # on PyTorch Keras runs every operation by itself
@pytest.mark.parametrize(("name", "xla"), COMPILED)
def test_compiled_result_is_the_same(name: str, xla: bool) -> None:
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
def test_configuration_restores_the_transform(name: str) -> None:
    config = keras.saving.serialize_keras_object(ALL[name])
    again = keras.saving.deserialize_keras_object(config)
    close(run(again), run(ALL[name]))
    made = variables()
    for transform in (again, ALL[name]):
        transform.build(made)
    assert list(again.step_factors(made)) == list(ALL[name].step_factors(made))
    assert keras.saving.serialize_keras_object(again) == config
