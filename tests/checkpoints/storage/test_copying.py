"""Copies of directories that contain the copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from keras_trainops.checkpoints.storage.copying import copy_directory
from keras_trainops.checkpoints.storage.writing import written_aside

pytestmark = pytest.mark.once


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.mark.parametrize("out", ["source/new", "source/runs/new"])
def test_a_copy_inside_its_source_does_not_contain_itself(out: str) -> None:
    source = Path("source")
    (source / "assets").mkdir(parents=True)
    (source / "assets" / "words").touch()
    Path(out).parent.mkdir(exist_ok=True)
    for _ in range(2):  # the second copy replaces the first
        with written_aside(Path(out)) as aside:
            copy_directory(source, aside)
        assert names(Path(out)) == ["assets", "assets/words"]


def test_other_directories_of_the_same_name_are_copied() -> None:
    Path("source", "new", "new").mkdir(parents=True)
    with written_aside(Path("new")) as aside:
        copy_directory(Path("source"), aside)
    assert names(Path("new")) == ["new", "new/new"]
