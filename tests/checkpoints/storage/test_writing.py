from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from keras_trainops.checkpoints.storage.writing import written_aside
from keras_trainops.errors import RestoreError

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


def test_moves_several_files_and_the_index_last() -> None:
    Path("w.index").write_text("old")
    with written_aside(Path("w")) as aside:
        for ending in (".index", ".data-00000-of-00001"):
            aside.with_name(f"w{ending}").write_text("new")
    assert {path.name: path.read_text() for path in Path().iterdir()} == {
        "w.index": "new",
        "w.data-00000-of-00001": "new",
    }


def test_replaces_a_directory_and_keeps_what_only_the_old_one_has() -> None:
    for name, text in (("a", "old"), ("b", "old"), ("b", "new")):
        with written_aside(Path("out")) as aside:
            (aside / "deep").mkdir(parents=True)
            (aside / "deep" / name).write_text(text)
    assert {path.name: path.read_text() for path in Path("out/deep").iterdir()} == {
        "a": "old",
        "b": "new",
    }
    assert [str(path) for path in Path().iterdir()] == ["out"]


def test_a_full_disk_is_explained() -> None:
    message = r"Cannot write 'w.npz': No space left .* bytes are free"
    with pytest.raises(RestoreError, match=message), written_aside(Path("w.npz")):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(Path().iterdir())


def test_leftovers_and_other_threads_do_not_matter() -> None:
    with written_aside(Path("w.npz")) as one, written_aside(Path("w.npz")) as other:
        assert one.parent != other.parent
        one.write_text("one")
        other.write_text("other")
    assert Path("w.npz").read_text() == "one"


def test_names_may_be_as_long_as_those_of_files() -> None:
    target = Path("w" * 255)
    for _ in range(2):  # the second replaces the first
        with written_aside(target) as aside:
            aside.mkdir()
            (aside / "new").touch()
    assert list(Path().rglob("*")) == [target, target / "new"]


def test_new_files_have_the_usual_permissions() -> None:
    Path("usual.npz").touch()
    Path("usual").mkdir()
    with written_aside(Path("w.npz")) as aside:
        aside.touch()
    with written_aside(Path("directory")) as aside:
        aside.mkdir()
    for new, usual in (("w.npz", "usual.npz"), ("directory", "usual")):
        assert stat.filemode(os.stat(new).st_mode) == stat.filemode(os.stat(usual).st_mode)


@pytest.mark.parametrize(
    ("target", "reason"), [("gone/w.npz", "No such file"), ("file/w.npz", "Not a directory")]
)
def test_says_where_no_file_can_be_made(target: str, reason: str) -> None:
    Path("file").touch()
    message = f"Cannot write '{target}': no file can be made in '.*' .{reason}"
    with pytest.raises(RestoreError, match=message), written_aside(Path(target)):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_says_that_a_directory_is_read_only() -> None:
    Path("locked").mkdir(0o500)
    target = Path("locked/w.npz")
    with pytest.raises(RestoreError, match="Permission denied"), written_aside(target):
        pass
