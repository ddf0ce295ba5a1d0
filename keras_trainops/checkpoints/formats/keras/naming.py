"""The keys of Keras 3 weights: names of owners and variables, from their places in the file.

A key consists of the names of the owning layers and of the variable (`head/kernel`). The variable's
name follows from the layer's class, or else from the shapes; if neither is conclusive, it is the
position (`my_layer/2`). The same function names the variables of a model, so a file and a model
agree on the keys of all layers that have the same names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

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


def by_group(stored: Iterable[StoredVariable]) -> dict[str, list[StoredVariable]]:
    """Return the variables of each group, in order."""
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
    layers = by_group(stored)
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
        if len(members) == 1:
            prefixes[members[0]] = names
            continue
        for number, group in enumerate(sorted(members, key=_natural_order), start=1):
            prefixes[group] = f"{names[:-1]}#{number}/"
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
        f"{owners[above]}/" for above in with_parents(group) if above and above in owners
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


def by_number(key: str) -> tuple[int, str]:
    """Sort key that puts `10` after `9`."""
    return len(key), key


def with_parents(group: str) -> list[str]:
    """Return the groups that lead to a group, from the outermost, and the group itself."""
    parts = group.split("/")
    return ["/".join(parts[: end + 1]) for end in range(len(parts))]
