from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints.storage.zip_archives import FileWindow, set_checksums, stored_place
from tests.checkpoints.hostile_files import npy

pytestmark = pytest.mark.once


def test_refuses_two_members_of_one_name() -> None:
    with zipfile.ZipFile("w.npz", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for value in (1.0, 2.0):
            archive.writestr("x.npy", npy(np.full(3, value)))
    with pytest.raises(kt.RestoreError, match=r"contains 'x.npy' more than once"):
        kt.open_checkpoint("w.npz")


def test_locates_a_stored_member() -> None:
    with zipfile.ZipFile("w.zip", "w") as archive:
        archive.writestr("first", b"first")
        archive.writestr("second", b"0123456789")
        member = archive.getinfo("second")
    offset, size = stored_place("w.zip", member)
    assert Path("w.zip").read_bytes()[offset : offset + size] == b"0123456789"
    member.header_offset += 1
    with pytest.raises(kt.RestoreError, match="entry for second is damaged"):
        stored_place("w.zip", member)


def test_window_reads_only_its_range() -> None:
    Path("file").write_bytes(b"..0123456789..")
    with FileWindow("file", 2, 10) as window:
        assert window.read(3) == b"012"
        assert window.seek(-4, io.SEEK_END) == 6
        assert window.read() == b"6789"
        assert window.seek(1) == window.tell() == 1
        assert window.read(100) == b"123456789"
        assert list(window.data_ranges(2, 8)) == [(2, 8)]


class Unseekable(io.BytesIO):
    """Makes `zipfile` write checksums after the members."""

    def seekable(self) -> bool:
        return False

    def seek(self, *place: int) -> int:
        raise io.UnsupportedOperation("seek")

    def tell(self) -> int:
        raise io.UnsupportedOperation("tell")


@pytest.mark.parametrize("kind", [io.BytesIO, Unseekable], ids=["before", "after"])
@pytest.mark.parametrize("zip64", [False, True])
def test_sets_checksums(kind: type[io.BytesIO], zip64: bool) -> None:
    file = kind()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("a", "b", "c"):
            with archive.open(name, "w", force_zip64=zip64) as member:
                member.write(b"laid out" if name == "b" else b"kept")
    Path("w.zip").write_bytes(file.getvalue().replace(b"laid out", b"filled  "))
    with zipfile.ZipFile("w.zip") as archive:
        assert archive.testzip() == "b"
    set_checksums(Path("w.zip"), {"b": zlib.crc32(b"filled  ")})
    with zipfile.ZipFile("w.zip") as archive:
        assert archive.testzip() is None
    if shutil.which("unzip"):
        subprocess.run(["unzip", "-t", "w.zip"], check=True, capture_output=True)
