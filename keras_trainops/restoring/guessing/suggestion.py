"""A suggestion: rename rules and adapters, printed as Python code to check and paste."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from keras_trainops.adapt.base import Adapter
from keras_trainops.layouts.questions import code_of
from keras_trainops.restoring.guessing.columns import NAMES, ORDER, SHAPES
from keras_trainops.restoring.planning.table import folded

_FROM_TORCH = "kt.adapt.from_torch(model)"


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
        rules: Rename rules for `rename=`. They lead each key of `pairs` to its path or paths, and
            no other key to a variable.
        adapt: Adapters for `adapt=`: those of `kt.adapt.from_torch(model)` for a checkpoint with
            PyTorch's layouts, and those that the names and shapes of the tensors call for.
        pairs: Key -> path, or several paths for a fused tensor. Includes keys that need no rule
            because they name their variable.
        by_order: Rules that rest on order: shifted or recounted numbers, neighbours, sequences, or
            whole families of layers with equal names and shapes. Check them.
        by_shape: Rules that rest on shapes alone.
        from_torch: True if `adapt` contains the adapters of `kt.adapt.from_torch(model)`.
        questions: What neither names nor shapes tell, with the choices as code.
        ambiguous: Keys and paths that are not paired.
        missing: Paths of variables that no key fits.
        unmatched: Keys that fit no variable.
        notes: Differences between the networks that the configurations show.
    """

    rules: Mapping[str, str | list[str]] = field(default_factory=dict)
    adapt: Mapping[str, Adapter] = field(default_factory=dict)
    pairs: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    by_order: tuple[str, ...] = ()
    by_shape: tuple[str, ...] = ()
    from_torch: bool = False
    questions: tuple[str, ...] = ()
    ambiguous: tuple[Ambiguity, ...] = ()
    missing: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_certain(self) -> bool:
        """True if all variables have a key, by names or by shapes that fit nothing else."""
        return not (self.by_order or self.ambiguous or self.missing or self.questions)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as lists, dicts and strings, ready for JSON."""
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}
        return plain | {
            "rules": dict(self.rules),
            "adapt": {pattern: code_of(adapter) for pattern, adapter in self.adapt.items()},
            "pairs": {k: list(p) if isinstance(p, tuple) else p for k, p in self.pairs.items()},
            "ambiguous": [{"keys": list(a.keys), "paths": list(a.paths)} for a in self.ambiguous],
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
            lines += [f"    {_raw(rule)}: {_template(self.rules[rule])}," for rule in rules]
        return ["rename = {", *lines, "}"] if lines else ["rename = {}"]

    def _adapt_lines(self) -> list[str]:
        own = {p: a for p, a in self.adapt.items() if not a.yields_to_user_rules}
        lines = [f"    {_raw(pattern)}: {code_of(adapter)}," for pattern, adapter in own.items()]
        if self.from_torch and not lines:
            return [f"adapt = {_FROM_TORCH}"]
        unpacked = [f"    **{_FROM_TORCH},"] if self.from_torch else []
        return ["adapt = {", *unpacked, *lines, "}"] if lines else []

    def _rest_lines(self) -> list[str]:
        lines = [
            f"# ambiguous: {folded(group.paths)} could be {folded(group.keys)}"
            for group in self.ambiguous
        ]
        lines += [f"# question: {question}" for question in self.questions]
        lines += [f"# without a key: {folded(self.missing)}"] if self.missing else []
        lines += [f"# without a variable: {folded(self.unmatched)}"] if self.unmatched else []
        lines += [f"# note: {note}" for note in self.notes]
        return [_on_one_line(line) for line in lines]


def _template(value: str | Sequence[str]) -> str:
    return _raw(value) if isinstance(value, str) else f"[{', '.join(map(_raw, value))}]"


def _on_one_line(comment: str) -> str:
    """Escape line ends in names, because code after them would be outside the comment."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in comment)


def _raw(text: str) -> str:
    plain = '"' not in text and not text.endswith("\\") and text.isprintable()
    return f'r"{text}"' if plain else repr(text)
