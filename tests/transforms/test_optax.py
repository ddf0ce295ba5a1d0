"""Transforms with an equal in optax: 20 steps of the same numbers, or the reason why not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import keras
import ml_dtypes
import numpy as np
import optax
import pytest
from keras import ops

from keras_trainops.transforms.scope import update_scope
from tests.helpers import numpy
from tests.transforms.gradients import T

STEPS = 20
SHAPES = {"layer/kernel": (3, 2), "layer/bias": (3,), "net/scale": (), "net/empty": (0, 2)}
COLUMNS, ROWS = {"kernel": (0,)}, {"kernel": (1,)}
BAD_STEPS = (3, 9, 10, 11, 15)  # three of them in a row
BAD = {"huge": 1e20, "inf": np.inf, "nan": np.nan}
KINDS = ("normal", "zeros", "tiny", *BAD)
# We compute in float32, optax in the dtype of the gradients.
TOLERANCES = {"float32": 1e-5, "bfloat16": 4e-2, "float16": 1e-2}
SCHEDULE = keras.optimizers.schedules.PiecewiseConstantDecay([4, 11], [1.0, 0.25, 2.0])


@dataclass(frozen=True)
class Row:
    """A transform, its equal in optax, and where the two differ on purpose.

    Attributes:
        ours: Makes the transform.
        theirs: Makes the optax transformation.
        differs: The reason, by kind of gradients, or by kind and dtype.
    """

    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    differs: Mapping[str, str] = field(default_factory=dict)

    def why_different(self, kind: str, dtype: str) -> str | None:
        return self.differs.get(kind) or self.differs.get(f"{kind} {dtype}")


def each_alone(transformation: Any) -> Any:
    """Apply a transformation to each leaf as if there were no others."""
    return optax.partition(dict.fromkeys(SHAPES, transformation), {path: path for path in SHAPES})


def early(step: Any) -> Any:
    return step < 10


def even(step: Any) -> Any:
    return step % 2 == 0


INFINITY_IS_BAD = {
    "inf": "infinities are zeroed like NaN",
    "huge float16": "infinities are zeroed like NaN",
}
NAN_FOR_ALL = "a joint norm that overflows makes all gradients NaN, as in Keras, not 0"
OVERFLOW = {"huge": NAN_FOR_ALL, "inf": NAN_FOR_ALL}

TABLE = {
    "AdaptiveClip": Row(
        lambda: T.AdaptiveClip(0.2, axes=COLUMNS), lambda: optax.adaptive_grad_clip(0.2)
    ),
    "Centralize": Row(lambda: T.Centralize(axes=ROWS), optax.centralize),
    "Centralize, Keras's layout": Row(
        lambda: T.Centralize(axes=COLUMNS),
        optax.centralize,
        dict.fromkeys(
            ["normal", "tiny float32", "tiny bfloat16", *BAD],
            "the last axis of a Keras kernel leads to the output units, not the first",
        ),
    ),
    "Chain": Row(
        lambda: T.Chain([T.Momentum(0.9), T.ClipByValue(0.5), T.Scale(3.0)]),
        lambda: optax.chain(optax.trace(0.9), optax.clip(0.5), optax.scale(3.0)),
    ),
    "ClipByBlockRMS": Row(lambda: T.ClipByBlockRMS(0.7), lambda: optax.clip_by_block_rms(0.7)),
    "ClipByGlobalNorm": Row(
        lambda: T.ClipByGlobalNorm(0.7), lambda: optax.clip_by_global_norm(0.7), OVERFLOW
    ),
    "ClipByNorm": Row(
        lambda: T.ClipByNorm(0.7), lambda: each_alone(optax.clip_by_global_norm(0.7))
    ),
    "ClipByValue": Row(lambda: T.ClipByValue(0.7), lambda: optax.clip(0.7)),
    "Ema": Row(lambda: T.Ema(0.8), lambda: optax.ema(0.8)),
    "Ema, biased": Row(lambda: T.Ema(0.8, debias=False), lambda: optax.ema(0.8, debias=False)),
    "Ema, float32": Row(
        lambda: T.Ema(0.8, accumulator_dtype="float32"),
        lambda: optax.ema(0.8, accumulator_dtype="float32"),
    ),
    "FromFunction": Row(
        lambda: T.FromFunction(lambda gs, vs: [-g for g in gs]),
        lambda: optax.stateless(lambda gs, ws: jax.tree.map(lambda g: -g, gs)),
    ),
    "Momentum": Row(lambda: T.Momentum(0.8), lambda: optax.trace(0.8)),
    "Momentum, Nesterov": Row(
        lambda: T.Momentum(0.8, nesterov=True), lambda: optax.trace(0.8, nesterov=True)
    ),
    "Momentum, float32": Row(
        lambda: T.Momentum(0.8, accumulator_dtype="float32"),
        lambda: optax.trace(0.8, accumulator_dtype="float32"),
    ),
    "Noise": Row(
        lambda: T.Noise(0.01, 0.55, seed=1),
        lambda: optax.add_noise(0.01, 0.55, key=1),
        dict.fromkeys(KINDS, "each backend draws its own random numbers"),
    ),
    "Normalize": Row(
        lambda: T.Normalize(2.0, epsilon=1e-3), lambda: optax.normalize_by_update_norm(2.0, 1e-3)
    ),
    "Normalize, per variable": Row(
        lambda: T.Normalize(2.0, scope="variable", epsilon=1e-3),
        lambda: each_alone(optax.normalize_by_update_norm(2.0, 1e-3)),
    ),
    "Only": Row(
        lambda: T.Only("layer", T.Momentum(0.9)),
        lambda: optax.masked(optax.trace(0.9), {p: p.startswith("layer") for p in SHAPES}),
    ),
    "Scale": Row(lambda: T.Scale(0.3), lambda: optax.scale(0.3)),
    "Scale, by pattern": Row(
        lambda: T.Scale({"kernel": 0.3, "scale": 2.0}),
        lambda: optax.partition(
            {"a": optax.scale(0.3), "b": optax.scale(2.0), "c": optax.identity()},
            {"layer/kernel": "a", "net/scale": "b", "layer/bias": "c", "net/empty": "c"},
        ),
    ),
    "Scale, schedule": Row(
        lambda: T.Scale(SCHEDULE),
        lambda: optax.scale_by_schedule(optax.piecewise_constant_schedule(1.0, {5: 0.25, 12: 8.0})),
    ),
    "Scale, variable": Row(
        lambda: T.Scale(keras.Variable(0.3, trainable=False)), lambda: optax.scale(0.3)
    ),
    "SkipLarge": Row(
        lambda: T.Chain([T.SkipLarge(3.65), T.Momentum(0.9)]),
        lambda: optax.MultiSteps(
            optax.trace(0.9),
            every_k_schedule=1,
            should_skip_update_fn=functools.partial(
                optax.skip_large_updates, max_squared_norm=3.65**2
            ),
        ),
    ),
    "SkipNonFinite": Row(
        lambda: T.Chain([T.SkipNonFinite(2), T.Momentum(0.9)]),
        lambda: optax.apply_if_finite(optax.trace(0.9), 2),
    ),
    "Trust": Row(lambda: T.Trust(), optax.scale_by_trust_ratio),
    "Trust, bounded": Row(
        lambda: T.Trust(0.02, min_norm=0.5, epsilon=0.1),
        lambda: optax.scale_by_trust_ratio(0.5, 0.02, 0.1),
    ),
    "When": Row(
        lambda: T.When(even, T.Momentum(0.9)),
        lambda: optax.conditionally_transform(optax.trace(0.9), even),
    ),
    "When, nested": Row(
        lambda: T.When(early, [T.Momentum(0.9), T.When(even, T.Ema(0.5))]),
        lambda: optax.conditionally_transform(
            optax.chain(optax.trace(0.9), optax.conditionally_transform(optax.ema(0.5), even)),
            early,
        ),
    ),
    "ZeroNonFinite": Row(T.ZeroNonFinite, optax.zero_nans, INFINITY_IS_BAD),
}
WITHOUT_EQUAL = {
    "AdaptiveNormClip": "of tf.contrib.layers",
    "FromOptax": "is optax itself: see below",
    "FromPairs": "the form of tf.contrib.training; otherwise `FromFunction`",
    "LayerwiseDecay": "acts on the step",
    "Monitor": "leaves gradients unchanged; optax's `monitor` keeps what a function returns",
    "ScaleStep": "acts on the step",
}


def test_the_table_is_complete() -> None:
    with_equal = {name.partition(",")[0] for name in TABLE}
    assert not with_equal & WITHOUT_EQUAL.keys()
    assert with_equal | WITHOUT_EQUAL.keys() == set(T.__all__) - {
        "GradientTransform",
        "skip_update_if",
    }


def arrays(kind: str, dtype: str) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """The gradients of each step, and the weights, by path."""
    rng = np.random.default_rng(0)

    def draw() -> dict[str, np.ndarray]:
        return {path: np.array(rng.normal(size=shape)) for path, shape in SHAPES.items()}

    weights, gradients = draw(), [draw() for _ in range(STEPS)]
    weights["layer/bias"][...] = 0.0
    size = {"zeros": 0.0, "tiny": 1e-12}.get(kind, 1.0)
    gradients = [{path: g * size for path, g in step.items()} for step in gradients]
    for step in BAD_STEPS if kind in BAD else ():
        gradients[step]["layer/kernel"][1, 0] = BAD[kind]
    one_type = np.dtype(getattr(ml_dtypes, dtype, dtype))
    with np.errstate(over="ignore", under="ignore"):
        cast = [{p: g.astype(one_type) for p, g in step.items()} for step in [weights, *gradients]]
    return cast[1:], cast[0]


def by_optax(
    transformation: Any, update: Any, kind: str, dtype: str
) -> list[dict[str, np.ndarray]]:
    gradients, weights = arrays(kind, dtype)
    params = jax.tree.map(jax.numpy.asarray, weights)
    state, results = transformation.init(params), []
    for step in gradients:
        out, state = update(step, state, params)
        results.append({path: np.asarray(g, dtype="float64") for path, g in out.items()})
    return results


def by_us(transform: Any, kind: str, dtype: str) -> list[dict[str, np.ndarray]]:
    """Transform as an optimizer does; a skipped update is one of zeros, as in optax."""
    gradients, weights = arrays(kind, dtype)
    variables = []
    for path, weight in weights.items():
        scope, _, name = path.rpartition("/")
        with keras.name_scope(scope):
            variables.append(keras.Variable(weight, dtype=dtype, name=name))
    transform.build(variables)
    chain, results = T.Chain([transform]), []
    for i, step in enumerate(gradients):
        held = [(v, ops.copy(v.value)) for v in chain.held_variables]
        tensors = [ops.convert_to_tensor(g, dtype) for g in step.values()]
        with update_scope(lambda i=i: i) as scope:
            out = chain(tensors, variables)
        if scope.skips and bool(scope.skip()):
            out = [ops.zeros_like(g) for g in out]
            for variable, value in held:
                variable.assign(value)
        results.append(
            {p: numpy(ops.cast(g, "float32")) for p, g in zip(weights, out, strict=True)}
        )
    return results


def first_difference(
    ours: list[dict[str, np.ndarray]], theirs: list[dict[str, np.ndarray]], kind: str, dtype: str
) -> str:
    """Where two runs are apart; empty if nowhere."""
    tolerance = TOLERANCES[dtype]
    smallest = {"zeros": 0.0, "tiny": 1e-12}.get(kind, 1.0)
    for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        for path in SHAPES:
            near = np.isclose(
                mine[path], other[path], tolerance, tolerance * smallest, equal_nan=True
            )
            if mine[path].shape != other[path].shape or not near.all():
                return f"{kind}, step {i}, {path}:\n{mine[path]}\n{other[path]}"
    return ""


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", TABLE)
def test_equals_optax_or_differs_on_purpose(name: str, dtype: str) -> None:
    row = TABLE[name]
    transformation = row.theirs()
    update = jax.jit(transformation.update)  # traced once for all kinds
    for kind in KINDS:
        ours = by_us(row.ours(), kind, dtype)
        theirs = by_optax(transformation, update, kind, dtype)
        difference = first_difference(ours, theirs, kind, dtype)
        assert bool(difference) == bool(row.why_different(kind, dtype)), difference or kind


@pytest.mark.backends("jax")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TABLE)
def test_any_transformation_of_optax_equals_itself(name: str, dtype: str) -> None:
    transformation = TABLE[name].theirs()
    update = jax.jit(transformation.update)
    for kind in ("normal", "nan"):
        ours = by_us(T.FromOptax(transformation), kind, dtype)
        theirs = by_optax(transformation, update, kind, dtype)
        assert not first_difference(ours, theirs, kind, dtype)
