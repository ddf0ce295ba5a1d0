"""Training steps that can be customised, and warm starts from any weights, for Keras 3.

Where Keras is not imported yet, the public names are only imported when one is first asked for, as
Keras takes seconds: the command line lists a file long before.
"""

import importlib
import sys
import threading
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

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
    "open_checkpoint",
    "plan_restore",
    "restore",
    "suggest_rename",
    "transforms",
    "updates",
    "with_train_ops",
]

if TYPE_CHECKING or "keras" in sys.modules:
    import keras_trainops.transforms as transforms
    import keras_trainops.updates as updates
    from keras_trainops import _keras
    from keras_trainops.callbacks.monitor_board import MonitorBoard
    from keras_trainops.callbacks.recalibrate_batch_norm import RecalibrateBatchNorm
    from keras_trainops.callbacks.training_session import TrainingSession
    from keras_trainops.callbacks.use_average import UseAverage
    from keras_trainops.callbacks.warm_start import WarmStart
    from keras_trainops.readers.base import RestoreError, open_checkpoint
    from keras_trainops.restore import adapt
    from keras_trainops.restore.api import plan_restore, restore
    from keras_trainops.restore.report import RestoreReport
    from keras_trainops.restore.suggest import suggest_rename
    from keras_trainops.session.interruption import SessionInterrupted
    from keras_trainops.training.mixin import TrainOpsMixin
    from keras_trainops.training.models import TrainOpsModel, with_train_ops
    from keras_trainops.training.numerics import NonFiniteLossError
    from keras_trainops.training.optimizer import TransformedOptimizer

    _keras.warn_if_untested()
else:
    _loading = threading.Lock()

    def __getattr__(name: str) -> Any:
        """Imports Keras and, as this module is then read again, all public names."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with _loading:
            if name not in globals():
                import keras  # noqa: F401

                importlib.reload(sys.modules[__name__])
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
