"""Chains: factors are multiplied in once, norms are measured once, small gradients are stacked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import keras_trainops as kt
from keras_trainops.backends import backend
from keras_trainops.transforms.pending import Gradients
from keras_trainops.transforms.scope import update_scope
from tests.helpers import numpy

T = kt.transforms
SHAPES = [(64, 64)] * 4 + [(64,)] * 5 + [(3, 3, 8, 16)] * 2 + [(200, 300)]
CHAINS: dict[str, Callable[[], list[Any]]] = {
    "five": lambda: [
        T.ZeroNonFinite(),
        T.Centralize([("a.*", (0,)), ("b.*", None)]),
        T.Scale(2.0),
        T.ClipByNorm(1.0),
        T.ClipByGlobalNorm(1.0),
    ],
    "norms": lambda: [
        T.ClipByNorm(0.7),
        T.ClipByGlobalNorm(0.3),
        T.Normalize(2.0, scope="variable"),
        T.ClipByBlockRMS(0.001),
        T.Trust(0.1),
    ],
    "scales": lambda: [
        T.Scale({"a.*": -0.1, ".*": 3.0}),
        T.ClipByNorm(1.0),
        T.AdaptiveNormClip(),
        T.Monitor(["a.*"]),
        T.SkipLarge(100.0),
        T.ClipByGlobalNorm(1.0),
    ],
    "some": lambda: [
        T.Scale(3.0),
        T.Only("a.*", [T.ClipByNorm(1.0), T.Scale(0.3)]),
        lambda gs, vs: [None if g is None else g * 1.5 for g in gs],
        T.ClipByValue(0.01),
        T.Normalize(2.0),
    ],
}


def values(dtype: str) -> list[np.ndarray | None]:
    """Gradients of different sizes, in float64 but exact in the dtype."""
    rng = np.random.default_rng(0)
    made: list[np.ndarray | None] = []
    for shape in SHAPES:
        gradient = rng.normal(size=shape) * 10 ** rng.uniform(-3, 2)
        made.append(numpy(ops.cast(ops.convert_to_tensor(gradient, dtype), "float32")))
    made[2] = None
    return [None if g is None else g.astype("float64") for g in made]


def variables(dtype: str) -> list[keras.Variable]:
    rng = np.random.default_rng(1)
    return [
        keras.Variable(rng.normal(size=shape), dtype=dtype, name=f"{'a' if i % 2 else 'b'}{i}")
        for i, shape in enumerate(SHAPES)
    ]


def run(transforms: Sequence[Any], dtype: str) -> list[Any]:
    """One chain after the other, as float64 arrays."""
    gradients = [None if g is None else ops.convert_to_tensor(g, dtype) for g in values(dtype)]
    made = variables(dtype)
    with update_scope(lambda: 0):
        for chain in (T.Chain(each) for each in transforms):
            chain.build(made)
            gradients = list(chain(gradients, made))
    assert [g is None for g in gradients] == [i == 2 for i in range(len(SHAPES))]
    return [numpy(g).astype("float64") for g in gradients if g is not None]


def furthest(got: list[Any], exact: list[Any], dtype: str) -> float:
    """The largest distance, in units of the last place of the dtype."""
    ulp, smallest = {"float32": (2**-23, 1e-30), "bfloat16": (2**-7, 1e-30)}.get(
        dtype, (2**-10, 6e-5)
    )
    scales = [2 ** np.floor(np.log2(np.maximum(np.abs(e), smallest))) for e in exact]
    return max((np.abs(g - e) / s / ulp).max() for g, e, s in zip(got, exact, scales, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_as_exact_as_its_transforms_one_by_one(name: str, dtype: str) -> None:
    together, one_by_one = run([CHAINS[name]()], dtype), run(CHAINS[name](), dtype)
    with float64():
        exact = run_exactly(CHAINS[name](), dtype)
    own = furthest(together, exact, dtype)
    assert own <= max(2.0, furthest(one_by_one, exact, dtype) + 1.0)
    if dtype != "float32" and name in ("norms", "scales"):  # others also round in between
        assert own <= 1.0


def float64() -> Any:
    """A context in which the backend has float64."""
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.enable_x64(True)


def run_exactly(transforms: list[Any], dtype: str) -> list[Any]:
    """The transforms one by one in float64, for the values that the dtype holds."""
    weights = [ops.cast(v.value, "float64") for v in variables(dtype)]
    made = [
        keras.Variable(numpy(w), dtype="float64", name=v.name)
        for w, v in zip(weights, variables(dtype), strict=True)
    ]
    gradients = [None if g is None else ops.convert_to_tensor(g, "float64") for g in values(dtype)]
    with update_scope(lambda: 0):
        for transform in transforms:
            chain = T.Chain([transform])
            chain.build(made)
            gradients = list(chain(gradients, made))
    return [numpy(g) for g in gradients if g is not None]


def test_a_subclass_with_its_own_call_is_called_in_a_chain() -> None:
    class Half(T.ClipByNorm):
        def __call__(self, gradients: Any, variables: Any) -> Any:
            return [None if g is None else g / 2 for g in super().__call__(gradients, variables)]

    chains = (
        [T.Scale(2.0), Half(1.0), T.Scale(4.0)],
        [T.Scale(2.0), T.ClipByNorm(1.0), T.Scale(2.0)],
    )
    for got, expected in zip(run([chains[0]], "float32"), run([chains[1]], "float32"), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_function_that_changes_gradients_in_place_is_measured_again() -> None:
    if keras.backend.backend() != "torch":
        pytest.skip("tensors of this backend cannot be changed in place")

    def double(gradients: Any, variables: Any) -> Any:
        return [None if g is None else g.mul_(2.0) for g in gradients]

    got = run([[T.ClipByNorm(1.0), double, T.ClipByNorm(0.5)]], "float32")
    assert max(np.linalg.norm(g) for g in got) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_element_that_is_not_finite_spoils_what_it_spoils_one_by_one(bad: float) -> None:
    made = variables("float32")[:6]
    tensors = [np.ones(v.shape, "float32") for v in made]
    tensors[0][1, 2] = bad

    def passed(*chains: list[Any]) -> list[Any]:
        gradients = [ops.convert_to_tensor(t) for t in tensors]
        for chain in chains:
            gradients = list(T.Chain(chain)(gradients, made))
        return [np.isnan(numpy(g)) for g in gradients]

    transforms = [T.ClipByNorm(1.0), T.Normalize(), T.ClipByNorm(0.5)]
    for a, b in zip(passed(transforms), passed(*[[t] for t in transforms]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="counts JAX's operations")
def test_norms_of_a_chain_are_measured_once() -> None:
    import jax

    made = variables("float32")
    shapes = [jax.ShapeDtypeStruct(v.shape, "float32") for v in made]
    chain = T.Chain([T.ClipByNorm(1.0), T.ClipByBlockRMS(1.0), T.Scale(0.5), T.Normalize()])
    chain.build(made)
    text = str(jax.make_jaxpr(lambda gs: list(chain(gs, made)))(shapes))
    assert text.count("= reduce_sum[") == len(made) + 1  # and the sum of all


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="counts TensorFlow operations")
def test_small_gradients_of_one_shape_run_as_one_operation() -> None:
    import tensorflow as tf

    made = [keras.Variable(np.ones((4, 3)), name=f"kernel{i}") for i in range(50)]
    chain = T.Chain([T.ZeroNonFinite(), T.Centralize({".*": (0,)}), T.ClipByNorm(1.0)])
    chain.build(made)
    traced = tf.function(lambda gs: chain(gs, made)).get_concrete_function(
        [tf.TensorSpec((4, 3))] * 50
    )
    assert len(traced.graph.get_operations()) < 2 * 50 + 60  # arguments and results, and the rest
    (first, *_), scaled = traced([tf.ones((4, 3))] * 50), T.Chain([T.Scale(2.0), T.Scale(3.0)])
    np.testing.assert_allclose(first, np.zeros((4, 3)))
    scaled.build(made)
    np.testing.assert_allclose(scaled([tf.ones((4, 3))] * 50, made)[7], np.full((4, 3), 6.0))


def test_rows_of_an_embedding_are_not_stacked() -> None:
    made = [keras.Variable(np.zeros((5, 3)), name=f"table{i}") for i in range(3)]
    rows = [ops.convert_to_tensor(np.ones(s, "float32")) for s in ((5, 3), (2, 3), (5, 3))]
    stacked = Gradients.of(rows, made).stacked(lambda v: None)
    assert sorted(len(part.variables) for part in stacked.parts) == [1, 2]
    for row, value in zip(rows, stacked.values(), strict=True):
        np.testing.assert_array_equal(numpy(row), numpy(value))


def test_xla_alone_is_spared_stacks() -> None:
    assert backend().operations_cost == (keras.backend.backend() != "jax")
