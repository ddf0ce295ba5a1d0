"""Keras 3 weights: `.weights.h5`, as it also lies inside `.keras` files and in shards.

The file keeps each layer's variables by position (`layers/dense_1/vars/0`), and the layers' names
as attributes. Keys are made of the names: the owning layers', then the variable's, told by the
class of the layer where the file says it and by the shapes otherwise (`head/kernel`), or its
position where neither tells (`my_layer/2`). The same function names the variables of a model, so
that a file and a model agree on every key whose layers agree.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import h5py

from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats.hdf5.checkpoint import Hdf5Checkpoint, own_dataset
from keras_trainops.checkpoints.formats.hdf5.file import MAGIC, open_hdf5, strings
from keras_trainops.errors import RestoreError
from keras_trainops.numbering import split, stem

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
    """A Keras 3 weights file; the optimizer's and metrics' variables are training state.

    Attributes:
        owners: The name of the layer, or of the optimizer, that each group of the file belongs to.
        vocabularies: The entries of lookup layers by index, by the layer's name, where the file
            is that of a whole model.
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
            self.owners = _confirmed(self._config_owners, named)
        self._stored = [
            StoredVariable(group, key, dataset.shape)
            for (group, key), dataset in datasets.items()
            if not _is_training_state(group)
        ]
        names = variable_keys(self._stored, self.owners)
        for place, dataset in datasets.items():
            self._datasets[names.get(place) or "/".join(place)] = dataset
        state = ("/".join(place) for place in datasets if _is_training_state(place[0]))
        self.training_state = frozenset(state)

    def keys_of_model(
        self, stored: Sequence[StoredVariable], owners: Mapping[str, str]
    ) -> dict[tuple[str, str], str]:
        """The key in this file of each variable of a model, by group and name in the group.

        In a file without names a layer counts as found where it is the only one of its class and
        shapes, in the file and in the model: never by its number, which changes with its siblings.

        Args:
            stored: The model's variables, as they would be stored were the model saved now.
            owners: The layer name that belongs to a group.
        """
        keys = variable_keys(stored, owners)
        if not self.owners:
            theirs = variable_keys(self._stored, {})
            for variable, other in _told_by_shapes(stored, self._stored):
                keys[variable.group, variable.key] = theirs[other.group, other.key]
        return keys


def _told_by_shapes(
    ours: Sequence[StoredVariable], theirs: Sequence[StoredVariable]
) -> Iterator[tuple[StoredVariable, StoredVariable]]:
    """Pairs of variables whose layers are, on each side, alone with their class and shapes."""
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
    """The readable key of each stored variable, by group and name in the group.

    Args:
        stored: The variables, each layer's in order.
        owners: The layer name that belongs to a group. A group without one keeps its place in the
            file (`layers/dense_1`), which is never taken for a name.
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
    words, numbers = split(group)
    return [(len(part), part) for pair in zip(words, (*numbers, ""), strict=True) for part in pair]


def _owner_chain(group: str, owners: Mapping[str, str]) -> str:
    """The names of the layers from the model (left out) down to `group`, each with a `/`.

    Args:
        group: A group of the file, as in `layers/functional/layers/dense_1`.
        owners: Layer name by group. Without one for `group` itself, its place stands for it.
    """
    if group and group not in owners:
        return f"{group}/"
    return "".join(
        f"{owners[above]}/" for above in _with_parents(group) if above and above in owners
    )


def _leaf_names(class_name: str, variables: Sequence[StoredVariable]) -> dict[str, str]:
    """Variable names by their keys in the group: known, told by the shapes, or the keys."""
    keys = [variable.key for variable in variables]
    if sorted(keys) != sorted(str(i) for i in range(len(keys))):
        return {key: key for key in keys}  # the layer named them itself
    for names in _LEAVES.get(class_name, ()):
        if len(names) == len(keys):
            return {str(i): name for i, name in enumerate(names)}
    ranks = [len(v.shape) for v in sorted(variables, key=lambda v: int(v.key))]
    kernel_like = _KERNEL_CLASSES.fullmatch(class_name) is not None
    if ranks[0] > 1 and (
        (len(ranks) == 1 and kernel_like) or (len(ranks) == 2 and ranks[1] < ranks[0])
    ):
        return {"0": "kernel", "1": "bias"}
    return {key: key for key in keys}


def _class_of(group: str, owners: Mapping[str, str]) -> str:
    """The class of a layer as the file spells it, as far as its place tells."""
    parent, _, last = group.rpartition("/")
    name = stem(last)
    if name != "cell" or not parent:
        return name
    # A recurrent layer keeps its cell under `cell`, and so says itself of which class that is.
    # In a bidirectional layer it has no class itself, but its cell then has the class for a name.
    cell = f"{_class_of(parent, owners)}_cell"
    return cell if cell in _LEAVES else stem(owners.get(group, cell))


def _is_training_state(group: str) -> bool:
    return group.partition("/")[0] in ("optimizer", "metrics")


def scan(
    file: h5py.File, location: str
) -> tuple[dict[str, str], dict[tuple[str, str], h5py.Dataset]]:
    """Owner names by group, and data sets by group and name, in the order of the file."""
    owners: dict[str, str] = {}
    datasets: dict[tuple[str, str], h5py.Dataset] = {}

    def visit(path: str) -> None:
        # `visit` follows hard links only, each object once: no cycle, no other file.
        group, _, last = path.rpartition("/")
        item = file[path] if last == "vars" else None
        if not isinstance(item, h5py.Group):
            return
        # A group without a name is kept as well: it counts where layers are counted.
        owners[group] = "".join(strings(item, "name") or [])
        for key in sorted(item, key=by_number):
            datasets[group, key] = own_dataset(item, key, location)

    file.visit(visit)
    return owners, datasets


def by_number(key: str) -> tuple[int, str]:
    """Sorts variables by position: `10` after `9`."""
    return len(key), key


def _confirmed(hints: Mapping[str, str], groups: Collection[str]) -> dict[str, str]:
    """Those names of a configuration that stand for a place in the file beyond doubt.

    A layer's place is its class and number among its siblings. A layer that the writer reached by
    another way too was not counted, so that the numbers behind it would name other layers: the
    configuration counts for a class of siblings only where the file has just as many.
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
    """Opens a `.weights.h5` file."""
    return KerasWeightsCheckpoint(path, open_hdf5(path))


def _recognise(candidate: Candidate) -> bool:
    return candidate.head.startswith(MAGIC)


FORMAT = Format(".weights.h5", _recognise, open_file)
