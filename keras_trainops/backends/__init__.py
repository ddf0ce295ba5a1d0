"""The running backend as one typed object; only these modules know TensorFlow, JAX and PyTorch.

A new backend is a subclass of `Backend` in its own file and a line in `_BACKENDS`.
"""

from __future__ import annotations

import functools
import importlib

import keras

from keras_trainops.backends.base import Backend
from keras_trainops.backends.types import Assignment, Gradient

_BACKENDS = {"tensorflow": "TensorFlow", "jax": "Jax", "torch": "Torch"}  # file and class


def backend() -> Backend:
    """Return the running backend; a plain `Backend` for one that only restores."""
    return _backend(keras.backend.backend())


@functools.cache
def _backend(name: str) -> Backend:
    if name not in _BACKENDS:
        return Backend(name)
    module = importlib.import_module(f"keras_trainops.backends.{name}")
    made: Backend = getattr(module, _BACKENDS[name])(name)
    return made


__all__ = ["Assignment", "Backend", "Gradient", "backend"]
