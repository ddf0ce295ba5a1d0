"""Keras 3 weights: `.weights.h5`, also inside `.keras` files and in shards.

The file stores each layer's variables by position (`layers/dense_1/vars/0`), and layer names as
attributes. A key consists of the names of the owning layers and of the variable (`head/kernel`).
The variable's name follows from the layer's class, or else from the shapes; if neither is
conclusive, it is the position (`my_layer/2`). The same function names the variables of a model, so
a file and a model agree on the keys of all layers that have the same names.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import h5py

from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats.hdf5.checkpoint import Hdf5Checkpoint, own_dataset
from keras_trainops.checkpoints.formats.hdf5.file import MAGIC, open_hdf5, strings
from keras_trainops.errors import RestoreError
from keras_trainops.numbering import split, stem

_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
# Names of a layer's variables by class, as the file spells it. Their number selects the entry.
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
    """A variable in a weights file: its group, its key in the group, and its shape."""

    group: str
    key: str
    shape: tuple[int, ...]


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
    """

    format = "Keras weights file (.weights.h5)"

    def __init__(
        self,
        location: str,
        file: h5py.File,
        source: io.IOBase | None = None,
        config_owners: Mapping[str, str] | None = None,
        vocabularies: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self.vocabularies = vocabularies or {}
        self._config_owners = config_owners or {}
        super().__init__(location, file, source)

    def _find_datasets(self, file: h5py.File) -> None:
        self._name_datasets(*scan(file, self.location))

    def _name_datasets(
        self, named: Mapping[str, str], datasets: Mapping[tuple[str, str], h5py.Dataset]
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
    datasets: Mapping[tuple[str, str], h5py.Dataset],
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
    for group, variables in _by_group(stored).items():
        variables = sorted(variables, key=lambda v: by_number(v.key))
        classes = tuple(stem(part) for part in group.split("/"))
        kind = (classes, tuple((v.key, tuple(v.shape)) for v in variables))
        kinds.setdefault(kind, []).append(variables)
    return kinds


def _by_group(stored: Iterable[StoredVariable]) -> dict[str, list[StoredVariable]]:
    layers: dict[str, list[StoredVariable]] = {}
    for variable in stored:
        layers.setdefault(variable.group, []).append(variable)
    return layers


def variable_keys(
    stored: Iterable[StoredVariable], owners: Mapping[str, str]
) -> dict[tuple[str, str], str]:
    """Return the readable key of each stored variable.

    Args:
        stored: The variables.
        owners: Layer name by group. A group without a name keeps its place in the file
            (`layers/dense_1`), which is never mistaken for a name.

    Returns:
        Mapping from group and key in the group to the readable key.
    """
    layers = _by_group(stored)
    prefixes = owner_prefixes(layers, owners)
    keys = {}
    for group, variables in layers.items():
        leaves = _leaf_names(_class_of(group, owners), variables)
        for variable in variables:
            keys[group, variable.key] = f"{prefixes[group]}{leaves[variable.key]}"
    return keys


def owner_prefixes(groups: Iterable[str], owners: Mapping[str, str]) -> dict[str, str]:
    """Return the prefix of each group's variables: the names of its owners, each with a `/`.

    Layers with the same names (subclassed models allow that) are numbered: `dense#1/`, `dense#2/`.
    Their places in the file would change with any other layer of the class.

    Args:
        groups: Groups of the file.
        owners: Layer name by group.

    Returns:
        Mapping from group to prefix.
    """
    same: dict[str, list[str]] = {}
    for group in dict.fromkeys(groups):
        same.setdefault(_owner_chain(group, owners), []).append(group)
    prefixes = {}
    for names, members in same.items():
        for number, group in enumerate(sorted(members, key=_natural_order), start=1):
            prefixes[group] = names if len(members) == 1 else f"{names[:-1]}#{number}/"
    return prefixes


def _natural_order(group: str) -> list[tuple[int, str]]:
    """Sort key that puts `dense_2` before `dense_10`."""
    words, numbers = split(group)
    parts = chain.from_iterable(zip(words, (*numbers, ""), strict=True))
    return [by_number(part) for part in parts]


def _owner_chain(group: str, owners: Mapping[str, str]) -> str:
    """Join the names of the layers below the model down to `group`, each followed by a `/`.

    If the group itself has no name, return its place in the file.
    """
    if group and group not in owners:
        return f"{group}/"
    return "".join(
        f"{owners[above]}/" for above in _with_parents(group) if above and above in owners
    )


def _leaf_names(class_name: str, variables: Sequence[StoredVariable]) -> dict[str, str]:
    """Return the names of a layer's variables by their keys in the group."""
    variables = sorted(variables, key=lambda v: by_number(v.key))
    keys = [variable.key for variable in variables]
    if keys != [str(i) for i in range(len(keys))]:
        return {key: key for key in keys}  # the layer chose the keys itself
    ranks = [len(variable.shape) for variable in variables]
    names = _known_names(class_name, len(keys)) or _names_by_rank(class_name, ranks) or keys
    return dict(zip(keys, names, strict=True))


def _known_names(class_name: str, count: int) -> Sequence[str]:
    return next((names for names in _LEAVES.get(class_name, ()) if len(names) == count), ())


def _names_by_rank(class_name: str, ranks: Sequence[int]) -> Sequence[str]:
    """Recognise a kernel, or a kernel and a bias of lower rank."""
    if ranks[0] < 2:
        return ()
    if len(ranks) == 1:
        return ("kernel",) if _KERNEL_CLASSES.fullmatch(class_name) else ()
    return ("kernel", "bias") if len(ranks) == 2 and ranks[1] < ranks[0] else ()


def _class_of(group: str, owners: Mapping[str, str]) -> str:
    """Derive the class of a layer, as the file spells it, from its group."""
    parent, _, last = group.rpartition("/")
    name = stem(last)
    if name != "cell" or not parent:
        return name
    # The cell of a recurrent layer is stored under `cell`, and its class follows from the layer's.
    # In a bidirectional layer, the group of the layer does not name a class, but the cell's name
    # does.
    cell = f"{_class_of(parent, owners)}_cell"
    return cell if cell in _LEAVES else stem(owners.get(group, cell))


def _is_training_state(group: str) -> bool:
    return group.partition("/")[0] in ("optimizer", "metrics")


def scan(
    file: h5py.File, location: str
) -> tuple[dict[str, str], dict[tuple[str, str], h5py.Dataset]]:
    """Find the variables of a weights file.

    Args:
        file: The open file.
        location: The path for messages.

    Returns:
        Mappings from group to layer name (empty if the file has none), and from group and key in
        the group to dataset, both in the order of the file.

    Raises:
        RestoreError: If a dataset is not stored in this file or looks damaged.
    """
    owners: dict[str, str] = {}
    datasets: dict[tuple[str, str], h5py.Dataset] = {}

    def visit(path: str) -> None:
        # `visit` follows only hard links, each object once: no cycles, no other files.
        group, _, last = path.rpartition("/")
        item: Any = file[path] if last == "vars" else None
        if not isinstance(item, h5py.Group):
            return
        # Groups without a name are kept too, as `_reliable_owners` counts them.
        owners[group] = "".join(strings(item, "name") or [])
        for key in sorted(item, key=by_number):
            datasets[group, key] = own_dataset(item, key, location)

    file.visit(visit)
    return owners, datasets


def by_number(key: str) -> tuple[int, str]:
    """Sort key that puts `10` after `9`."""
    return len(key), key


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
        if all(stem(above) in agree for above in _with_parents(group) if above in hints)
    }


def _count(kind: str, groups: Iterable[str]) -> int:
    return sum(stem(group) == kind for group in groups)


def _with_parents(group: str) -> list[str]:
    parts = group.split("/")
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]


def open_file(path: str) -> KerasWeightsCheckpoint:
    """Open a `.weights.h5` file."""
    return KerasWeightsCheckpoint(path, open_hdf5(path))


def _recognise(candidate: Candidate) -> bool:
    return candidate.head.startswith(MAGIC)


FORMAT = Format(".weights.h5", _recognise, open_file)
