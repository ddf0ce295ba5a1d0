"""HDF5 files of Keras 1 and 2: weights or a whole model.

A key is the weight's own name without `:0`, below the layer that owns it in the file:
`conv2d_1/kernel`. Graph-mode Keras could rename the scope (`conv2d_1_1/kernel:0` in the layer
`conv2d_1`); keys use the layer's name unless two weights would then share a key. Names and layouts
of older versions are converted to those of Keras 3 (see `layouts`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats.hdf5.checkpoint import Hdf5Checkpoint
from keras_trainops.checkpoints.formats.hdf5.file import MAGIC, Hdf5File, open_hdf5, strings
from keras_trainops.checkpoints.formats.hdf5.structure import STRUCTURE, structure_of
from keras_trainops.checkpoints.formats.hdf5.values import (
    Values,
    own_dataset,
    own_group,
    own_item,
)
from keras_trainops.checkpoints.formats.hdf5.writer import write
from keras_trainops.checkpoints.formats.keras_legacy.layouts import Converted, convert_weights
from keras_trainops.checkpoints.storage.parts import Index
from keras_trainops.checkpoints.storage.raw import Extent
from keras_trainops.errors import RestoreError
from keras_trainops.numbering import stem

_WHOLE_MODEL = "model_weights"
_MODELS_OWN = "top_level_model_weights"  # variables of the model itself
_Weight = tuple[str, str, Values]  # layer, name and value


class LegacyHdf5Checkpoint(Hdf5Checkpoint):
    """A legacy Keras HDF5 file; a whole model's optimizer weights are training state."""

    format = "legacy Keras HDF5 file"

    def _find_datasets(self, file: Hdf5File) -> None:
        root = file.file
        weights = own_group(root, _WHOLE_MODEL, self.location) if _WHOLE_MODEL in root else root
        found = list(self._weights(weights))
        if not found:
            raise RestoreError(
                f"{self.location!r} is a legacy Keras HDF5 file without any weights."
            )
        keys = _unique_keys(found)
        datasets = {key: dataset for key, (_, _, dataset) in zip(keys, found, strict=True)}
        version = _first_attribute([weights, root], "keras_version")
        backend = _first_attribute([weights, root], "backend")
        self._entries = convert_weights(datasets, version, backend)
        self._datasets = {
            key: entry for key, entry in self._entries.items() if not isinstance(entry, Converted)
        }
        self.training_state = frozenset(self._add_optimizer(root))
        self._entries.update(self._datasets)

    def _weights(self, weights: h5py.Group) -> Iterator[_Weight]:
        owners = _attribute(weights, "layer_names")
        if _MODELS_OWN in weights:
            owners.append(_MODELS_OWN)
        for owner in owners:
            group = own_group(weights, owner, self.location)
            layer = "" if owner == _MODELS_OWN else owner
            for name in _attribute(group, "weight_names"):
                yield layer, name, own_dataset(group, name, self.location)

    def _keys(self) -> Mapping[str, Values | Converted]:
        return self._entries

    def _shape(self, key: str) -> tuple[int, ...]:
        entry = self._entries[key]
        return entry.shape if isinstance(entry, Converted) else super()._shape(key)

    def _dtype(self, key: str) -> np.dtype:
        entry = self._entries[key]
        return entry.dtype if isinstance(entry, Converted) else super()._dtype(key)

    def _extent(self, key: str) -> Extent | None:
        return None if isinstance(self._entries[key], Converted) else super()._extent(key)

    def _read(self, key: str) -> np.ndarray:
        return self._read_part(key, ())

    def _read_part(self, key: str, index: Index) -> np.ndarray:
        entry = self._entries[key]
        if isinstance(entry, Converted):
            return np.array(entry.read()[index])
        return super()._read_part(key, index)

    def _structure(self) -> Mapping[str, Any]:
        converted = [key for key in self._entries if key not in self._datasets]
        return {STRUCTURE: structure_of(self._file, self._datasets, converted)}

    def _add_optimizer(self, file: h5py.File) -> list[str]:
        """Add the optimizer's weights, and return their keys.

        Their names do not identify the variables they belong to.
        """
        optimizer = own_item(file, "optimizer_weights")
        paths: list[str] = []
        if isinstance(optimizer, h5py.Group):
            optimizer.visititems(
                lambda path, item: paths.append(path) if isinstance(item, h5py.Dataset) else None
            )
        keys = {f"optimizer_weights/{path.removesuffix(':0')}": path for path in paths}
        for key, path in keys.items():
            self._datasets[key] = own_dataset(optimizer, path, self.location)
        return list(keys)


def _first_attribute(groups: Sequence[h5py.Group], name: str) -> str:
    """Return an attribute of the first group that has it; empty if none has."""
    return next(("".join(found) for group in groups if (found := strings(group.id, name))), "")


def _attribute(group: h5py.Group, name: str) -> list[str]:
    """Return a list of strings, which Keras splits into `name0`, `name1`, … if it is long."""
    values = strings(group.id, name)
    if values is not None:
        return values
    values = []
    for number in itertools.count():
        part = strings(group.id, f"{name}{number}")
        if part is None:
            break
        values += part
    return values


def _unique_keys(found: Sequence[_Weight]) -> list[str]:
    """Return a key for each weight; the layer's name is added if keys would collide."""
    names = [(layer, name.removesuffix(":0")) for layer, name, _ in found]
    for make_key in (_key_by_layer, _key_by_name):
        keys = [make_key(layer, name) for layer, name in names]
        counts = Counter(keys)
        keys = [
            key
            if counts[key] == 1 or key.startswith(f"{layer}/")  # the name's own layer keeps it
            else f"{layer}/{name}".lstrip("/")
            for key, (layer, name) in zip(keys, names, strict=True)
        ]
        if len(set(keys)) == len(keys):
            return keys
    return [f"{layer}/{name}".lstrip("/") for layer, name in names]


def _key_by_layer(layer: str, name: str) -> str:
    scope, _, rest = name.partition("/")
    if rest and scope != layer and stem(scope) == layer:
        return f"{layer}/{rest}"
    return _key_by_name(layer, name)


def _key_by_name(layer: str, name: str) -> str:
    """Add the layer to names of one component (`dense_1_W` of Keras 1), which lack an owner."""
    return name if "/" in name or not layer else f"{layer}/{name}"


def _recognise(candidate: Candidate) -> bool:
    """Recognise HDF5 files that list their layers as Keras 1 and 2 did."""
    if not candidate.head.startswith(MAGIC):
        return False
    with h5py.File(candidate.location, "r") as file:
        places = [file, own_item(file, _WHOLE_MODEL) or file]
        return any("layer_names" in p.attrs or "layer_names0" in p.attrs for p in places)


def open_file(path: str) -> LegacyHdf5Checkpoint:
    """Open a file of weights or of a whole model."""
    return LegacyHdf5Checkpoint(path, open_hdf5(path))


FORMAT = Format("legacy Keras HDF5", _recognise, open_file, write=write)
