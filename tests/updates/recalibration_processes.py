"""What the processes of `test_recalibration_processes.py` do."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import keras_trainops as kt
from tests.helpers import value
from tests.processes.member import Place

L = keras.layers


def recalibrate(place: Place) -> dict[str, Any]:
    """Recalibrate by parts of the data of different sizes, then with data on one process only."""
    keras.utils.set_random_seed(1)
    if place.arguments.get("distributed"):
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(auto_shard_dataset=False)
        )
    with place.scope():
        x = inputs = keras.Input((3,))
        for name in ("first", "second"):
            x = L.BatchNormalization(name=name)(L.Dense(4, activation="tanh")(x))
        model = kt.TrainOpsModel(inputs, L.Dense(1)(x))
        model.compile("sgd", "mse", gradient_transforms=kt.transforms.Monitor())
    data = np.random.default_rng(0).normal(size=(35, 3)).astype("float32")
    part = np.array_split(data, [22])[place.index] if place.count > 1 else data
    kt.updates.recalibrate_batch_norm(model, part, None, len(part), layer_by_layer=True, verbose=1)
    statistics = {v.path: value(v) for v in model.non_trainable_weights}
    if place.count == 1:
        return statistics
    missing = part if place.index == 0 else part[:0]
    error = ""
    try:
        kt.updates.recalibrate_batch_norm(model, missing, layer_by_layer=True)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    return {"error": error, **statistics}
