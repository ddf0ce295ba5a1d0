from __future__ import annotations

from pathlib import Path

import pytest

from keras_trainops.checkpoints.storage.writing import written_aside

pytestmark = pytest.mark.once


def test_replaces_the_target_on_success() -> None:
    target = Path("w.npz")
    target.write_text("old")
    with written_aside(target) as aside:
        aside.write_text("new")
        assert aside.suffix == ".npz"
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(Path().iterdir()) == [target]


def test_keeps_the_target_on_failure() -> None:
    target = Path("w.npz")
    target.write_text("old")
    with pytest.raises(ValueError, match="no"), written_aside(target) as aside:
        aside.write_text("new")
        raise ValueError("no")
    assert target.read_text() == "old"
    assert list(Path().iterdir()) == [target]
