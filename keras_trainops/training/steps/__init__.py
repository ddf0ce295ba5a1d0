"""The training step, a file per backend: the only places that know a backend."""

from __future__ import annotations

from types import ModuleType

import keras


def backend_steps() -> ModuleType:
    """The step module of the running backend.

    Raises:
        NotImplementedError: If there is none for it.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        from keras_trainops.training.steps import tensorflow

        return tensorflow
    raise NotImplementedError(
        f"Gradient transforms and update policies run on the TensorFlow backend; this is "
        f"{backend!r}. Restoring and WarmStart work on every backend."
    )
