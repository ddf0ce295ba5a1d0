from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import value

T = kt.transforms
RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype("float32")
Y = RNG.normal(size=(32, 2)).astype("float32") * 10


def net(model_class: type[keras.Model] = kt.TrainOpsModel) -> Any:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(8, activation="tanh", name="trunk")(inputs)
    return model_class(inputs, keras.layers.Dense(2, name="head")(x))


def events(directory: Path) -> Any:
    """Return every value in the event files, with its step and tag."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    found = []
    for path in sorted(directory.rglob("events*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            record = data[at + 12 : at + 12 + length]
            assert masked_crc32c(record) == int.from_bytes(
                data[at + 12 + length : at + 16 + length], "little"
            )
            event = Event.FromString(record)
            found += [(event.step, v.tag, v) for v in event.summary.value]
            at += 16 + length
    return found


@pytest.mark.parametrize("frequency", ["epoch", 2])
@pytest.mark.parametrize("plain", [False, True], ids=["mixin", "plain model"])
def test_writes_scalars_and_histograms(frequency: Any, plain: bool, tmp_path: Path) -> None:
    monitor = T.Monitor(["head"], histogram=True)
    if plain:
        model = net(keras.Model)
        model.compile(kt.TransformedOptimizer(keras.optimizers.SGD(0.01), monitor), "mse")
    else:
        model = net()
        model.compile(keras.optimizers.SGD(0.01), "mse", gradient_transforms=monitor)
    board = kt.MonitorBoard(tmp_path / "logs", update_freq=frequency)
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[board])
    found = events(tmp_path / "logs")
    scalars = [(step, v.simple_value) for step, tag, v in found if tag == "gradient_norm"]
    assert [step for step, _ in scalars] == ([4, 8] if frequency == "epoch" else [2, 4, 6, 8])
    assert scalars[-1][1] == pytest.approx(float(value(monitor.norms)[0]), rel=1e-6)
    histograms = [v.histo for _, tag, v in found if tag == "gradient_norm/head/elements"]
    assert sum(histograms[-1].bucket) == 8 * 2 + 2
    assert histograms[-1].bucket_limit[0] < 0 < histograms[-1].bucket_limit[-1] < 1e6


@pytest.mark.backends("tensorflow")
def test_tensorflow_reads_the_event_files(tmp_path: Path) -> None:
    import tensorflow as tf

    model = net()
    model.compile("sgd", "mse", gradient_transforms=T.Monitor(histogram=True))
    model.fit(X, Y, verbose=0, callbacks=[kt.MonitorBoard(tmp_path)])
    (path,) = tmp_path.glob("events*")
    tags = [
        value.tag
        for record in tf.data.TFRecordDataset(str(path))
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value
    ]
    assert tags == ["gradient_norm", "gradient_norm/elements"]


def test_rejects_bad_frequencies_and_missing_monitors() -> None:
    with pytest.raises(ValueError, match='`update_freq` must be "epoch" or a number'):
        kt.MonitorBoard("logs", update_freq=0)
    model = net()
    model.compile("sgd", "mse", gradient_transforms=T.ClipByNorm(1.0))
    with pytest.raises(ValueError, match=r"There is no `keras_trainops\.transforms\.Monitor`"):
        model.fit(X, Y, verbose=0, callbacks=[kt.MonitorBoard("logs")])
