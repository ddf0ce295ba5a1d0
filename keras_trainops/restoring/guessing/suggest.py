"""`suggest_rename`: suggest rename rules, which users check before they use them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import keras

from keras_trainops import numbering, paths
from keras_trainops.checkpoints.training_state import by_name
from keras_trainops.restoring.guessing.layers import (
    Layer,
    Shape,
    adaptation,
    layers_of,
    leaf_of,
    looks_like_torch,
    matching_leaves,
)
from keras_trainops.restoring.guessing.numbered_names import LayerPairs
from keras_trainops.restoring.guessing.rules import fold_rules
from keras_trainops.restoring.guessing.search import NAMES, ORDER, SHAPES, Group, Search
from keras_trainops.restoring.naming import auto
from keras_trainops.restoring.naming.table import NameTable
from keras_trainops.restoring.naming.target import Target
from keras_trainops.restoring.planning.options import Options, choose
from keras_trainops.restoring.planning.plan import require_variables
from keras_trainops.restoring.planning.report import folded
from keras_trainops.restoring.restore import Source, open_source

T = TypeVar("T")


class Ambiguity(NamedTuple):
    """Keys and paths that fit each other in more than one way.

    Attributes:
        keys: Keys of the checkpoint.
        paths: Paths of variables.
    """

    keys: tuple[str, ...]
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Suggestion:
    """The result of `suggest_rename`. `print` it for Python code to check and paste.

    Attributes:
        rules: Rename rules for `rename=`. They lead each key of `pairs` to its path, and match no
            other key.
        pairs: Key -> path. Includes keys that need no rule because they name their variable.
        by_order: Rules that rest on order: shifted or recounted numbers, neighbours, sequences, or
            whole families of layers with equal names and shapes. Check them.
        by_shape: Rules that rest on shapes alone.
        from_torch: True if the checkpoint has PyTorch's layouts, which need
            `kt.adapt.from_torch`.
        reshaped: Paths of kernels that need `kt.adapt.Reshape()`.
        ambiguous: Keys and paths that are not paired.
        missing: Paths of variables that no key fits.
        unmatched: Keys that fit no variable.
    """

    rules: Mapping[str, str] = field(default_factory=dict)
    pairs: Mapping[str, str] = field(default_factory=dict)
    by_order: tuple[str, ...] = ()
    by_shape: tuple[str, ...] = ()
    from_torch: bool = False
    reshaped: tuple[str, ...] = ()
    ambiguous: tuple[Ambiguity, ...] = ()
    missing: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as lists, dicts and strings, ready for JSON."""
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}
        ambiguous = [{"keys": list(a.keys), "paths": list(a.paths)} for a in self.ambiguous]
        return plain | {
            "rules": dict(self.rules),
            "pairs": dict(self.pairs),
            "ambiguous": ambiguous,
        }

    def __str__(self) -> str:
        return "\n".join([*self._rename_lines(), *self._adapt_lines(), *self._rest_lines()])

    def _rename_lines(self) -> list[str]:
        reason_of = dict.fromkeys(self.rules, NAMES)
        reason_of |= dict.fromkeys(self.by_shape, SHAPES) | dict.fromkeys(self.by_order, ORDER)
        lines = []
        for reason in (NAMES, SHAPES, ORDER):
            rules = [rule for rule in self.rules if reason_of[rule] == reason]
            lines += [f"    # by {reason}"] if rules else []
            lines += [f"    {_raw(rule)}: {_raw(self.rules[rule])}," for rule in rules]
        return ["rename = {", *lines, "}"] if lines else ["rename = {}"]

    def _adapt_lines(self) -> list[str]:
        lines = [f"    {_raw(path)}: kt.adapt.Reshape()," for path in self.reshaped]
        if self.from_torch:
            return ["adapt = kt.adapt.from_torch(model)"]
        return ["adapt = {", *lines, "}"] if lines else []

    def _rest_lines(self) -> list[str]:
        lines = [
            f"# ambiguous: {folded(group.paths)} could be {folded(group.keys)}"
            for group in self.ambiguous
        ]
        lines += [f"# without a key: {folded(self.missing)}"] if self.missing else []
        lines += [f"# without a variable: {folded(self.unmatched)}"] if self.unmatched else []
        return [_on_one_line(line) for line in lines]


def _on_one_line(comment: str) -> str:
    """Escape line ends in names, because code after them would be outside the comment."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in comment)


def _raw(text: str) -> str:
    plain = '"' not in text and not text.endswith("\\") and text.isprintable()
    return f'r"{text}"' if plain else repr(text)


def suggest_rename(
    model: keras.Model,
    source: Source,
    *,
    include: paths.Patterns = None,
    exclude: paths.Patterns = None,
) -> Suggestion:
    r"""Suggest rename rules that lead the keys of `source` to the variables of `model`.

    The suggestion rests on names, shapes and order; no tensor is read. Layers are paired as a
    whole: each tensor of one layer needs a counterpart in the other, with a name that means the
    same (`weight`, `kernel`) and a shape that fits, unchanged or in PyTorch's layout. Families of
    names that one rule can pair (`layer1.0.conv1`, `layer1.1.conv1`, …) come first. Ambiguous keys
    are listed and not paired. Rules that rest on order are marked: check them, and compare the
    outputs of the models once.

    Args:
        model: A built Keras model.
        source: The source, as for `restore`.
        include: Patterns (see `keras_trainops.paths`) of the variables to find keys for; None for
            all.
        exclude: Patterns of the variables to leave out.

    Returns:
        The suggestion. `print` it, and use its `rules` as `rename=`. In a template, `\g<1+1>` is
        the number in group 1, plus one.

    Raises:
        RestoreError: If the source cannot be read or the model has no variables yet.
        ValueError: If an argument has the wrong type or value.

    Example:
        >>> import keras, numpy as np, keras_trainops as kt
        >>> layers = [keras.layers.Dense(n, name=f"block{i}_up") for i, n in enumerate((5, 6, 7))]
        >>> model = keras.Sequential([keras.Input((4,)), *layers])
        >>> theirs = {f"encoder/layer/{i}/up/w": np.ones((i + 4, i + 5)) for i in range(3)}
        >>> print(kt.suggest_rename(model, theirs))
        rename = {
            # by names and shapes
            r"encoder/layer/(\d+)/up/w": r"block\1_up/kernel",
        }
        # without a key: block{0..2}_up/bias
    """
    require_variables(model)
    with open_source(source, model) as checkpoint:
        table = NameTable(model, checkpoint)
        problems = choose(table.targets, Options(include=include, exclude=exclude))
        if problems:
            raise ValueError("\n".join(problems))
        targets = [target for target in table.targets if target.selected]
        variables = {_name(table, target): target.shape for target in targets}
        # Mappings of arrays have no training state; only names show it.
        state = checkpoint.training_state | by_name(checkpoint)
        keys = {key: checkpoint.shape(key) for key in checkpoint if key not in state}
        found = table.pair(checkpoint).targets
        by_own_name = {
            key: _name(table, found[key]) for key in keys if key in found and found[key].selected
        }
        return _suggest(variables, keys, by_own_name)


def _name(table: NameTable, target: Target) -> str:
    """Return the shortest name that leads to this variable and no other."""
    short = target.short_path
    return short if table.find(short) == [target] else target.path


def _suggest(
    variables: Mapping[str, Shape], keys: Mapping[str, Shape], by_own_name: Mapping[str, str]
) -> Suggestion:
    """Suggest rules for names and shapes.

    Args:
        variables: The shape of each variable by path.
        keys: The shape of each tensor by key.
        by_own_name: Key -> path, for keys that lead to a variable without a rule.
    """
    kept = _without_coincidences(variables, keys, by_own_name)
    torch = _has_torch_layouts(variables, keys)
    search = _begun_search(
        _without(variables, set(kept.values())),
        _without(keys, kept),
        torch,
        ordered=list(keys) != sorted(keys),
    )
    ambiguous = tuple(_ambiguity(search, group) for group in search.run())
    found = _tensor_pairs(search)
    rules = {why: fold_rules(_changed(found[why], by_own_name), keys) for why in found}

    def needed(key: str, path: str) -> str | None:
        return adaptation(leaf_of(path, "/"), keys[key], variables[path], torch)

    pairs = {key: path for key, path in kept.items() if needed(key, path) is not None}
    pairs |= found[NAMES] | found[SHAPES] | found[ORDER]
    return Suggestion(
        rules=MappingProxyType(rules[NAMES] | rules[SHAPES] | rules[ORDER]),
        pairs=MappingProxyType(pairs),
        by_order=tuple(rules[ORDER]),
        by_shape=tuple(rules[SHAPES]),
        from_torch=torch,
        reshaped=tuple(path for key, path in pairs.items() if needed(key, path) == "Reshape"),
        ambiguous=ambiguous,
        missing=tuple(_without(variables, {*pairs.values(), *_all_paths(ambiguous)})),
        unmatched=tuple(_without(keys, {*pairs, *_all_keys(ambiguous)})),
    )


def _without(table: Mapping[str, T], names: Collection[str]) -> dict[str, T]:
    return {name: entry for name, entry in table.items() if name not in names}


def _changed(pairs: Mapping[str, str], by_own_name: Mapping[str, str]) -> dict[str, str]:
    return {key: path for key, path in pairs.items() if by_own_name.get(key) != path}


def _all_keys(ambiguous: Iterable[Ambiguity]) -> Iterable[str]:
    return itertools.chain.from_iterable(group.keys for group in ambiguous)


def _all_paths(ambiguous: Iterable[Ambiguity]) -> Iterable[str]:
    return itertools.chain.from_iterable(group.paths for group in ambiguous)


def _without_coincidences(
    variables: Mapping[str, Shape], keys: Mapping[str, Shape], by_own_name: Mapping[str, str]
) -> dict[str, str]:
    """Drop pairs of equal names if siblings are numbered from a different start.

    With `dense_1`, `dense_2`, `dense_3` and `dense`, `dense_1`, `dense_2`, each side has a number
    that the other lacks. If only one side has more numbers, equal names are trusted.

    Args:
        variables: The variables by path.
        keys: The tensors by key.
        by_own_name: Key -> path, for keys that lead to a variable without a rule.
    """
    ours = numbering.sibling_numbers(map(_owner, variables))
    theirs = numbering.sibling_numbers(_owner(by_own_name.get(key, key)) for key in keys)
    disagreeing = {
        place
        for place, numbers in ours.items()
        if numbers - theirs.get(place, numbers) and theirs[place] - numbers
    }
    return {
        key: path
        for key, path in by_own_name.items()
        if disagreeing.isdisjoint(_numbered_places(_owner(path)))
    }


def _owner(path: str) -> str:
    return path.rpartition("/")[0]


def _numbered_places(name: str) -> list[numbering.Place]:
    return [place for place, _ in numbering.automatic_numbers(name)]


def _begun_search(
    variables: Mapping[str, Shape], keys: Mapping[str, Shape], torch: bool, ordered: bool
) -> Search:
    """Return a search in which layers are settled that differ only in automatic numbers.

    Args:
        variables: The shape of each variable by path.
        keys: The shape of each tensor by key.
        torch: If True, the checkpoint has PyTorch's layouts.
        ordered: If True, the order of the checkpoint is not just alphabetical.
    """
    theirs = {layer.name: layer for layer in layers_of(keys, "/.")}
    ours = {layer.name: layer for layer in layers_of(variables, "/")}
    search = Search(theirs, ours, torch, ordered)
    certain = {key: path for path, key in auto.pair(variables, keys).key_of.items()}
    for pairs in _renumbered_layers(search, certain):
        search.accept(pairs, search.reason(pairs))
    return search


def _renumbered_layers(search: Search, certain: Mapping[str, str]) -> list[LayerPairs]:
    """Return the pairs of layers that differ only in automatic numbers, by kind of name.

    `auto` also pairs tensors by their last components, and ignores the other tensors of a layer.
    Those pairs are left to the search.

    Args:
        search: The layers.
        certain: Key -> path, as `auto` pairs them.
    """
    their_numbers = numbering.sibling_numbers(search.theirs)
    our_numbers = numbering.sibling_numbers(search.ours)
    kinds: dict[tuple[str, ...], LayerPairs] = {}
    for name, other in _whole_layers(search, certain).items():
        there, here = _numbered_places(name), _numbered_places(other)
        kind = tuple(stem for _, stem in here)
        if kind == tuple(stem for _, stem in there) and all(
            len(their_numbers[their_place]) == len(our_numbers[our_place])
            for their_place, our_place in zip(there, here, strict=True)
        ):
            kinds.setdefault(kind, {})[name] = other
    return list(kinds.values())


def _whole_layers(search: Search, certain: Mapping[str, str]) -> LayerPairs:
    """Return the pairs of layers whose tensors are all paired with each other."""
    owner_of: dict[str, str] = {}
    for name, layer in search.ours.items():
        owner_of |= dict.fromkeys(layer.tensors.values(), name)
    found = {}
    for name, layer in search.theirs.items():
        first = next(iter(layer.tensors.values()))
        if first in certain:
            other = owner_of[certain[first]]
            pairs = matching_leaves(layer, search.ours[other], search.torch)
            if pairs is not None and pairs.items() <= certain.items():
                found[name] = other
    return found


def _tensor_pairs(search: Search) -> dict[str, dict[str, str]]:
    """Return key -> path of all tensors in settled layers, by the reason."""
    found: dict[str, dict[str, str]] = {NAMES: {}, SHAPES: {}, ORDER: {}}
    for name, layer in search.theirs.items():
        if name in search.found:
            other = search.ours[search.found[name]]
            found[search.reasons[name]] |= matching_leaves(layer, other, search.torch) or {}
    return found


def _ambiguity(search: Search, group: Group) -> Ambiguity:
    return Ambiguity(
        _tensors([search.theirs[name] for name in group.theirs]),
        _tensors([search.ours[name] for name in group.ours]),
    )


def _tensors(layers: Iterable[Layer]) -> tuple[str, ...]:
    return tuple(itertools.chain.from_iterable(layer.tensors.values() for layer in layers))


def _has_torch_layouts(variables: Mapping[str, Shape], keys: Mapping[str, Shape]) -> bool:
    """Return True if more layers fit in PyTorch's layouts; if equally many do, names decide."""
    theirs = layers_of(keys, "/.")
    kinds = {layer.leaves: layer for layer in layers_of(variables, "/")}.values()

    def fitting(torch: bool) -> int:
        return sum(any(matching_leaves(t, o, torch) is not None for o in kinds) for t in theirs)

    unchanged, transposed = fitting(False), fitting(True)
    return looks_like_torch(keys) if unchanged == transposed else transposed > unchanged
