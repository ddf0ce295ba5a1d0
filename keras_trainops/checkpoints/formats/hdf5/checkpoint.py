"""What the two HDF5 formats share: a checkpoint whose tensors are data sets of one open file."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Mapping

import h5py
import ml_dtypes
import numpy as np

from keras_trainops.checkpoints.arrays import nbytes
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.hdf5.file import holds_numbers, strings
from keras_trainops.checkpoints.storage.files import open_regular
from keras_trainops.checkpoints.storage.limits import refuse_bomb
from keras_trainops.checkpoints.storage.raw import Extent
from keras_trainops.checkpoints.storage.zip_archives import FileWindow
from keras_trainops.errors import RestoreError


class Hdf5Checkpoint(Checkpoint):
    """A checkpoint over an open HDF5 file; a subclass says which key is which data set.

    A file in which that fails is closed: an open one could not be written again.
    """

    def __init__(self, location: str, file: h5py.File, source: io.IOBase | None = None) -> None:
        self._file = file
        self._source = source
        self._datasets: dict[str, h5py.Dataset] = {}
        self._dtypes: dict[str, np.dtype] = {}  # as an attribute is read anew each time
        # Where the HDF5 file lies byte for byte on disk; nowhere if it was unpacked.
        path, self._start = (file.filename, 0) if source is None else _place(source)
        super().__init__(location, [path or location])
        self._plain = open_regular(path) if path else None
        try:
            self._find_datasets(file)
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _find_datasets(self, file: h5py.File) -> None:
        """Fills `_datasets`, and says which of them are `training_state`."""

    def _keys(self) -> Mapping[str, h5py.Dataset]:
        return self._datasets

    def _shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._datasets[key].shape)

    def _dtype(self, key: str) -> np.dtype:
        if key not in self._dtypes:
            self._dtypes[key] = _numpy_dtype(self._datasets[key])
        return self._dtypes[key]

    def _extent(self, key: str) -> Extent | None:
        dataset = self._datasets[key]
        offset = dataset.id.get_offset()  # None where the data are in chunks, or in the header
        is_whole = dataset.id.get_storage_size() == dataset.nbytes
        plain = self._plain_file(dataset)
        if plain is None or offset is None or not is_whole or dataset.dtype.hasobject:
            return None
        return Extent(plain, self._start + offset)

    def _plain_file(self, dataset: h5py.Dataset) -> io.FileIO | None:
        """The file that `dataset` lies in, for those who have several."""
        return self._plain

    def _read(self, key: str) -> np.ndarray:
        return np.asarray(self._datasets[key][()]).view(self._dtype(key))

    def close(self) -> None:
        for opened in (self._file, self._source, self._plain):
            if opened is not None:
                opened.close()


def _place(source: io.IOBase) -> tuple[str, int]:
    return (source.path, source.offset) if isinstance(source, FileWindow) else ("", 0)


def _numpy_dtype(dataset: h5py.Dataset) -> np.dtype:
    # HDF5 has no bfloat16: Keras stores two opaque bytes and says so in an attribute.
    if strings(dataset, "dtype") == ["bfloat16"]:
        return np.dtype(ml_dtypes.bfloat16)
    return dataset.dtype


def own_dataset(group: h5py.Group, name: str, location: str) -> h5py.Dataset:
    """The data set `name` of `group`, refused where it is a link to somewhere else.

    Raises:
        RestoreError: If it is missing, no data set, or its data lie in another file.
    """
    item = own_item(group, name)
    if (
        not isinstance(item, h5py.Dataset)
        or item.external
        or item.is_virtual
        or item.shape is None  # HDF5's "null": a data set without a value
    ):
        raise _not_of_this_file(group, name, location, "data set")
    what = f"the data set {item.name}"
    if not holds_numbers(item):
        raise RestoreError(f"{location!r}: {what} looks damaged: its type or size is not right.")
    claimed = nbytes(item.shape, item.dtype)
    refuse_bomb(what, claimed, item.id.get_storage_size(), location)
    return item


def own_group(group: h5py.Group, name: str, location: str) -> h5py.Group:
    """The group `name` of `group`, refused in the same way."""
    item = own_item(group, name)
    if not isinstance(item, h5py.Group):
        raise _not_of_this_file(group, name, location, "group")
    return item


def own_item(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """What is at the path `name` below `group`; None if nothing is, or a link leads there."""
    item = group
    for part in filter(None, name.split("/")):
        inside = isinstance(item, h5py.Group)
        if not inside or not isinstance(item.get(part, getlink=True), h5py.HardLink):
            return None
        item = item[part]
    return item


def _not_of_this_file(group: h5py.Group, name: str, location: str, kind: str) -> RestoreError:
    place = f"{group.name.rstrip('/')}/{name}"
    return RestoreError(
        f"{location!r}: {place} is no {kind} of this file (it is missing, empty or a link), so it "
        "is not read."
    )
