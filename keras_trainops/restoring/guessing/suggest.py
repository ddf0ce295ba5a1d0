"""`suggest_rename`: rename rules for a model and a checkpoint, to be read before they are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

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
from keras_trainops.restoring.guessing.rules import fold_rules
from keras_trainops.restoring.guessing.search import NAMES, ORDER, SHAPES, Group, Search
from keras_trainops.restoring.naming import auto
from keras_trainops.restoring.naming.table import NameTable
from keras_trainops.restoring.naming.target import Target
from keras_trainops.restoring.planning.options import Options, choose
from keras_trainops.restoring.planning.plan import require_variables
from keras_trainops.restoring.planning.report import folded
from keras_trainops.restoring.restore import Source, open_source


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
    """What `suggest_rename` found. `print` it for Python to be checked and pasted.

    Attributes:
        rules: Rename rules, for `rename=`. Each key of `pairs` is led to its path, no other key
            anywhere.
        pairs: Key -> path, of all that was found; also of keys that need no rule, as they are
            paths.
        by_order: Those of the rules that rest on order: numbers that are shifted or counted anew,
            neighbours, sequences or whole families of layers, where names and shapes do not tell
            them apart. Check them.
        by_shape: Those of the rules that rest on shapes alone.
        from_torch: Whether the checkpoint has PyTorch's layouts, so that `kt.adapt.from_torch` is
            needed.
        reshaped: Paths of the kernels that need `kt.adapt.Reshape()`.
        ambiguous: What was not decided.
        missing: Paths of variables that nothing fits.
        unmatched: Keys that fit nothing.
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
        """All fields as plain lists, dicts and strings, as JSON takes them."""
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
    """Names may have any character in them; behind a line's end a comment would be Python."""
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
    r"""Suggests rename rules that lead the keys of `source` to the variables of `model`.

    It looks at names, shapes and order, and reads no tensor. Layers are taken as a whole: each
    tensor of the one needs a counterpart in the other, under a name that means the same (`weight`,
    `kernel`), of a shape that fits, as it is or in PyTorch's layout. What one rule does for a
    family of names (`layer1.0.conv1`, `layer1.1.conv1`, …) goes first. What several could claim is
    listed and not decided. Rules that rest on order say so: check them, and compare outputs once.

    Args:
        model: A built Keras model.
        source: As for `restore`.
        include: Patterns (see `keras_trainops.paths`) of the variables to find keys for; None: all.
        exclude: Patterns of variables to leave out.

    Returns:
        The suggestion: `print` it; its `rules` can be used as `rename=`. In a template,
        `\g<1+1>` is the number in group 1, plus one.

    Raises:
        RestoreError: If the source cannot be read or the model has no variables yet.
        ValueError: If an argument is not of the kind it must be.

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
        state = checkpoint.training_state | by_name(checkpoint)  # of arrays names alone tell
        keys = {key: checkpoint.shape(key) for key in checkpoint if key not in state}
        found = table.pair(checkpoint).targets
        itself = {
            key: _name(table, found[key]) for key in keys if key in found and found[key].selected
        }
        return _suggest(variables, keys, itself)


def _name(table: NameTable, target: Target) -> str:
    """Return the shortest name that leads to this variable and no other."""
    short = target.short_path
    return short if table.find(short) == [target] else target.path


def _suggest(
    variables: Mapping[str, Shape], keys: Mapping[str, Shape], itself: Mapping[str, str]
) -> Suggestion:
    """The suggestion for names and shapes; `itself` are keys that lead to a path without a rule."""
    by_itself, itself = itself, _not_renumbered(variables, keys, itself)
    torch = _has_torch_layouts(
        layers_of(keys, "/."), layers_of(variables, "/"), looks_like_torch(keys)
    )
    taken = set(itself.values())
    search = _search(
        {path: shape for path, shape in variables.items() if path not in taken},
        {key: shape for key, shape in keys.items() if key not in itself},
        torch,
        ordered=list(keys) != sorted(keys),
    )
    ambiguous = tuple(_ambiguity(search, group) for group in search.run())
    pairs_by: dict[str, dict[str, str]] = {NAMES: {}, SHAPES: {}, ORDER: {}}
    for name, layer in search.theirs.items():
        if name in search.found:
            found = matching_leaves(layer, search.ours[search.found[name]], torch) or {}
            pairs_by[search.reasons[name]] |= found
    rules_by = {
        reason: fold_rules({k: p for k, p in found.items() if by_itself.get(k) != p}, keys)
        for reason, found in pairs_by.items()
    }

    def how(key: str, path: str) -> str | None:
        return adaptation(leaf_of(path, "/"), keys[key], variables[path], torch)

    pairs = {key: path for key, path in itself.items() if how(key, path) is not None}
    pairs |= pairs_by[NAMES] | pairs_by[SHAPES] | pairs_by[ORDER]
    told = {*pairs, *(key for group in ambiguous for key in group.keys)}
    claimed = {*pairs.values(), *(path for group in ambiguous for path in group.paths)}
    return Suggestion(
        rules=MappingProxyType(rules_by[NAMES] | rules_by[SHAPES] | rules_by[ORDER]),
        pairs=MappingProxyType(pairs),
        by_order=tuple(rules_by[ORDER]),
        by_shape=tuple(rules_by[SHAPES]),
        from_torch=torch,
        reshaped=tuple(path for key, path in pairs.items() if how(key, path) == "Reshape"),
        ambiguous=ambiguous,
        missing=tuple(path for path in variables if path not in claimed),
        unmatched=tuple(key for key in keys if key not in told),
    )


def _not_renumbered(
    variables: Mapping[str, Shape], keys: Mapping[str, Shape], itself: Mapping[str, str]
) -> dict[str, str]:
    """`itself` without names that are the same by accident: of siblings counted from elsewhere.

    Of `dense_1`, `dense_2`, `dense_3` and `dense`, `dense_1`, `dense_2`, each side has a number
    that the other has not; where one side merely has more of them, the names can be believed.
    """
    ours = numbering.siblings(map(_owner, variables))
    theirs = numbering.siblings(_owner(itself.get(key, key)) for key in keys)
    apart = {
        place
        for place, numbers in ours.items()
        if numbers - theirs.get(place, numbers) and theirs[place] - numbers
    }
    return {
        key: path
        for key, path in itself.items()
        if apart.isdisjoint(place for place, _ in numbering.automatic_places(_owner(path)))
    }


def _owner(path: str) -> str:
    return path.rpartition("/")[0]


def _search(
    variables: Mapping[str, Shape], keys: Mapping[str, Shape], torch: bool, ordered: bool
) -> Search:
    """A search that begins with what is the same once automatic numbers are counted anew."""
    theirs = {layer.name: layer for layer in layers_of(keys, "/.")}
    ours = {layer.name: layer for layer in layers_of(variables, "/")}
    search = Search(theirs, ours, torch, ordered)
    certain = {key: path for path, key in auto.pair(variables, keys).key_of.items()}
    counts = [numbering.siblings(side) for side in (theirs, ours)]
    kinds: dict[tuple[str, ...], dict[str, str]] = {}
    for name, other in _whole_layers(search, certain).items():
        places = [
            [place for place, _ in numbering.automatic_places(each)] for each in (name, other)
        ]
        kind = tuple(stem for _, stem in places[1])
        # What else `auto` is sure of it tells by the tensors of one last component, and of the
        # layers that have others it knows nothing: that is for the search.
        if kind == tuple(stem for _, stem in places[0]) and all(
            len(counts[0][there]) == len(counts[1][here])
            for there, here in zip(*places, strict=True)
        ):
            kinds.setdefault(kind, {})[name] = other
    for pairing in kinds.values():
        search.settle(pairing, search.reason(pairing))
    return search


def _ambiguity(search: Search, group: Group) -> Ambiguity:
    return Ambiguity(
        tuple(key for name in group.theirs for key in search.theirs[name].tensors.values()),
        tuple(path for name in group.ours for path in search.ours[name].tensors.values()),
    )


def _has_torch_layouts(theirs: Sequence[Layer], ours: Sequence[Layer], likely: bool) -> bool:
    """Whether more layers fit in PyTorch's layouts than as they are; `likely` where as many do."""
    kinds = {layer.leaves: layer for layer in ours}.values()

    def fitting(torch: bool) -> int:
        return sum(any(matching_leaves(t, o, torch) is not None for o in kinds) for t in theirs)

    as_it_is, transposed = fitting(False), fitting(True)
    return likely if as_it_is == transposed else transposed > as_it_is


def _whole_layers(search: Search, certain: Mapping[str, str]) -> dict[str, str]:
    """The layers whose tensors all go to those of one other, as `certain` says."""
    owner = {path: name for name, layer in search.ours.items() for path in layer.tensors.values()}
    found = {}
    for name, layer in search.theirs.items():
        for other in {owner[certain[key]] for key in layer.tensors.values() if key in certain}:
            fit = matching_leaves(layer, search.ours[other], search.torch)
            if fit is not None and all(certain.get(key) == path for key, path in fit.items()):
                found[name] = other
    return found
