"""Training steps that can be customised, and warm starts from any weights, for Keras 3.

Public names are imported when they are first used, so that listing a checkpoint needs no Keras.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from keras_trainops import adapt, callbacks, checkpoints, transforms, updates
    from keras_trainops.callbacks import (
        MonitorBoard,
        RecalibrateBatchNorm,
        TrainingSession,
        UseAverage,
        WarmStart,
    )
    from keras_trainops.checkpoints.open import open_checkpoint, register_format
    from keras_trainops.errors import RestoreError
    from keras_trainops.restoring.guessing.suggest import suggest_rename
    from keras_trainops.restoring.planning.report import RestoreReport
    from keras_trainops.restoring.restore import plan_restore, restore
    from keras_trainops.session.interruption import SessionInterrupted
    from keras_trainops.training.mixin import TrainOpsMixin
    from keras_trainops.training.models import TrainOpsModel, with_train_ops
    from keras_trainops.training.numerics import NonFiniteLossError
    from keras_trainops.training.optimizer import TransformedOptimizer

_ROOMS = ("adapt", "callbacks", "checkpoints", "transforms", "updates")
_HOMES = {
    "MonitorBoard": "callbacks",
    "NonFiniteLossError": "training.numerics",
    "RecalibrateBatchNorm": "callbacks",
    "RestoreError": "errors",
    "RestoreReport": "restoring.planning.report",
    "SessionInterrupted": "session.interruption",
    "TrainOpsMixin": "training.mixin",
    "TrainOpsModel": "training.models",
    "TrainingSession": "callbacks",
    "TransformedOptimizer": "training.optimizer",
    "UseAverage": "callbacks",
    "WarmStart": "callbacks",
    "open_checkpoint": "checkpoints.open",
    "plan_restore": "restoring.restore",
    "register_format": "checkpoints.open",
    "restore": "restoring.restore",
    "suggest_rename": "restoring.guessing.suggest",
    "with_train_ops": "training.models",
}

__all__ = [
    "MonitorBoard",
    "NonFiniteLossError",
    "RecalibrateBatchNorm",
    "RestoreError",
    "RestoreReport",
    "SessionInterrupted",
    "TrainOpsMixin",
    "TrainOpsModel",
    "TrainingSession",
    "TransformedOptimizer",
    "UseAverage",
    "WarmStart",
    "adapt",
    "callbacks",
    "checkpoints",
    "open_checkpoint",
    "plan_restore",
    "register_format",
    "restore",
    "suggest_rename",
    "transforms",
    "updates",
    "with_train_ops",
]


def __dir__() -> list[str]:
    return ["__version__", *__all__]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        value: Any = importlib.import_module(f"{__name__}.{name}")
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    _register_with_keras()
    return value


def _register_with_keras() -> None:
    """Register every class that a saved file may name, if Keras is in use."""
    if "keras" in sys.modules:
        importlib.import_module(f"{__name__}.serializable")


_register_with_keras()
