"""What the two HDF5 formats share: a checkpoint whose tensors are data sets of one open file."""

from __future__ import annotations

import io
from collections.abc import Mapping

import h5py
import ml_dtypes
import numpy as np

from keras_trainops.readers.base import Checkpoint, RestoreError


class Hdf5Checkpoint(Checkpoint):
    """A checkpoint over an open HDF5 file; a subclass says which key is which data set."""

    def __init__(self, location: str, file: h5py.File, source: io.IOBase | None = None) -> None:
        super().__init__(location)
        self._file = file
        self._source = source
        self._datasets: dict[str, h5py.Dataset] = {}

    def _keys(self) -> Mapping[str, h5py.Dataset]:
        return self._datasets

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._datasets[key].shape)

    def dtype(self, key: str) -> np.dtype:
        return _dtype(self._datasets[key])

    def _read(self, key: str) -> np.ndarray:
        dataset = self._datasets[key]
        return np.asarray(dataset[()]).view(_dtype(dataset))

    def close(self) -> None:
        self._file.close()
        if self._source is not None:
            self._source.close()


def _dtype(dataset: h5py.Dataset) -> np.dtype:
    # HDF5 has no bfloat16: Keras stores two opaque bytes and says so in an attribute.
    if dataset.attrs.get("dtype") == "bfloat16":
        return np.dtype(ml_dtypes.bfloat16)
    return dataset.dtype


def own_dataset(group: h5py.Group, name: str, location: str) -> h5py.Dataset:
    """The data set `name` of `group`, refused where it is a link to somewhere else.

    Raises:
        RestoreError: If it is missing, no data set, or its data lie in another file.
    """
    link = group.get(name, getlink=True)
    dataset = group.get(name) if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.external:
        raise RestoreError(
            f"{location!r}: {group.name}/{name} is no data set of this file, so it is not read."
        )
    return dataset


def text(value: str | bytes) -> str:
    """An HDF5 string attribute, which old files keep as bytes."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


class FileWindow(io.RawIOBase):
    """A read-only window on a part of a file, as an uncompressed member of a zip archive is.

    Reading an HDF5 file through `zipfile` costs minutes a gigabyte, as each seek reads again from
    the start; the stored member is a plain range of bytes.
    """

    def __init__(self, path: str, offset: int, size: int) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed with the window
        self._offset, self._size, self._position = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        self._file.seek(self._offset + self._position)
        count = self._file.readinto(view)
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
