"""Find values that are stored in an HDF5 file itself, and check that they can be read safely."""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from keras_trainops.checkpoints.formats.hdf5.file import strings
from keras_trainops.checkpoints.storage.limits import refuse_bomb
from keras_trainops.checkpoints.storage.parts import Index
from keras_trainops.errors import RestoreError

_KINDS: dict[type, Any] = {h5py.h5g.GroupID: h5py.Group, h5py.h5d.DatasetID: h5py.Dataset}
# Types of a fixed size. For HDF5, bfloat16 is opaque, complex numbers are compound and booleans
# are enumerated. Variable-length sequences and strings, and references, are not among them.
_NUMBERS = (
    h5py.h5t.TypeIntegerID,
    h5py.h5t.TypeFloatID,
    h5py.h5t.TypeOpaqueID,
    h5py.h5t.TypeCompoundID,
    h5py.h5t.TypeEnumID,
)


class Values:
    """The values of a dataset that `own_values` has checked.

    Attributes:
        dataset: The dataset, without the h5py object for it, which takes longer to create than all
            checks.
        shape: Their shape.
        offset: Where the file has them as plain bytes, all of them; None if they are chunked or in
            the header.
    """

    def __init__(
        self, dataset: h5py.h5d.DatasetID, shape: tuple[int, ...], offset: int | None
    ) -> None:
        self.dataset, self.shape, self.offset = dataset, shape, offset

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """Their dtype."""
        # HDF5 has no bfloat16: Keras stores two opaque bytes and an attribute.
        if strings(self.dataset, "dtype") == ["bfloat16"]:
            return np.dtype(ml_dtypes.bfloat16)
        return self.dataset.dtype

    @property
    def file(self) -> str:
        """The path of the file, as it was opened."""
        return os.fsdecode(h5py.h5f.get_name(self.dataset))

    def __getitem__(self, index: Index) -> np.ndarray:
        return np.asarray(h5py.Dataset(self.dataset)[index]).view(self.dtype)


def own_values(dataset: Any, place: str, location: str) -> Values:
    """Return the values of a dataset, which this file contains.

    Args:
        dataset: What hard links lead to at the place: a `DatasetID`, or anything else.
        place: The path of the dataset in the file, for messages.
        location: The file, for messages.

    Returns:
        The values, which are not read yet.

    Raises:
        RestoreError: If it is missing, not a dataset, a link, damaged, or claims far more bytes
            than are stored.
    """
    if not isinstance(dataset, h5py.h5d.DatasetID):
        raise _not_of_this_file(place, location, "dataset")
    shape, offset = dataset.shape, dataset.get_offset()
    # HDF5 returns an offset only for contiguous values inside this file.
    if shape is None or (offset is None and _is_apart(dataset)):
        raise _not_of_this_file(place, location, "dataset")
    kind, stored = dataset.get_type(), dataset.get_storage_size()
    claimed = math.prod(shape) * kind.get_size()
    # If they are chunked, or not allocated, the library fills in the rest.
    if not isinstance(kind, _NUMBERS) or (offset is not None and stored != claimed):
        raise RestoreError(
            f"{location!r}: the dataset {place} looks damaged: its type or size is not right."
        )
    refuse_bomb(f"the dataset {place}", claimed, stored, location)
    return Values(dataset, shape, offset)


def _is_apart(dataset: h5py.h5d.DatasetID) -> bool:
    """Return True if other files may contain the values."""
    creation = dataset.get_create_plist()
    return creation.get_layout() == h5py.h5d.VIRTUAL or creation.get_external_count() > 0


def own_dataset(group: h5py.Group, name: str, location: str) -> Values:
    """Return the values of the dataset at the path `name` below `group`; see `own_values`."""
    item = own_item(group, name)
    found = item.id if isinstance(item, h5py.Dataset) else None
    return own_values(found, _place(group, name), location)


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
        raise _not_of_this_file(_place(group, name), location, "group")
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


def _place(group: h5py.Group, name: str) -> str:
    return f"{group.name.rstrip('/')}/{name}"


def _not_of_this_file(place: str, location: str, kind: str) -> RestoreError:
    return RestoreError(
        f"{location!r}: {place} is not a {kind} of this file (it is missing, empty or a link), so "
        "it is not read."
    )
