"""Callbacks: warm starts, sessions, weight averages, batch-norm recalibration, gradient norms."""

from keras_trainops.callbacks.monitor_board import MonitorBoard
from keras_trainops.callbacks.recalibrate_batch_norm import RecalibrateBatchNorm
from keras_trainops.callbacks.training_session import TrainingSession
from keras_trainops.callbacks.use_average import UseAverage
from keras_trainops.callbacks.warm_start import WarmStart

__all__ = [
    "MonitorBoard",
    "RecalibrateBatchNorm",
    "TrainingSession",
    "UseAverage",
    "WarmStart",
]
