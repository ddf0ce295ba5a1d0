"""Base class of HDF5 formats: the tensors are datasets of an open file."""

from __future__ import annotations

import io
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.hdf5.file import holds_numbers, strings
from keras_trainops.checkpoints.formats.hdf5.structure import STRUCTURE, structure_of
from keras_trainops.checkpoints.storage.files import open_regular
from keras_trainops.checkpoints.storage.limits import refuse_bomb
from keras_trainops.checkpoints.storage.parts import Index
from keras_trainops.checkpoints.storage.raw import Extent
from keras_trainops.checkpoints.storage.zip_archives import FileWindow
from keras_trainops.errors import RestoreError

_KINDS: dict[type, Any] = {h5py.h5g.GroupID: h5py.Group, h5py.h5d.DatasetID: h5py.Dataset}


class Hdf5Checkpoint(Checkpoint):
    """A checkpoint over an open HDF5 file; subclasses map keys to datasets.

    Closes the file if the constructor fails, as an open HDF5 file cannot be overwritten.

    Args:
        location: The path, as the user gave it.
        file: The open file.
        source: The file object that `file` was opened from, if any; closed with the checkpoint.
    """

    def __init__(self, location: str, file: h5py.File, source: io.IOBase | None = None) -> None:
        self._file = file
        self._source = source
        self._datasets: dict[str, h5py.Dataset] = {}
        self._dtypes: dict[str, np.dtype] = {}  # HDF5 attributes are read again on each access
        # The HDF5 file's place on disk, byte for byte; the path is empty if it was unpacked.
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
        """Set `_datasets` and `training_state`."""

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
        offset = dataset.id.get_offset()  # None if the data are chunked or in the header
        is_whole = dataset.id.get_storage_size() == dataset.nbytes
        plain = self._plain_file(dataset)
        if plain is None or offset is None or not is_whole or dataset.dtype.hasobject:
            return None
        return Extent(plain, self._start + offset)

    def _plain_file(self, dataset: h5py.Dataset) -> io.FileIO | None:
        """Return the file that contains `dataset`; subclasses may have several."""
        return self._plain

    def _read(self, key: str) -> np.ndarray:
        return self._read_part(key, ())

    def _read_part(self, key: str, index: Index) -> np.ndarray:
        return np.asarray(self._datasets[key][index]).view(self._dtype(key))

    def _structure(self) -> Mapping[str, Any]:
        return {STRUCTURE: structure_of(self._file, self._datasets)}

    def close(self) -> None:
        for opened in (self._file, self._source, self._plain):
            if opened is not None:
                opened.close()


def _place(source: io.IOBase) -> tuple[str, int]:
    return (source.path, source.offset) if isinstance(source, FileWindow) else ("", 0)


def _numpy_dtype(dataset: h5py.Dataset) -> np.dtype:
    # HDF5 has no bfloat16: Keras stores two opaque bytes and an attribute.
    if strings(dataset, "dtype") == ["bfloat16"]:
        return np.dtype(ml_dtypes.bfloat16)
    return dataset.dtype


def own_dataset(group: h5py.Group, name: str, location: str) -> h5py.Dataset:
    """Return a dataset that is stored in this file.

    Args:
        group: The group that contains it.
        name: Its path below `group`.
        location: The file, for messages.

    Returns:
        The dataset.

    Raises:
        RestoreError: If it is missing, not a dataset, a link, damaged, or claims far more bytes
            than are stored.
    """
    item = own_item(group, name)
    if not isinstance(item, h5py.Dataset) or not _is_in_file(item.id):
        raise _not_of_this_file(group, name, location, "dataset")
    if not holds_numbers(item):
        raise RestoreError(
            f"{location!r}: the dataset {item.name} looks damaged: its type or size is not right."
        )
    claimed = math.prod(item.id.shape) * item.id.get_type().get_size()
    refuse_bomb(f"the dataset {item.name}", claimed, item.id.get_storage_size(), location)
    return item


def own_group(group: h5py.Group, name: str, location: str) -> h5py.Group:
    """Return a group that is stored in this file.

    Args:
        group: The group that contains it.
        name: Its path below `group`.
        location: The file, for messages.

    Returns:
        The group.

    Raises:
        RestoreError: If it is missing, not a group, or a link.
    """
    item = own_item(group, name)
    if not isinstance(item, h5py.Group):
        raise _not_of_this_file(group, name, location, "group")
    return item


def own_item(group: h5py.Group, name: str) -> Any:
    """Return the group or dataset at the path `name` below `group`; None if missing or a link."""
    item: Any = group
    for part in filter(None, name.split("/")):
        encoded = part.encode("utf-8", "surrogateescape")
        if not isinstance(item, h5py.Group) or not _is_hard_link(item, encoded):
            return None
        opened = h5py.h5o.open(item.id, encoded)
        kind = _KINDS.get(type(opened))
        item = kind and kind(opened)
    return item


def _is_hard_link(group: h5py.Group, name: bytes) -> bool:
    """Return True if the name leads to an object of this file: a link could lead to another one."""
    links = group.id.links
    return links.exists(name) and links.get_info(name).type == h5py.h5l.TYPE_HARD


def _is_in_file(dataset: h5py.h5d.DatasetID) -> bool:
    """Return True if a dataset has values, and no other file contains them."""
    creation = dataset.get_create_plist()
    is_apart = creation.get_layout() == h5py.h5d.VIRTUAL or creation.get_external_count()
    is_null = dataset.get_space().get_simple_extent_type() == h5py.h5s.NULL
    return not is_apart and not is_null


def _not_of_this_file(group: h5py.Group, name: str, location: str, kind: str) -> RestoreError:
    place = f"{group.name.rstrip('/')}/{name}"
    return RestoreError(
        f"{location!r}: {place} is not a {kind} of this file (it is missing, empty or a link), so "
        "it is not read."
    )
