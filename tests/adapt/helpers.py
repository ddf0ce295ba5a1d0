"""Comparisons with NumPy, and sources whose tensors must not be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints.checkpoint import Checkpoint
from tests.helpers import refused, two_layers, value

ARRAY = np.arange(24.0).reshape(2, 3, 4)
KEPT = np.nan  # marks elements at which the variable keeps its value


def each_case(cases: Sequence[tuple[kt.adapt.Adapter, Any, Any]]) -> Any:
    """Parametrize a test with `adapter`, `arrays` and `expected`."""
    names = [repr(adapter) for adapter, *_ in cases]
    return pytest.mark.parametrize(("adapter", "arrays", "expected"), cases, ids=names)


def assert_same_as_numpy(
    adapter: kt.adapt.Adapter, arrays: list[np.ndarray], expected: np.ndarray
) -> None:
    """Compare shape, dtype, mask and values, in float32 and bfloat16."""
    assert adapter.shape([a.shape for a in arrays], expected.shape) == expected.shape
    for dtype in ("f4", ml_dtypes.bfloat16):
        adapted = adapter([a.astype(dtype) for a in arrays], expected.shape)
        computes = isinstance(adapter, kt.adapt.Sum)
        assert adapted.dtype == ("f4" if computes else dtype)
        kept = np.ma.getmaskarray(adapted)
        np.testing.assert_array_equal(kept, np.isnan(expected))
        wanted = expected.astype(dtype).astype("f4")
        np.testing.assert_array_equal(np.ma.getdata(adapted).astype("f4")[~kept], wanted[~kept])


def one_variable(shape: tuple[int, ...], dtype: str = "float32", held: float = 7.0) -> Any:
    """A layer with the variable `d/w`, filled with `held`."""
    layer = keras.layers.Layer(name="d")
    layer.add_weight(shape=shape, dtype=dtype, name="w", initializer="zeros", trainable=False)
    layer.weights[0].assign(np.full(shape, held))
    layer.built = True
    return layer


def restored(
    source: np.ndarray | list[np.ndarray], target: Any, adapter: Any, **options: Any
) -> np.ndarray:
    """Restore `one_variable` from one or several arrays, and return its value."""
    sources = source if isinstance(source, list) else [source]
    arrays = {f"t{i}": array for i, array in enumerate(sources)}
    rename = dict.fromkeys(arrays, "d/w")
    kt.restore(target, arrays, rename=rename, adapt={"w": adapter}, **options)
    return value(target.weights[0])


class Unreadable(Checkpoint):
    """A checkpoint with shapes only; reading a tensor fails the test."""

    format = "shapes"

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__("shapes")
        self._shapes = shapes

    def _keys(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def _shape(self, key: str) -> tuple[int, ...]:
        return self._shapes[key]

    def _dtype(self, key: str) -> np.dtype:
        return np.dtype("float32")

    def _read(self, key: str) -> np.ndarray:
        raise AssertionError(f"{key} was read")


def assert_refused_unread(adapter: Any, message: str) -> None:
    """Restore a (3, 2) variable from a (4, 6) tensor; the report shows all shapes."""
    model = two_layers()
    source = Unreadable({"head/kernel": (4, 6), "trunk/kernel": (1, 1)})
    options = {"adapt": {"head/kernel": adapter}, "include": "kernel"}
    both = r"(?s)restore 2 of 2 variables(?=.*! head/kernel)(?=.*! trunk/kernel)"
    with refused(model, both, kt.RestoreError):
        kt.restore(model, source, **options)
    report = kt.plan_restore(model, source, **options)
    line = next(line for line in report.problems if "head/kernel" in line)
    assert line.startswith("! head/kernel: (3, 2) in the model, (4, 6) under key 'head/kernel'")
    assert message in line


def assert_not_combined(
    shapes: list[tuple[int, ...]], adapter: kt.adapt.Adapter, message: str
) -> None:
    """Plan a restore of one variable from two tensors of these shapes."""
    source = Unreadable(dict(zip("ab", shapes, strict=True)))
    report = kt.plan_restore(
        two_layers(),
        source,
        rename={"a|b": "head/kernel"},
        adapt={"head": adapter},
        exclude="trunk",
        on_missing="ignore",
    )
    (line,) = report.problems
    assert f"{shapes[0]} under key 'a' and {shapes[1]} under key 'b'; {adapter}" in line
    assert message in line
