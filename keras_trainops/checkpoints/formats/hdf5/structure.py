"""Encode the groups, the attributes and the places of the datasets of an HDF5 file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import numpy as np

from keras_trainops.checkpoints.formats.hdf5.file import LARGEST_ATTRIBUTE, Hdf5File
from keras_trainops.checkpoints.formats.hdf5.values import Values
from keras_trainops.checkpoints.storage.files import MOST_METADATA
from keras_trainops.errors import RestoreError

STRUCTURE = "HDF5"  # the entry of `Checkpoint.structure`


def structure_of(
    opened: Hdf5File, values: Mapping[str, Values], converted: Iterable[str] = ()
) -> dict[str, Any]:
    """Describe a file.

    Args:
        opened: The open file.
        values: Mapping from key to values of the file.
        converted: Keys whose values are computed from datasets in another layout.

    Returns:
        `groups`: attributes by path of the group, empty for the root. `datasets`: key, attributes,
        filters and shape by path. `converted`: as given. `others`: what cannot be described. A path
        has no slash in front.

    Raises:
        RestoreError: If attributes claim to be very large.
    """
    file = opened.file
    size, others = 0, list[str]()

    def attributes(path: str, item: h5py.Group | h5py.Dataset) -> dict[str, Any]:
        nonlocal size
        found = {}
        for name in item.attrs:
            described = _describe(item, name)
            if described is None:
                others.append(f"attribute {name!r} of {path!r}")
                continue
            found[name] = described
            size += sum(map(len, described["values"]))
            if size > MOST_METADATA:
                raise RestoreError(f"{file.filename!r}: its attributes are too large.")
        return found

    datasets = {key: h5py.Dataset(found.dataset) for key, found in values.items()}
    places = {dataset.name.lstrip("/"): key for key, dataset in datasets.items()}
    entries = {
        path: {
            "key": key,
            "attributes": attributes(path, datasets[key]),
            "filters": _filters(datasets[key]),
            "shape": list(datasets[key].shape),
        }
        for path, key in places.items()
    }
    groups = {path: attributes(path, file[path or "/"]) for path in opened.groups}
    return {
        "groups": groups,
        "datasets": entries,
        "converted": list(converted),
        "others": others,
    }


def _filters(dataset: h5py.Dataset) -> dict[str, Any]:
    if dataset.compression not in ("gzip", "lzf"):
        return {}
    return {
        "compression": dataset.compression,
        "compression_opts": dataset.compression_opts,
        "shuffle": dataset.shuffle,
    }


def _describe(item: h5py.Group | h5py.Dataset, name: str) -> dict[str, Any] | None:
    """Return an attribute as plain data; None if it contains neither strings nor numbers."""
    attribute = item.attrs.get_id(name)
    kind = attribute.get_type()
    numbers = (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID)
    if not isinstance(kind, (h5py.h5t.TypeStringID, *numbers)):
        return None
    if attribute.get_space().get_simple_extent_type() == h5py.h5s.NULL:
        return None
    shape = attribute.shape
    if math.prod(shape) * kind.get_size() > LARGEST_ATTRIBUTE:
        raise RestoreError(f"{item.name}: its attribute {name!r} claims to be too large.")
    value = np.asarray(item.attrs[name])
    if isinstance(kind, h5py.h5t.TypeStringID):
        encoding, length = h5py.check_string_dtype(attribute.dtype)
        values = [_text(entry) for entry in value.reshape(-1).tolist()]
        return {"shape": list(shape), "encoding": encoding, "length": length, "values": values}
    return {"shape": list(shape), "dtype": value.dtype.str, "values": [value.tobytes().hex()]}


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")


def create_attribute(item: h5py.Group | h5py.Dataset, name: str, content: Any) -> None:
    """Create an attribute that `structure_of` has described."""
    shape, values = tuple(content["shape"]), content["values"]
    if "dtype" in content:
        value = np.frombuffer(bytes.fromhex(values[0]), np.dtype(content["dtype"]))
        item.attrs.create(name, value.reshape(shape))
        return
    raw = [text.encode("utf-8", "surrogateescape") for text in values]
    dtype = h5py.string_dtype(content["encoding"], content["length"])
    kind = object if content["length"] is None else f"S{content['length']}"
    item.attrs.create(name, np.array(raw, kind).reshape(shape), shape, dtype)
