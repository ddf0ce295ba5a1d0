"""Legacy Keras HDF5, as Keras 1 and 2 wrote it: weights alone or a whole model.

Keys are the weights' own names without `:0`, under the layer that the file says owns them:
`conv2d_1/kernel`. Graph-mode Keras renamed scopes behind the layer's back (`conv2d_1_1/kernel:0` in
the layer `conv2d_1`): the layer's name is taken, unless two weights would then share a key. What
older versions named or laid out otherwise is given as it is today (see `legacy_layouts`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import h5py
import numpy as np

from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats.hdf5.checkpoint import (
    Hdf5Checkpoint,
    own_dataset,
    own_group,
    own_item,
)
from keras_trainops.checkpoints.formats.hdf5.file import MAGIC, open_hdf5, strings
from keras_trainops.checkpoints.formats.keras_legacy.layouts import Converted, todays
from keras_trainops.checkpoints.storage.raw import Extent
from keras_trainops.errors import RestoreError
from keras_trainops.numbering import stem

_WHOLE_MODEL = "model_weights"
_MODELS_OWN = "top_level_model_weights"  # variables that belong to the model and to no layer


class LegacyHdf5Checkpoint(Hdf5Checkpoint):
    """A legacy Keras HDF5 file; a whole model's optimizer weights are training state."""

    format = "legacy Keras HDF5 file"

    def _find_datasets(self, file: h5py.File) -> None:
        weights = own_group(file, _WHOLE_MODEL, self.location) if _WHOLE_MODEL in file else file
        owners = _attribute(weights, "layer_names")
        if _MODELS_OWN in weights:
            owners.append(_MODELS_OWN)
        found: list[tuple[str, str, h5py.Dataset]] = []
        for owner in owners:
            group = own_group(weights, owner, self.location)
            layer = "" if owner == _MODELS_OWN else owner
            for name in _attribute(group, "weight_names"):
                found.append((layer, name, own_dataset(group, name, self.location)))
        if not found:
            raise RestoreError(f"{self.location!r} is a legacy Keras HDF5 file without any weight.")
        keys = _distinct(found)
        datasets = {key: dataset for key, (_, _, dataset) in zip(keys, found, strict=True)}
        places = (weights, file)
        version, backend = (_first(places, name) for name in ("keras_version", "backend"))
        self._entries = todays(datasets, version, backend)
        self._datasets = {
            key: entry for key, entry in self._entries.items() if not isinstance(entry, Converted)
        }
        self.training_state = frozenset(self._add_optimizer(file))
        self._entries.update(self._datasets)

    def _keys(self) -> Mapping[str, h5py.Dataset | Converted]:
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
        entry = self._entries[key]
        if not isinstance(entry, Converted):
            return super()._read(key)
        return entry.read()

    def _add_optimizer(self, file: h5py.File) -> list[str]:
        """Adds the optimizer's weights, whose names say nothing of the variables they belong to."""
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


def _first(places: Sequence[h5py.Group], name: str) -> str:
    """An attribute that the weights of a whole model have, or else the file."""
    return next(("".join(found) for place in places if (found := strings(place, name))), "")


def _attribute(group: h5py.Group, name: str) -> list[str]:
    """A list of strings, which Keras splits (`name0`, `name1`, …) where it is long."""
    values = strings(group, name)
    if values is not None:
        return values
    values = []
    for number in itertools.count():
        part = strings(group, f"{name}{number}")
        if part is None:
            break
        values += part
    return values


def _distinct(found: Sequence[tuple[str, str, h5py.Dataset]]) -> list[str]:
    """A key for each weight; weights whose keys would collide are told apart by their layers."""
    names = [(layer, name.removesuffix(":0")) for layer, name, _ in found]
    for make_key in (_key_by_layer, _key_by_name):
        keys = [make_key(layer, name) for layer, name in names]
        counts = Counter(keys)
        keys = [
            key
            if counts[key] == 1 or key.startswith(f"{layer}/")  # its own layer keeps the name
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
    """A name of one component (Keras 1: `dense_1_W`) says nothing of its owner."""
    return name if "/" in name or not layer else f"{layer}/{name}"


def _recognise(candidate: Candidate) -> bool:
    """Whether an HDF5 file lists its layers as Keras 1 and 2 did."""
    if not candidate.head.startswith(MAGIC):
        return False
    with h5py.File(candidate.location, "r") as file:
        places = [file, own_item(file, _WHOLE_MODEL) or file]
        return any("layer_names" in p.attrs or "layer_names0" in p.attrs for p in places)


def open_file(path: str) -> LegacyHdf5Checkpoint:
    """Opens a legacy weights or whole-model file."""
    return LegacyHdf5Checkpoint(path, open_hdf5(path))


FORMAT = Format("legacy Keras HDF5", _recognise, open_file)
