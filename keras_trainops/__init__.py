"""Training steps that can be customised, and warm starts from any weights, for Keras 3.

Public names are imported when they are first used, so that listing a checkpoint needs no Keras.
"""

import importlib
from typing import TYPE_CHECKING, Any

from keras_trainops.registration import register_once_keras_is_imported

__version__ = "0.1.0"

if TYPE_CHECKING:
    from keras_trainops import adapt, callbacks, checkpoints, gradients, transforms, updates
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
    from keras_trainops.training.optimizers.group import OptimizerGroup
    from keras_trainops.training.optimizers.transformed import TransformedOptimizer
    from keras_trainops.training.steps.step import Step
    from keras_trainops.writing.to_torch import to_torch
    from keras_trainops.writing.write_back import write_back

_SUBPACKAGES = ("adapt", "callbacks", "checkpoints", "gradients", "transforms", "updates")
_WITHOUT_KERAS = ("checkpoints", "checkpoints.open", "errors")
_HOMES = {
    "MonitorBoard": "callbacks",
    "NonFiniteLossError": "training.numerics",
    "OptimizerGroup": "training.optimizers.group",
    "RecalibrateBatchNorm": "callbacks",
    "RestoreError": "errors",
    "RestoreReport": "restoring.planning.report",
    "SessionInterrupted": "session.interruption",
    "Step": "training.steps.step",
    "TrainOpsMixin": "training.models",  # which has Keras keep the mixin in clones
    "TrainOpsModel": "training.models",
    "TrainingSession": "callbacks",
    "TransformedOptimizer": "training.optimizers.transformed",
    "UseAverage": "callbacks",
    "WarmStart": "callbacks",
    "open_checkpoint": "checkpoints.open",
    "plan_restore": "restoring.restore",
    "register_format": "checkpoints.open",
    "restore": "restoring.restore",
    "suggest_rename": "restoring.guessing.suggest",
    "to_torch": "writing.to_torch",
    "with_train_ops": "training.models",
    "write_back": "writing.write_back",
}

__all__ = [
    "MonitorBoard",
    "NonFiniteLossError",
    "OptimizerGroup",
    "RecalibrateBatchNorm",
    "RestoreError",
    "RestoreReport",
    "SessionInterrupted",
    "Step",
    "TrainOpsMixin",
    "TrainOpsModel",
    "TrainingSession",
    "TransformedOptimizer",
    "UseAverage",
    "WarmStart",
    "adapt",
    "callbacks",
    "checkpoints",
    "gradients",
    "open_checkpoint",
    "plan_restore",
    "register_format",
    "restore",
    "suggest_rename",
    "to_torch",
    "transforms",
    "updates",
    "with_train_ops",
    "write_back",
]


def __dir__() -> list[str]:
    return ["__version__", *__all__]


if not TYPE_CHECKING:  # they would take any name for a public one

    def __getattr__(name: str) -> Any:
        if name not in _HOMES and name not in _SUBPACKAGES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = _HOMES.get(name, name)
        if home not in _WITHOUT_KERAS:
            importlib.import_module("keras")  # before ours, so that all classes are registered
        module = importlib.import_module(f"{__name__}.{home}")
        value = module if name in _SUBPACKAGES else getattr(module, name)
        globals()[name] = value
        return value


register_once_keras_is_imported()
