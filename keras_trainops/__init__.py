"""Training steps that can be customised, and warm starts from any weights, for Keras 3."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

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


def __dir__() -> list[str]:
    return ["__version__", *__all__]


def _is_command_line() -> bool:
    """Whether this process is `keras-trainops`, which lists a file before Keras is imported."""
    program = str(next(iter(getattr(sys, "argv", None) or []), ""))
    if program == "-m":  # so it is called while Python looks for the module to be run
        return _module_to_run() == __name__
    return Path(program).stem == "keras-trainops"


def _module_to_run() -> str | None:
    """What `python -m` was given, also as `-um module` or `-mmodule`; None if that is not told."""
    words = map(str, getattr(sys, "orig_argv", None) or [])
    next(words, None)  # Python itself
    for word in words:
        # Letters without a value, then one that takes the rest of the word or else the next.
        option = re.fullmatch(r"(?s)-[^-cmWX]*([cmWX])(.*)|--check-hash-based-pycs", word)
        if option is None:
            continue
        value = option[2] or next(words, None)
        if option[1] in ("c", "m"):  # all behind it is the program's
            return value if option[1] == "m" else None
    return None


# The command line reads this again once it needs a model (see `cli.model`), and so Keras.
if TYPE_CHECKING or "keras" in sys.modules or not _is_command_line():
    from keras_trainops import adapt, keras_private, transforms, updates
    from keras_trainops.callbacks.monitor_board import MonitorBoard
    from keras_trainops.callbacks.recalibrate_batch_norm import RecalibrateBatchNorm
    from keras_trainops.callbacks.training_session import TrainingSession
    from keras_trainops.callbacks.use_average import UseAverage
    from keras_trainops.callbacks.warm_start import WarmStart
    from keras_trainops.checkpoints.open import open_checkpoint
    from keras_trainops.errors import RestoreError
    from keras_trainops.restoring.guessing.suggest import suggest_rename
    from keras_trainops.restoring.planning.report import RestoreReport
    from keras_trainops.restoring.restore import plan_restore, restore
    from keras_trainops.session.interruption import SessionInterrupted
    from keras_trainops.training.mixin import TrainOpsMixin
    from keras_trainops.training.models import TrainOpsModel, with_train_ops
    from keras_trainops.training.numerics import NonFiniteLossError
    from keras_trainops.training.optimizer import TransformedOptimizer

    keras_private.warn_if_untested()
