"""Warm starts, adapters, checkpoints and callbacks."""

from pathlib import Path
from typing import Any, assert_type

import keras
import numpy as np

import keras_trainops as kt

model = keras.Sequential()
report = kt.restore(model, "model.ckpt", rename={"conv0/(.*)": r"stem/\1", "fc/.*": None})
assert_type(report, kt.RestoreReport)
assert_type(
    kt.plan_restore(model, Path("model.h5"), rename="auto", exclude="head"), kt.RestoreReport
)
kt.restore(model, {"fc/w": np.ones((3, 2))}, adapt={"fc": kt.adapt.Transpose()})
kt.restore(model, keras.Sequential(), rename=str.lower, on_missing="warn", include=model.layers)
with kt.open_checkpoint("model.ckpt") as checkpoint:
    assert_type(checkpoint, kt.checkpoints.Checkpoint)
assert_type(kt.adapt.from_torch(model), dict[str, kt.adapt.Adapter])

callbacks: list[Any] = [
    kt.WarmStart("model.ckpt", on_unexpected="ignore", include_optimizer=True),
    kt.TrainingSession(Path("logs"), save_seconds=None, stop_at_step=100),
    kt.UseAverage(kt.updates.MovingAverage(), finalize=True, recalibrate=np.ones((2, 2))),
    kt.MonitorBoard("logs", update_freq="epoch"),
    kt.RecalibrateBatchNorm(np.ones((2, 2)), steps=3, layer_by_layer=True),
]

kt.restore(model, "model.ckpt", renames={})  # error: reportCallIssue, call-arg
kt.restore(model, "model.ckpt", rename="automatic")  # error: reportArgumentType, arg-type
kt.restore(model, "model.ckpt", on_missing="fail")  # error: reportArgumentType, arg-type
kt.restore(model, "model.ckpt", memory="bounded")
kt.restore(model, "model.ckpt", memory="little")  # error: reportArgumentType, arg-type
kt.restore(model, 3)  # error: reportArgumentType
kt.restore("model.ckpt", model)  # error: reportArgumentType
kt.WarmStart("model.ckpt", verbos=1)  # error: reportCallIssue, call-arg
kt.TrainingSession("logs", save_steps="100")  # error: reportArgumentType, arg-type
kt.UseAverage(kt.updates.LayerUpdates())  # error: reportArgumentType, arg-type
kt.MonitorBoard("logs", update_freq="step")  # error: reportArgumentType, arg-type
kt.adapt.ResizePositions(interpolation="linear")  # error: reportArgumentType, arg-type
