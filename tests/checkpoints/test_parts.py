"""A part that is read alone is a slice of the whole, in every format."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_trainops as kt
from keras_trainops.checkpoints import ArraysCheckpoint
from keras_trainops.checkpoints.forwarding import ForwardingCheckpoint
from keras_trainops.checkpoints.storage import parts
from tests.checkpoints import plain_files
from tests.checkpoints.formats.test_orbax import save

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore::ResourceWarning"),
]

RNG = np.random.default_rng(1)
ARRAYS: dict[str, Any] = {
    "cube": RNG.normal(size=(5, 6, 7)).astype("f4"),
    "deep": RNG.integers(0, 99, size=(3, 2, 4, 3)).astype("i2"),
    "wide": RNG.normal(size=(9, 700)),  # runs that are not short
    "thin": RNG.normal(size=(700, 3)).astype("f4"),
    "vector": RNG.normal(size=40).astype("f4"),
    "scalar": np.array(3, "i4"),
}


def write_h5(path: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "cube": {"chunks": (2, 3, 3)},
        "deep": {"compression": "gzip"},
        "wide": {"chunks": (4, 100), "fletcher32": True},
        "thin": {"dtype": ">f4"},
    }
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["a"]
        group = file.create_group("a")
        for name, array in ARRAYS.items():
            group.create_dataset(name, data=array, **options.get(name, {}))
        group.attrs["weight_names"] = list(group)


def write_torch(path: str) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    tensors["turned"] = torch.from_numpy(ARRAYS["wide"]).T  # not contiguous
    torch.save(tensors, path)


def write_fortran(path: str) -> None:
    arrays: dict[str, Any] = {name: np.asfortranarray(a) for name, a in ARRAYS.items()}
    np.savez(path, **arrays)


WRITERS: dict[str, Callable[[str], Any]] = {
    "w.h5": write_h5,
    "w.safetensors": lambda path: safetensors.numpy.save_file(ARRAYS, path),
    "w.npz": lambda path: np.savez(path, **ARRAYS),
    "fortran.npz": write_fortran,
    "packed.npz": lambda path: np.savez_compressed(path, **ARRAYS),
    "cube.npy": lambda path: np.save(path, ARRAYS["cube"]),
    "w.pt": write_torch,
    "orbax": lambda path: save(path, ARRAYS),
    "files.orbax": lambda path: save(path, ARRAYS, use_ocdbt=False),
    "tf/ck": plain_files.write_tf,
    "tf/v1": lambda path: plain_files.write_tf(path, "half", write_version=1),
}


@st.composite
def indices(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[slice, ...]:
    def one(length: int) -> slice:
        bound = st.none() | st.integers(-length - 1, length + 1)
        return slice(draw(bound), draw(bound), draw(st.sampled_from([None, 1])))

    return tuple(one(length) for length in shape)


@pytest.fixture(scope="module", params=[*WRITERS, "arrays", "forwarded"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory, before = tmp_path_factory.mktemp("parts"), os.getcwd()
    os.chdir(directory)
    try:
        if request.param == "arrays":
            yield ArraysCheckpoint({**ARRAYS, "torch": torch.arange(12.0).reshape(3, 4)})
            return
        path = request.param if request.param in WRITERS else "w.safetensors"
        WRITERS[path](path)
        with kt.open_checkpoint(path) as opened:
            yield opened if request.param in WRITERS else ForwardingCheckpoint(opened)
    finally:
        os.chdir(before)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_part_is_a_slice_of_the_whole(checkpoint: Any, data: st.DataObject) -> None:
    some = sorted(checkpoint)[:: max(1, len(checkpoint) // 8)]
    key = data.draw(st.sampled_from(some))
    index = data.draw(indices(checkpoint.shape(key)))
    part, expected = checkpoint.part(key, index), checkpoint[key][index]
    assert part.dtype == checkpoint.dtype(key)
    assert part.flags.writeable
    assert part.shape == expected.shape
    assert part.tobytes() == np.ascontiguousarray(expected).tobytes()


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_parts_of_any_shape_are_read(tmp_path_factory: Any, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 6), max_size=5)))
    array = np.arange(np.prod(shape, dtype=int), dtype="i8").reshape(shape)
    index = data.draw(indices(shape))
    path = Path(tmp_path_factory.getbasetemp(), "any.safetensors")
    safetensors.numpy.save_file({"w": array}, path)
    with kt.open_checkpoint(path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.part("w", index), array[index])


def test_only_the_part_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.zeros((64, 4096), "f4")
    safetensors.numpy.save_file({"w": array, "short": np.zeros((512, 16), "f4")}, "w.safetensors")
    counted: list[int] = []
    read = parts.Extent.read_into

    def read_into(self: Any, into: np.ndarray, start: int = 0) -> None:
        counted.append(into.nbytes)
        read(self, into, start)

    monkeypatch.setattr(parts.Extent, "read_into", read_into)
    with kt.open_checkpoint("w.safetensors") as checkpoint:
        for index, most, calls in [
            ((slice(8, 16), slice(None)), array.nbytes // 8, 1),
            ((slice(None), slice(0, 2048)), array.nbytes // 2, 64),
            ((slice(1, 3), slice(5, 9)), 2 * 4 * 4, 2),
            ((slice(None), slice(1, 4095)), array.nbytes, 1),  # the gaps are small
        ]:
            counted.clear()
            checkpoint.part("w", index)
            assert len(counted) == calls
            assert sum(counted) <= most
        counted.clear()
        checkpoint.part("short", (slice(None), slice(0, 8)))  # gaps cost less than calls
        assert len(counted) == 1


@pytest.mark.parametrize("index", [(slice(0, 2),), (slice(0, 4, 2), slice(None)), ()])
def test_other_indices_are_refused(index: tuple[slice, ...]) -> None:
    with pytest.raises(ValueError, match=r"a part of a tensor of shape|must be 1. Received"):
        ArraysCheckpoint({"w": np.zeros((4, 4))}).part("w", index)


@pytest.mark.parametrize("path", ["w.safetensors", "w.npz", "w.pt", "tf/ck"])
def test_parts_of_a_truncated_file_are_refused(path: str) -> None:
    WRITERS[path](path)
    with kt.open_checkpoint(path) as checkpoint:
        file = next(f for f in checkpoint.files if "index" not in f)
        os.truncate(file, os.path.getsize(file) // 50)
        with pytest.raises(kt.RestoreError, match=r"too early|ends inside"):
            for key in checkpoint:
                for _ in range(2):
                    checkpoint.part(key, (slice(1, None),) * len(checkpoint.shape(key)))
