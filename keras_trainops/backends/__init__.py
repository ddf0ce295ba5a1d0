"""The training step, a file per backend: the only places that know a backend."""

from __future__ import annotations

import importlib
from types import ModuleType

import keras

_BACKENDS = ("tensorflow", "jax", "torch")


def backend_steps() -> ModuleType:
    """The step module of the running backend.

    Raises:
        NotImplementedError: If there is none for it.
    """
    backend = keras.backend.backend()
    if backend not in _BACKENDS:
        raise NotImplementedError(
            f"Training steps run on {', '.join(_BACKENDS)}; this is {backend!r}. Restoring works "
            "on every backend."
        )
    return importlib.import_module(f"keras_trainops.backends.{backend}")
