"""Formats, transforms and updates from outside the package, as other libraries would add them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints import Candidate, Checkpoint, Format
from tests.helpers import two_layers, value


class Toy(Checkpoint):
    """`TOY`, a line of JSON with shapes, then float32 values."""

    format = "toy file"

    def __init__(self, location: str) -> None:
        super().__init__(location, [location])
        head, self._data = Path(location).read_bytes()[3:].split(b"\n", 1)
        self._shapes: dict[str, list[int]] = json.loads(head)

    def _keys(self) -> Mapping[str, Any]:
        return self._shapes

    def _shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._shapes[key])

    def _dtype(self, key: str) -> np.dtype:
        return np.dtype("float32")

    def _read(self, key: str) -> np.ndarray:
        before = [name for name in self._shapes if name < key]
        start = 4 * sum(int(np.prod(self._shapes[name])) for name in before)
        count = int(np.prod(self._shapes[key]))
        return np.frombuffer(self._data, "float32", count, start).reshape(self._shapes[key]).copy()


def is_toy(candidate: Candidate) -> bool:
    return candidate.head.startswith(b"TOY")


TOY = Format("toy files", is_toy, Toy)


def write_toy(arrays: Mapping[str, np.ndarray]) -> None:
    head = json.dumps({key: arrays[key].shape for key in sorted(arrays)}).encode()
    data = b"".join(arrays[key].astype("float32").tobytes() for key in sorted(arrays))
    Path("w.toy").write_bytes(b"TOY" + head + b"\n" + data)


@pytest.mark.once
def test_a_registered_format_is_restored_like_any_other() -> None:
    source, model = two_layers(1), two_layers(2)
    write_toy({w.path: value(w) for w in source.weights})
    with pytest.raises(kt.RestoreError, match="Supported are"):
        kt.open_checkpoint("w.toy")
    kt.register_format(TOY)
    report = kt.restore(model, "w.toy")
    assert len(report.restored) == 4
    assert "toy file" in report.source
    for ours, theirs in zip(model.weights, source.weights, strict=True):
        np.testing.assert_array_equal(value(ours), value(theirs))


@pytest.mark.once
def test_messages_name_a_registered_format() -> None:
    kt.register_format(TOY)
    kt.register_format(TOY)  # again: it replaces itself
    Path("w.bin").write_bytes(b"nothing")
    with pytest.raises(kt.RestoreError, match="Supported are toy files, TensorFlow") as error:
        kt.open_checkpoint("w.bin")
    assert str(error.value).count("toy files") == 1


@pytest.mark.once
def test_a_registered_format_precedes_built_in_ones() -> None:
    np.savez("w.npz", a=np.ones(2))
    kt.register_format(
        Format("zips", lambda path: path.members is not None, lambda path: Toy(path))
    )
    with pytest.raises(kt.RestoreError, match="looks damaged"):
        kt.open_checkpoint("w.npz")


@keras.saving.register_keras_serializable(package="toy")
class Halve(kt.transforms.GradientTransform):
    """Halves every gradient."""

    def __call__(self, gradients: Sequence[Any], variables: Sequence[keras.Variable]) -> list[Any]:
        return [None if g is None else g / 2 for g in gradients]


@keras.saving.register_keras_serializable(package="toy")
class Count(kt.updates.Update):
    """Counts weight updates."""

    def build(self, model: keras.Model) -> None:
        self.steps = self.state_variable("steps", dtype="int32")

    def __call__(self, model: keras.Model, loss: Any) -> None:
        self.steps.assign(self.steps + 1)


def test_own_transforms_and_updates_train_and_save() -> None:
    x, y = np.ones((4, 4), "float32"), np.ones((4, 2), "float32")
    models = [kt.with_train_ops(two_layers(3)) for _ in range(2)]
    count = Count()
    models[0].compile(
        keras.optimizers.SGD(0.2), "mse", gradient_transforms=Halve(), updates=[count]
    )
    models[1].compile(keras.optimizers.SGD(0.1), "mse")
    for model in models:
        model.fit(x, y, batch_size=2, shuffle=False, verbose=0)
    for ours, theirs in zip(*(model.weights for model in models), strict=True):
        np.testing.assert_allclose(value(ours), value(theirs), rtol=1e-6)
    assert int(value(count.steps)) == 2
    models[0].save("toy.keras")
    loaded = keras.saving.load_model("toy.keras")
    (again,) = loaded.train_ops.policy.after_weights
    assert int(value(again.steps)) == 2
