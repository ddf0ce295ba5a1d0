from __future__ import annotations

import os
from typing import Any

import h5py
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints.formats.hdf5.file import open_hdf5
from tests.checkpoints.bounded import GIGABYTE, answer
from tests.helpers import two_layers

pytestmark = pytest.mark.once


def test_ignores_bytes_after_the_end_of_file() -> None:
    """The library accepts the file; bytes after its logical end are not checked."""
    two_layers().save_weights("w.weights.h5")
    end = os.path.getsize("w.weights.h5")
    with open("w.weights.h5", "r+b") as file:
        file.seek(end)
        file.write(b"GCOL\x01\0\0\0" * 1000)  # broken heaps, which nothing reads
    assert answer("w.weights.h5") == "read"
    os.truncate("w.weights.h5", 8 * GIGABYTE)
    assert "the file claims 8,589,934,592 bytes" in answer("w.weights.h5")


@pytest.mark.parametrize("name", [h5py.Empty("S4"), 7, np.array([["a"]], "S1")])
def test_refuses_names_that_are_none(name: Any) -> None:
    two_layers().save_weights("w.weights.h5")
    with h5py.File("w.weights.h5", "r+") as file:
        group = file["layers/dense/vars"]
        del group.attrs["name"]
        group.attrs["name"] = name
    with pytest.raises(kt.RestoreError, match="attribute 'name' looks damaged"):
        kt.open_checkpoint("w.weights.h5")


def test_reads_names_in_every_encoding() -> None:
    for name in ("own", b"own", np.array(b"own", "S3"), np.array(["own"], object)):
        two_layers().save_weights("w.weights.h5")
        with h5py.File("w.weights.h5", "r+") as file:
            group = file["layers/dense/vars"]
            del group.attrs["name"]
            group.attrs["name"] = name
        with kt.open_checkpoint("w.weights.h5") as checkpoint:
            assert {"own/kernel", "own/bias"} <= set(checkpoint)


def odd_file(block: int = 0) -> None:
    """Write a file with every kind of link, and with groups and datasets of several names."""
    with h5py.File("odd.h5", "w", userblock_size=block) as file:
        file["b/vars/1"] = np.ones(3)
        file["b/vars/0"] = np.zeros(2)
        file["a/vars/0"] = file["b/vars/1"]
        file["c"] = file["b"]
        file["b/root"] = file["/"]
        file["b/vars/up"] = file["b"]
        file.create_group("empty/vars")
        file["empty/again"] = file["empty/vars"]
        file["b/soft"] = h5py.SoftLink("/a/vars")
        file["b/vars/soft"] = h5py.SoftLink("/a/vars/0")
        file["external"] = h5py.ExternalLink("other.h5", "/b")
        file["b/type"] = np.dtype("float32")
        file["z"], file["ä/vars/0"] = 1.0, np.ones(1)


def test_finds_groups_and_datasets_once_and_by_hard_links_only() -> None:
    odd_file(block=512)
    opened = open_hdf5("odd.h5")
    expected = list[str]()  # as the library visits them

    def visit(path: bytes, about: h5py.h5o.ObjInfo) -> None:
        if about.type == h5py.h5o.TYPE_GROUP and path != b".":
            expected.append(path.decode())

    h5py.h5o.visit(opened.file.id, visit, info=True)
    assert [*opened.groups] == ["", *expected]
    for path, names in opened.groups.items():
        assert names == [*opened.file[path or "/"]]
    assert opened.groups["b/vars"] == ["0", "1", "soft", "up"]
    assert "empty/vars" not in opened.groups  # `empty/again` comes first
    assert [*opened.datasets] == ["a/vars/0", "b/vars/0", "b/vars/1", "z", "ä/vars/0"]
    for path, dataset in opened.datasets.items():
        assert dataset == opened.file[path].id
    opened.close()


@pytest.mark.parametrize("links", [["soft"], ["up"], ["soft", "up"]])
def test_refuses_variables_that_are_links_or_groups(links: list[str]) -> None:
    odd_file()
    with h5py.File("odd.h5", "r+") as file:
        for name in {"soft", "up"} - set(links):
            del file["b/vars"][name]
    place = f"'odd.h5': /b/vars/{sorted(links, key=len)[0]} is not a dataset of this file"
    with pytest.raises(kt.RestoreError, match=place):
        kt.open_checkpoint("odd.h5")


def test_reads_every_name_of_a_dataset() -> None:
    odd_file()
    with h5py.File("odd.h5", "r+") as file:
        del file["b/vars/soft"], file["b/vars/up"]
    with kt.open_checkpoint("odd.h5") as checkpoint:
        read = {key: checkpoint[key].tolist() for key in checkpoint}
    assert read == {"a/0": [1] * 3, "b/0": [0] * 2, "b/1": [1] * 3, "ä/0": [1]}
