"""Keras 3 weights: `.weights.h5`, and the same inside a `.keras` archive or directory.

The file keeps each layer's variables by position (`layers/dense_1/vars/0`), and the layers' names
as attributes. Keys are made of the names: the owning layers', then the variable's, told by the
class of the layer where the file says it and by the shapes otherwise (`head/kernel`), or its
position where neither tells (`my_layer/2`). The same function names the variables of a model, so
that a file and a model agree on every key whose layers agree.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import h5py

from keras_trainops.readers.base import RestoreError
from keras_trainops.readers.hdf5 import FileWindow, Hdf5Checkpoint, own_dataset, text

_MEMBER = "model.weights.h5"

_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
# Variable names by class (as the file spells it) and number of variables, where that is certain.
_LEAVES: dict[str, tuple[tuple[str, ...], ...]] = {
    "batch_normalization": (_NORM, ("moving_mean", "moving_variance")),
    "layer_normalization": (("gamma", "beta"),),
    "group_normalization": (("gamma", "beta"),),
    "embedding": (("embeddings",),),
    "separable_conv1d": (
        ("depthwise_kernel", "pointwise_kernel", "bias"),
        ("depthwise_kernel", "pointwise_kernel"),
    ),
    "separable_conv2d": (
        ("depthwise_kernel", "pointwise_kernel", "bias"),
        ("depthwise_kernel", "pointwise_kernel"),
    ),
    "lstm_cell": (("kernel", "recurrent_kernel", "bias"), ("kernel", "recurrent_kernel")),
    "gru_cell": (("kernel", "recurrent_kernel", "bias"), ("kernel", "recurrent_kernel")),
    "simple_rnn_cell": (("kernel", "recurrent_kernel", "bias"), ("kernel", "recurrent_kernel")),
}
_KERNEL_CLASSES = re.compile(r"(?:dense|einsum_dense|(?:depthwise_)?conv[123]d(?:_transpose)?)")


class StoredVariable(NamedTuple):
    """A value of a weights file: its layer's group, its name there, and its shape."""

    group: str
    key: str
    shape: tuple[int, ...]


class KerasWeightsCheckpoint(Hdf5Checkpoint):
    """A Keras 3 weights file; the optimizer's variables in it are training state.

    Attributes:
        owners: The name of the layer, or of the optimizer, that each group of the file belongs to.
    """

    format = "Keras weights file (.weights.h5)"

    def _find_datasets(self, file: h5py.File) -> None:
        self.owners, datasets = _scan(file, self.location)
        if not datasets:
            raise RestoreError(f"{self.location!r} is an HDF5 file without Keras weights in it.")
        stored = [
            StoredVariable(group, key, dataset.shape)
            for (group, key), dataset in datasets.items()
            if not _is_optimizer(group)
        ]
        names = variable_keys(stored, self.owners)
        for place, dataset in datasets.items():
            self._datasets[names.get(place) or "/".join(place)] = dataset
        state = ("/".join(place) for place in datasets if _is_optimizer(place[0]))
        self.training_state = frozenset(state)


def variable_keys(
    stored: Iterable[StoredVariable], owners: Mapping[str, str]
) -> dict[tuple[str, str], str]:
    """The readable key of each stored variable, by group and name in the group.

    Args:
        stored: The variables, each layer's in order.
        owners: The layer name that belongs to a group. A group without one keeps its place in the
            file (`layers/dense_1`), which is never taken for a name.
    """
    layers: dict[str, list[StoredVariable]] = {}
    for variable in stored:
        layers.setdefault(variable.group, []).append(variable)
    prefixes = owner_prefixes(layers, owners)
    keys = {}
    for group, variables in layers.items():
        leaves = _leaf_names(group, variables)
        for variable in variables:
            keys[group, variable.key] = f"{prefixes[group]}{leaves[variable.key]}"
    return keys


def owner_prefixes(groups: Iterable[str], owners: Mapping[str, str]) -> dict[str, str]:
    """What stands in front of the variables' names of each group: its owners, each with a `/`.

    Layers that share all their names (subclassed models allow that) are numbered: `dense#1/`,
    `dense#2/`. Places in the file would change with any other layer of that class.
    """
    same: dict[str, list[str]] = {}
    for group in dict.fromkeys(groups):
        same.setdefault(_owner_chain(group, owners), []).append(group)
    prefixes = {}
    for chain, members in same.items():
        for number, group in enumerate(sorted(members, key=_natural_order), start=1):
            prefixes[group] = chain if len(members) == 1 else f"{chain[:-1]}#{number}/"
    return prefixes


def _natural_order(group: str) -> list[tuple[int, str]]:
    """`dense_2` before `dense_10`."""
    return [(len(part), part) for part in re.split(r"(\d+)", group)]


def _owner_chain(group: str, owners: Mapping[str, str]) -> str:
    """The names of the layers from the model (left out) down to `group`, each with a `/`.

    Args:
        group: A group of the file, as in `layers/functional/layers/dense_1`.
        owners: Layer name by group. Without one for `group` itself, its place stands for it.
    """
    if group and group not in owners:
        return f"{group}/"
    parts = group.split("/")
    prefixes = ("/".join(parts[: end + 1]) for end in range(len(parts)))
    return "".join(f"{owners[prefix]}/" for prefix in prefixes if prefix and prefix in owners)


def _leaf_names(group: str, variables: Sequence[StoredVariable]) -> dict[str, str]:
    """Variable names by their keys in the group: known, told by the shapes, or the keys."""
    keys = [variable.key for variable in variables]
    if sorted(keys) != sorted(str(i) for i in range(len(keys))):
        return {key: key for key in keys}  # the layer named them itself
    for names in _LEAVES.get(_class_of(group), ()):
        if len(names) == len(keys):
            return {str(i): name for i, name in enumerate(names)}
    ranks = [len(v.shape) for v in sorted(variables, key=lambda v: int(v.key))]
    kernel_like = _KERNEL_CLASSES.fullmatch(_class_of(group)) is not None
    if ranks[0] > 1 and (
        (len(ranks) == 1 and kernel_like) or (len(ranks) == 2 and ranks[1] < ranks[0])
    ):
        return {"0": "kernel", "1": "bias"}
    return {key: key for key in keys}


def _class_of(group: str) -> str:
    parent, _, last = group.rpartition("/")
    name = re.sub(r"_\d+$", "", last)
    # A recurrent layer keeps its cell under `cell`, and so says itself of which class that is.
    return f"{_class_of(parent)}_cell" if name == "cell" and parent else name


def _is_optimizer(group: str) -> bool:
    return group.partition("/")[0] == "optimizer"


def _scan(
    file: h5py.File, location: str
) -> tuple[dict[str, str], dict[tuple[str, str], h5py.Dataset]]:
    """Owner names by group, and data sets by group and name, in the order of the file."""
    owners: dict[str, str] = {}
    datasets: dict[tuple[str, str], h5py.Dataset] = {}

    def visit(path: str, item: h5py.Group | h5py.Dataset) -> None:
        # `visititems` follows hard links only, each object once: no cycle, no other file.
        group, _, last = path.rpartition("/")
        if last != "vars" or not isinstance(item, h5py.Group):
            return
        if "name" in item.attrs:
            owners[group] = text(item.attrs["name"])
        for key in sorted(item, key=lambda k: (len(k), k)):  # "10" after "9"
            datasets[group, key] = own_dataset(item, key, location)

    file.visititems(visit)
    return owners, datasets


def open_file(path: str) -> KerasWeightsCheckpoint:
    """Opens a `.weights.h5` file."""
    return KerasWeightsCheckpoint(path, h5py.File(path, "r"))


def open_directory(path: str) -> KerasWeightsCheckpoint:
    """Opens an unzipped `.keras` directory."""
    checkpoint = KerasWeightsCheckpoint(path, h5py.File(os.path.join(path, _MEMBER), "r"))
    checkpoint.format = "Keras model directory (.keras)"
    return checkpoint


def is_archive(path: str) -> bool:
    """Whether a zip archive is a `.keras` file."""
    with zipfile.ZipFile(path) as archive:
        return _MEMBER in archive.namelist()


def open_archive(path: str) -> KerasWeightsCheckpoint:
    """Opens a `.keras` file: its weights in place where they are stored, unpacked where not."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(_MEMBER)
        if member.compress_type == zipfile.ZIP_STORED:
            data: io.IOBase = _window(path, member)
        else:
            data = io.BytesIO(archive.read(member))
    checkpoint = KerasWeightsCheckpoint(path, h5py.File(data, "r"), source=data)
    checkpoint.format = "Keras model file (.keras)"
    return checkpoint


def _window(path: str, member: zipfile.ZipInfo) -> FileWindow:
    """The bytes of a stored member: behind its local header, whose length only it tells."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise RestoreError(f"{path!r}: the archive's entry for {member.filename} is damaged.")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    offset = member.header_offset + len(header) + name_length + extra_length
    if offset + member.file_size > os.path.getsize(path):
        raise RestoreError(f"{path!r}: the archive ends inside {member.filename}.")
    return FileWindow(path, offset, member.file_size)
