"""Import TensorFlow when it is needed."""

from __future__ import annotations

from typing import Any

from keras_trainops.errors import RestoreError


def tensorflow() -> Any:
    """Return the module.

    Raises:
        RestoreError: If TensorFlow is not installed.
    """
    try:
        import tensorflow
    except ImportError:
        raise RestoreError(
            "A TensorFlow checkpoint needs TensorFlow: pip install tensorflow"
        ) from None
    return tensorflow
