"""Keras 3 weights: `.weights.h5`, also inside `.keras` files and in shards.

The file stores each layer's variables by position (`layers/dense_1/vars/0`), and layer names as
attributes. `naming.py` makes keys of them.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats.hdf5.checkpoint import Hdf5Checkpoint
from keras_trainops.checkpoints.formats.hdf5.file import MAGIC, Hdf5File, open_hdf5, strings
from keras_trainops.checkpoints.formats.hdf5.values import Values, own_values
from keras_trainops.checkpoints.formats.hdf5.writer import write
from keras_trainops.checkpoints.formats.keras.naming import (
    StoredVariable,
    by_group,
    by_number,
    variable_keys,
    with_parents,
)
from keras_trainops.errors import RestoreError
from keras_trainops.numbering import stem


class KerasWeightsCheckpoint(Hdf5Checkpoint):
    """A Keras 3 weights file; variables of the optimizer and of metrics are training state.

    Args:
        location: The path, as the user gave it.
        file: The open file.
        source: The file object that `file` was opened from, if any.
        config_owners: Names from the model's configuration, for files that store none.
        vocabularies: See below.

    Attributes:
        owners: Name of the layer or optimizer by group of the file.
        vocabularies: Vocabulary by name of the lookup layer, if the file is a whole model.
        settings: What each layer computes, by name of the layer, if the file is a whole model.
        whole_model: The structure of the model beside the weights, if the file is a whole model.
    """

    settings: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    whole_model: Mapping[str, Any] = MappingProxyType({})

    format = "Keras weights file (.weights.h5)"

    def __init__(
        self,
        location: str,
        file: Hdf5File,
        source: io.IOBase | None = None,
        config_owners: Mapping[str, str] | None = None,
        vocabularies: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.vocabularies = vocabularies or {}
        self._config_owners = config_owners or {}
        super().__init__(location, file, source)

    def _find_datasets(self, file: Hdf5File) -> None:
        self._name_datasets(*scan(file, self.location))

    def _name_datasets(
        self, named: Mapping[str, str], datasets: Mapping[tuple[str, str], Values]
    ) -> None:
        if not datasets:
            raise RestoreError(f"{self.location!r} is an HDF5 file without Keras weights in it.")
        self.owners = {group: name for group, name in named.items() if name}
        if not self.owners:
            self.owners = _reliable_owners(self._config_owners, named)
        self._stored = _stored_weights(datasets)
        names = variable_keys(self._stored, self.owners)
        for place, dataset in datasets.items():
            self._datasets[names.get(place) or "/".join(place)] = dataset
        state = ("/".join(place) for place in datasets if _is_training_state(place[0]))
        self.training_state = frozenset(state)

    def _structure(self) -> Mapping[str, Any]:
        return {**super()._structure(), **self.whole_model}

    def keys_of_model(
        self, stored: Sequence[StoredVariable], owners: Mapping[str, str]
    ) -> dict[tuple[str, str], str]:
        """Return the key in this file of each variable of a model.

        If the file has no layer names, a layer is found if its class and shapes are unique in the
        file and in the model. Its number is never used, as it depends on the other layers.

        Args:
            stored: The model's variables, as saving the model would store them.
            owners: Layer name by group of the model.

        Returns:
            Mapping from group and key in the group to the key in this file.
        """
        keys = variable_keys(stored, owners)
        if not self.owners:
            theirs = variable_keys(self._stored, {})
            for variable, other in _paired_by_shapes(stored, self._stored):
                keys[variable.group, variable.key] = theirs[other.group, other.key]
        return keys


def _stored_weights(
    datasets: Mapping[tuple[str, str], Values],
) -> list[StoredVariable]:
    return [
        StoredVariable(group, key, dataset.shape)
        for (group, key), dataset in datasets.items()
        if not _is_training_state(group)
    ]


def _paired_by_shapes(
    ours: Sequence[StoredVariable], theirs: Sequence[StoredVariable]
) -> Iterator[tuple[StoredVariable, StoredVariable]]:
    """Pair the variables of layers whose class and shapes are unique on both sides."""
    sides = [_by_class_and_shapes(side) for side in (ours, theirs)]
    for kind, groups in sides[0].items():
        others = sides[1].get(kind, [])
        if len(groups) == len(others) == 1:
            yield from zip(groups[0], others[0], strict=True)


def _by_class_and_shapes(
    stored: Sequence[StoredVariable],
) -> dict[Hashable, list[list[StoredVariable]]]:
    kinds: dict[Hashable, list[list[StoredVariable]]] = {}
    for group, variables in by_group(stored).items():
        variables = sorted(variables, key=lambda v: by_number(v.key))
        classes = tuple(stem(part) for part in group.split("/"))
        kind = (classes, tuple((v.key, tuple(v.shape)) for v in variables))
        kinds.setdefault(kind, []).append(variables)
    return kinds


def _is_training_state(group: str) -> bool:
    return group.partition("/")[0] in ("optimizer", "metrics")


def scan(file: Hdf5File, location: str) -> tuple[dict[str, str], dict[tuple[str, str], Values]]:
    """Find the variables of a weights file.

    Args:
        file: The open file.
        location: The path for messages.

    Returns:
        Mappings from group to layer name (empty if the file has none), and from group and key in
        the group to values, both in the order of the file.

    Raises:
        RestoreError: If a dataset is not stored in this file or looks damaged.
    """
    owners: dict[str, str] = {}
    found: dict[tuple[str, str], Values] = {}
    for path, names in file.groups.items():
        group, _, last = path.rpartition("/")
        if last != "vars":
            continue
        # Groups without a name are kept too, as `_reliable_owners` counts them.
        owners[group] = "".join(strings(file.file.id, "name", path) or [])
        for key in sorted(names, key=by_number):
            place = f"{path}/{key}"
            found[group, key] = own_values(file.datasets.get(place), f"/{place}", location)
    return owners, found


def _reliable_owners(hints: Mapping[str, str], groups: Collection[str]) -> dict[str, str]:
    """Return the names of a configuration that certainly belong to a group of the file.

    A group is numbered among the siblings of its class. If Keras also reached a layer by another
    path, it did not count it, and later numbers name other layers. So the names of a class are
    used only if the file has as many groups of that class.

    Args:
        hints: Layer name by group, from the configuration.
        groups: The groups of the file.
    """
    counted = {kind: _count(kind, groups) for kind in {stem(group) for group in hints}}
    expected = {kind: _count(kind, hints) for kind in counted}
    agree = {kind for kind in counted if counted[kind] == expected[kind]}
    return {
        group: name
        for group, name in hints.items()
        if all(stem(above) in agree for above in with_parents(group) if above in hints)
    }


def _count(kind: str, groups: Iterable[str]) -> int:
    return sum(stem(group) == kind for group in groups)


def open_file(path: str) -> KerasWeightsCheckpoint:
    """Open a `.weights.h5` file."""
    return KerasWeightsCheckpoint(path, open_hdf5(path))


def _recognise(candidate: Candidate) -> bool:
    return candidate.head.startswith(MAGIC)


FORMAT = Format(".weights.h5", _recognise, open_file, ".weights.h5", write)
