"""Gradients to transform, and how tests run a transform on them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

import keras_trainops as kt
from keras_trainops.transforms.chain import as_transform
from keras_trainops.transforms.scope import update_scope
from tests.helpers import numpy

T = kt.transforms
RNG = np.random.default_rng(0)
GRADIENTS = [RNG.normal(size=(4, 3)) * 3, RNG.normal(size=3), None, RNG.normal(size=(3, 2))]
PATHS = ["trunk/kernel", "trunk/bias", "unused/kernel", "head/kernel"]


def variables(dtype: str = "float32") -> list[keras.Variable]:
    made = []
    for path, gradient in zip(PATHS, GRADIENTS, strict=True):
        scope, name = path.split("/")
        shape = (2, 2) if gradient is None else gradient.shape
        with keras.name_scope(scope):
            made.append(keras.Variable(np.ones(shape), dtype=dtype, name=name))
    return made


def run(
    transform: Any,
    gradients: list[Any] = GRADIENTS,
    dtype: str = "float32",
    iterations: int = 0,
) -> list[Any]:
    """The transformed gradients as float64 arrays."""
    transform, made = as_transform(transform), variables(dtype)
    transform.build(made)
    tensors = [None if g is None else ops.convert_to_tensor(g, dtype) for g in gradients]
    with update_scope(lambda: iterations):
        out = T.Chain([transform])(tensors, made)  # the chain checks what comes back
    return [None if g is None else numpy(g).astype("float64") for g in out]


def close(got: list[Any], expected: list[Any], rtol: float = 1e-6) -> None:
    assert [g is None for g in got] == [e is None for e in expected]
    for g, e in zip(got, expected, strict=True):
        if e is not None:
            np.testing.assert_allclose(g, e, rtol=rtol, atol=rtol)


def each(function: Any) -> list[Any]:
    return [None if g is None else function(g) for g in GRADIENTS]
