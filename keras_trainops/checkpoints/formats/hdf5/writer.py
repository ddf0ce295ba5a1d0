"""Write an HDF5 file with the groups, attributes and datasets of another one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.dtypes import nbytes
from keras_trainops.checkpoints.formats.hdf5.structure import STRUCTURE, create_attribute
from keras_trainops.checkpoints.storage.deferring import deferring_errors
from keras_trainops.checkpoints.storage.writing import UnwritableError

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_REGISTERED = 2  # `isbuiltin` of the dtypes of ml_dtypes
_NAMES = re.compile(r"(?:layer|weight)_names\d*")  # lists of items, in files of Keras 1 and 2


def write(
    path: Path,
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> list[str]:
    """Write a file like the source; `Writer` describes the arguments.

    Groups without any of their datasets are left out, as those of an optimizer.

    Raises:
        UnwritableError: If the source is not an HDF5 file, a tensor has no dataset of its own in
            it, or HDF5 has no such dtype; nothing is written.
    """
    structure = checkpoint.structure().get(STRUCTURE)
    if structure is None:
        raise UnwritableError(
            "An HDF5 file needs the groups of a Keras file, so it is only written like a file of "
            "Keras. For a model, call `model.save_weights('….weights.h5')`."
        )
    places = _places(structure, keys)
    dtypes = {key: _stored_dtype(key, checkpoint.dtype(key)) for key in places}
    left_out = _left_out(structure["datasets"], places.values())
    offsets: dict[str, int] = {}
    with deferring_errors(path) as output, h5py.File(output, "w") as file:
        _create_groups(file, structure["groups"], left_out)
        for key, place in places.items():
            about = structure["datasets"][place]
            shape = checkpoint.shape(key)
            dataset = _create(file, place, shape, dtypes[key], about["filters"])
            is_bfloat16 = checkpoint.dtype(key) == _BFLOAT16
            _set_attributes(dataset, about["attributes"], is_bfloat16=is_bfloat16)
            offset = dataset.id.get_offset()  # None if compressed, in the header, or empty
            if offset is not None:
                offsets[key] = offset
            elif dataset.size:
                dataset[...] = checkpoint[key].view(dtypes[key])
                progress(checkpoint.nbytes(key))
    _fill(path, checkpoint, offsets, progress)
    lines = [f"The {what} was left out." for what in structure["others"]]
    is_model = "model_config" in structure["groups"][""]
    return lines + (outdated_configuration(checkpoint, keys) if is_model else [])


def outdated_configuration(checkpoint: Checkpoint, keys: Mapping[str, str]) -> list[str]:
    """Return a line if a model's configuration does not have the shapes that are written."""
    datasets = checkpoint.structure()[STRUCTURE]["datasets"]
    shapes = {about["key"]: tuple(about["shape"]) for about in datasets.values()}
    other = [key for key in keys.values() if checkpoint.shape(key) != shapes[key]]
    if not other:
        return []
    return [
        f"The configuration is that of the source, where {other[0]!r} has the shape "
        f"{shapes[other[0]]}: build the model in code, and load the weights."
    ]


def _places(structure: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, str]:
    """Return a mapping from key to the path of its dataset."""
    places = {about["key"]: place for place, about in structure["datasets"].items()}
    for name, key in keys.items():
        if key in structure["converted"]:
            raise UnwritableError(
                f"{key!r} is stored in another layout (that of a CuDNN layer, of Keras 1 or of "
                "Theano), which is not written. Write .safetensors, or save the model with Keras."
            )
        if key not in places:
            raise UnwritableError(f"{key!r} has no place in the HDF5 file.")
        if name != key:
            raise UnwritableError(
                f"{key!r} cannot be named {name!r}: names in an HDF5 file are those of its layers."
            )
    return {key: places[key] for key in keys.values()}


def _stored_dtype(key: str, dtype: np.dtype) -> np.dtype:
    """Return the dtype of the dataset.

    Raises:
        UnwritableError: If HDF5 has none.
    """
    if dtype == _BFLOAT16:
        return np.dtype("V2")  # as Keras stores it
    is_plain = dtype.kind in "biufcV" and dtype.names is None
    if not is_plain or dtype.isbuiltin == _REGISTERED:
        raise UnwritableError(
            f"HDF5 has no dtype for {key!r}, which is {dtype}. Write .safetensors."
        )
    return dtype


def _left_out(datasets: Iterable[str], written: Iterable[str]) -> set[str]:
    """Return the datasets that are not written, and the groups that lose all of theirs."""
    datasets, written = set(datasets), set(written)
    above = {group for place in written for group in _above(place)}
    groups = {group for place in datasets for group in _above(place)} - above
    return (datasets - written) | groups


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _create_groups(file: h5py.File, groups: Mapping[str, Any], left_out: set[str]) -> None:
    for path, attributes in groups.items():
        if left_out.isdisjoint((path, *_above(path))):
            group = file.require_group(path) if path else file
            for name, content in attributes.items():
                if _NAMES.fullmatch(name):
                    content = _without(content, path, left_out)
                create_attribute(group, name, content)


def _without(content: Mapping[str, Any], group: str, left_out: set[str]) -> Mapping[str, Any]:
    """Return a list of a group's items without those that are left out."""
    if "encoding" not in content:
        return content
    values = [name for name in content["values"] if f"{group}/{name}".lstrip("/") not in left_out]
    return {**content, "values": values, "shape": [len(values)]}


def _create(
    file: h5py.File,
    place: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    filters: Mapping[str, Any],
) -> h5py.Dataset:
    if filters and nbytes(shape, dtype) and shape:
        return file.create_dataset(place, shape, dtype, chunks=True, **filters)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # so that it has an offset
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return file.create_dataset(place, shape, dtype, dcpl=properties)


def _set_attributes(
    dataset: h5py.Dataset, attributes: Mapping[str, Any], *, is_bfloat16: bool
) -> None:
    for name, content in attributes.items():
        if is_bfloat16 or content["values"] != ["bfloat16"]:
            create_attribute(dataset, name, content)
    if is_bfloat16 and "dtype" not in attributes:
        dataset.attrs["dtype"] = "bfloat16"


def _fill(
    path: Path,
    checkpoint: Checkpoint,
    offsets: Mapping[str, int],
    progress: Callable[[int], None],
) -> None:
    """Write values to their places in the closed file, as HDF5 takes no flat pieces."""
    with path.open("r+b") as file:
        for key, offset in offsets.items():
            file.seek(offset)
            for piece in checkpoint.pieces(key):
                file.write(np.ascontiguousarray(piece).view(np.uint8).data)
                progress(piece.nbytes)
