"""The report of a restore, as a table and as plain data."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from keras_trainops import numbering

_Group: TypeAlias = tuple[list[frozenset[str]], list[str]]  # alternatives per token, members

_MAPPINGS = ("restored", "adapted", "optimizer")  # fields that are read-only mappings
_MOST_LEFT_OUT = 3  # rows for keys that nobody is likely to miss


class Mismatch(NamedTuple):
    """A variable whose shape differs from the tensor under its key.

    Attributes:
        path: The variable's path.
        key: The key; several keys that an adapter combines are joined by ` + `.
        model_shape: The variable's shape.
        checkpoint_shape: The tensor's shape, after its adapter if there is one.
        suggestion: An entry of `adapt` that would fit, or the adapter to append to the present
            one; empty if nothing is likely.
    """

    path: str
    key: str
    model_shape: tuple[int, ...]
    checkpoint_shape: tuple[int, ...]
    suggestion: str = ""


class _Row(NamedTuple):
    """A row of the table; `variables` and `keys` are folded."""

    outcome: str
    number: int
    variables: str
    keys: str


@dataclass(frozen=True, repr=False)
class RestoreReport:
    """The result of a restore or, from `plan_restore`, its plan. `print` it for a table.

    Attributes:
        model: The model's name.
        source: The source of the values, and its format.
        applied: True if the variables were assigned; False from `plan_restore`.
        restored: Variable path -> checkpoint key.
        adapted: Variable path -> the adapter that made its tensor fit.
        optimizer: Path of an optimizer variable -> checkpoint key.
        missing: Paths of selected variables that no key leads to.
        unexpected: Keys that lead to no variable.
        mismatched: Variables whose shape differs from their tensor's.
        excluded: Paths that `include` and `exclude` do not select.
        ignored: Keys that a rename rule leaves out (`None`).
        slots: Unused keys of training state: optimizer slots, counters, seeds.
        unbuilt: Layers without variables yet, into which nothing could be restored.
        problems: Reasons why `restore` would raise; empty if it would not.
        seconds: Wall time of planning, reading and assigning, in seconds.
        bytes: Bytes of the tensors read or, from `plan_restore`, to be read.
    """

    model: str
    source: str
    applied: bool = False
    restored: Mapping[str, str] = field(default_factory=dict)
    adapted: Mapping[str, str] = field(default_factory=dict)
    optimizer: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    excluded: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()
    unbuilt: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    seconds: float = 0.0
    bytes: int = 0

    def __post_init__(self) -> None:
        for name in _MAPPINGS:
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as lists, dicts, strings and numbers, ready for JSON."""
        plain = dict(vars(self))
        plain |= {name: dict(plain[name]) for name in _MAPPINGS}
        plain["mismatched"] = [_with_lists(entry._asdict()) for entry in self.mismatched]
        return _with_lists(plain)

    def __repr__(self) -> str:
        return f"<RestoreReport {self._summary()}>"

    def __str__(self) -> str:
        text = io.StringIO()
        self._print(text)
        return text.getvalue().rstrip("\n")

    def _repr_html_(self) -> str:
        console = self._print(io.StringIO(), record=True)
        return console.export_html(
            inline_styles=True,
            code_format='<pre style="white-space:pre;line-height:normal">{code}</pre>',
        )

    def _summary(self) -> str:
        verb = "restored" if self.applied else "would restore"
        total = len(self.restored) + len(self.missing) + len(self.mismatched)
        text = (
            f"{self.model!r} from {self.source}: {verb} {len(self.restored)} of {total} variables"
        )
        text += f" ({self.bytes / 1e6:.1f} MB) in {self.seconds:.2f} s"
        rest = [f"{kind}: {count}" for kind, count in self.counts().items() if count]
        return "; ".join([text, *rest])

    def counts(self) -> dict[str, int]:
        """Return the number of entries of each kind other than `restored`."""
        return {
            "optimizer variables": len(self.optimizer),
            "adapted": len(self.adapted),
            "missing": len(self.missing),
            "unexpected": len(self.unexpected),
            "mismatched": len(self.mismatched),
            "excluded": len(self.excluded),
            "left out": len(self.ignored),
            "training state": len(self.slots),
            "unbuilt": len(self.unbuilt),
        }

    def _rows(self) -> Iterable[_Row]:
        yield from _rows_of_pairs("restored", self.restored)
        yield from _rows_of_pairs("optimizer", self.optimizer)
        for adapter in dict.fromkeys(self.adapted.values()):
            paths = [path for path, other in self.adapted.items() if other == adapter]
            yield from (_Row("adapted", len(names), text, adapter) for text, names in fold(paths))
        for entry in self.mismatched:
            variable = f"{entry.path} {entry.model_shape}"
            yield _Row("mismatched", 1, variable, f"{entry.key} {entry.checkpoint_shape}")
        yield from _rows_of_variables("missing", self.missing)
        yield from _rows_of_variables("excluded", self.excluded)
        yield from (_Row("unbuilt", 1, layer, "") for layer in self.unbuilt)
        yield from _rows_of_keys("unexpected", self.unexpected)
        yield from _rows_of_keys("left out", self.ignored, _MOST_LEFT_OUT)
        yield from _rows_of_keys("training state", self.slots, _MOST_LEFT_OUT)

    def _print(self, file: io.StringIO, record: bool = False) -> Any:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table()
        table.add_column("")
        table.add_column("#", justify="right")
        table.add_column("variables of the model", overflow="fold")
        table.add_column("keys of the checkpoint", overflow="fold")
        for row in self._rows():
            table.add_row(row.outcome, str(row.number), Text(row.variables), Text(row.keys))
        console = Console(file=file, width=120, record=record)
        console.print(Text(self._summary()), soft_wrap=True)
        console.print(table)
        for problem in self.problems:
            console.print(Text(problem))
        return console


def _with_lists(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}


def _rows_of_pairs(outcome: str, key_of: Mapping[str, str]) -> Iterator[_Row]:
    """Yield rows of variables and the keys they come from, unless both look the same."""
    for variables, paths in fold(list(key_of)):
        keys = "\n".join(text for text, _ in fold([key_of[path] for path in paths]))
        yield _Row(outcome, len(paths), variables, "" if keys == variables else keys)


def _rows_of_variables(outcome: str, paths: Sequence[str]) -> Iterator[_Row]:
    return (_Row(outcome, len(names), text, "") for text, names in fold(paths))


def _rows_of_keys(outcome: str, keys: Sequence[str], most: int | None = None) -> Iterator[_Row]:
    """Yield rows of keys; `most` folds and one row for the rest."""
    folds = fold(keys)
    shown = folds[:most]
    for text, names in shown:
        yield _Row(outcome, len(names), "", text)
    rest = sum(len(names) for _, names in folds[len(shown) :])
    if rest:
        yield _Row(outcome, rest, "", "…")


def fold(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Fold names that differ in one place: `conv{1..3}/{bias,kernel}` for six variables.

    A folded text expands to exactly its members. Numbers fold anywhere, words only in the last
    component.

    Args:
        names: The names.

    Returns:
        Folded texts and their members, in the order of the first members.

    Example:
        >>> fold(["conv1/kernel", "conv2/kernel", "fc/bias"])
        [('conv{1,2}/kernel', ['conv1/kernel', 'conv2/kernel']), ('fc/bias', ['fc/bias'])]
    """
    groups: list[_Group] = [(_tokens(name), [name]) for name in dict.fromkeys(names)]
    width = max((len(tokens) for tokens, _ in groups), default=0)
    for place in range(1, width + 1):  # from the right: variable, then the innermost index
        groups = _fold_at(groups, place)
    return [("".join(map(_fold_text, tokens)), members) for tokens, members in groups]


def _fold_at(groups: Sequence[_Group], place: int) -> list[_Group]:
    """Merge groups that differ only in one place, counted from the right."""
    merged: dict[Any, _Group] = {}
    for tokens, members in groups:
        at = len(tokens) - place
        foldable = at >= 0 and (place == 1 or all(map(_is_number, tokens[at])))
        rest = (*tokens[:at], None, *tokens[at + 1 :]) if foldable else (object(),)
        if rest in merged:
            into, members_so_far = merged[rest]
            into[at] = into[at] | tokens[at]
            members_so_far.extend(members)
        else:
            merged[rest] = (list(tokens), list(members))
    return list(merged.values())


def _tokens(name: str) -> list[frozenset[str]]:
    """Split a name into numbers and the texts between them, and at the last component."""
    leaf = re.split("[/.]", name)[-1]  # PyTorch's names are dotted
    halves = (name[: len(name) - len(leaf)], leaf)
    parts = itertools.chain.from_iterable(map(numbering.texts_and_numbers, halves))
    return [frozenset([part]) for part in parts if part]


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdigit()


def _fold_text(token: frozenset[str]) -> str:
    if len(token) == 1:
        return next(iter(token))
    if not all(_is_number(part) for part in token):
        return "{" + ",".join(sorted(token)) + "}"
    numbers = sorted(token, key=lambda part: (int(part), part))
    run = [str(number) for number in range(int(numbers[0]), int(numbers[0]) + len(numbers))]
    if len(numbers) > 2 and numbers == run:  # `{1..3}` does not contain `01`
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return "{" + ",".join(numbers) + "}"


def folded(names: Sequence[str]) -> str:
    """Return all folds of `names` in one line."""
    return ", ".join(text for text, _ in fold(names))
