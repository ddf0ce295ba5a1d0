"""Tensors of files as the libraries read them that such files come from, and their comparison."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Tensor(NamedTuple):
    """A tensor of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {self.shape}"


def assert_same_tensors(new: Path, source: Path | str, without: str | None = None) -> None:
    """Names in the same order, with the same dtypes, shapes and bytes; see `differences`."""
    found = differences(new, source, without)
    assert not found, "\n".join(found)


def differences(new: Path, source: Path | str, without: str | None = None) -> list[str]:
    """Return a line for each place where two files have different tensors.

    Args:
        new: A file, directory or prefix.
        source: Another of the same format; a string if it ends in a slash.
        without: Pattern of names that the new one must not have.
    """
    expected = (t for t in tensors(source) if without is None or not re.search(without, t.name))
    return [
        f"{one} in place of {other}" if str(one) != str(other) else f"{one}: other bytes"
        for one, other in zip_longest(tensors(new), expected)
        if one != other
    ]


def tensors(path: Path | str) -> Iterator[Tensor]:
    """Yield the tensors in the order of the file."""
    read = _READERS.get(Path(path).suffix)
    yield from _of_tensorflow(str(path)) if read is None else read(Path(path))


def _of_safetensors(path: Path) -> Iterator[Tensor]:
    import safetensors

    with safetensors.safe_open(path, framework="np") as file:
        names = file.offset_keys()
    stored = dict(safetensors.deserialize(path.read_bytes()))
    for name in names:
        entry = stored[name]
        yield Tensor(name, entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))


def _of_torch(path: Path) -> Iterator[Tensor]:
    import torch

    for name, tensor in torch.load(path, weights_only=True).items():
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        yield Tensor(name, str(tensor.dtype), tuple(tensor.shape), data)


def _of_numpy(path: Path) -> Iterator[Tensor]:
    with np.load(path) as arrays:
        for name, array in arrays.items():
            yield _of_array(name, array)


def _of_hdf5(path: Path) -> Iterator[Tensor]:
    import h5py

    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        file.visititems(found.__setitem__)
        for name, node in found.items():
            if isinstance(node, h5py.Dataset):
                yield _of_array(name, node[()])


def _of_tensorflow(path: str) -> Iterator[Tensor]:
    import tensorflow as tf

    reader = tf.compat.v1.train.NewCheckpointReader(path)
    for name in sorted(reader.get_variable_to_shape_map()):  # the only order of such a file
        yield _of_array(name, np.asarray(reader.get_tensor(name)))


def _of_array(name: str, array: np.ndarray) -> Tensor:
    return Tensor(name, array.dtype.str, array.shape, array.tobytes())


_READERS: dict[str, Callable[[Path], Iterator[Tensor]]] = {
    ".safetensors": _of_safetensors,
    **dict.fromkeys((".pt", ".pth", ".bin"), _of_torch),
    ".npz": _of_numpy,
    **dict.fromkeys((".h5", ".hdf5"), _of_hdf5),
}
