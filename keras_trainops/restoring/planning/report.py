"""What a restore did, or would do, for people and for programs."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

_MAPPINGS = ("restored", "adapted", "optimizer")  # fields that are read-only mappings


class Mismatch(NamedTuple):
    """A variable whose shape is not that of the tensor under its key.

    Attributes:
        path: The variable's path.
        key: The key; several, with an adapter that combines them, are joined by ` + `.
        model_shape: The variable's shape.
        checkpoint_shape: The tensor's shape; where there is an adapter, after it.
        suggestion: What would fit: an entry of `adapt`, or what is to stand behind the adapter;
            empty where nothing is likely.
    """

    path: str
    key: str
    model_shape: tuple[int, ...]
    checkpoint_shape: tuple[int, ...]
    suggestion: str = ""


@dataclass(frozen=True, repr=False)
class RestoreReport:
    """What a restore did or, from `plan_restore`, would do. `print` it for a table.

    Attributes:
        model: The model's name.
        source: Where the values come from, and of which format that is.
        applied: Whether the variables were assigned; False from `plan_restore`.
        restored: Variable path -> checkpoint key.
        adapted: Variable path -> the adapter that made its tensor fit.
        optimizer: Path of a variable of the optimizer -> checkpoint key.
        missing: Paths of selected variables that no key leads to.
        unexpected: Keys that lead to no variable.
        mismatched: Variables whose shape differs from their tensor's.
        excluded: Paths that `include` and `exclude` leave alone.
        ignored: Keys that a rename rule leaves out (`None`).
        slots: Unused keys that are no weights: optimizer slots, counters, seeds.
        unbuilt: Layers that had no variables yet, so that nothing could be restored into them.
        problems: Why `restore` would refuse; empty where it would not.
        seconds: Wall time of planning, reading and assigning, in seconds.
        bytes: Bytes of the tensors read; from `plan_restore`, to be read.
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
        """All fields as plain lists, dicts, strings and numbers, as JSON takes them."""
        plain = dict(vars(self))
        plain |= {name: dict(plain[name]) for name in _MAPPINGS}
        plain["mismatched"] = [
            {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in entry._asdict().items()
            }
            for entry in self.mismatched
        ]
        return {name: list(v) if isinstance(v, tuple) else v for name, v in plain.items()}

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
        rest = [f"{count} {what}" for what, count in self.counts().items() if count]
        return "; ".join([text, *rest])

    def counts(self) -> dict[str, int]:
        """How many there are of all that was not simply restored, by what it is."""
        return {
            "of the optimizer": len(self.optimizer),
            "adapted": len(self.adapted),
            "missing": len(self.missing),
            "unexpected": len(self.unexpected),
            "mismatched": len(self.mismatched),
            "excluded": len(self.excluded),
            "left out": len(self.ignored),
            "slots": len(self.slots),
            "unbuilt": len(self.unbuilt),
        }

    def _rows(self) -> Iterable[tuple[str, int, str, str]]:
        """(what, how many, folded variables or keys, folded keys they come from)."""
        for what, key_of in (("restored", self.restored), ("optimizer", self.optimizer)):
            for names, members in fold(list(key_of)):
                origin = "\n".join(text for text, _ in fold([key_of[m] for m in members]))
                yield what, len(members), names, "" if origin == names else origin
        for adapter in dict.fromkeys(self.adapted.values()):
            for names, members in fold([p for p, by in self.adapted.items() if by == adapter]):
                yield "adapted", len(members), names, adapter
        for mismatch in self.mismatched:
            yield (
                "mismatched",
                1,
                f"{mismatch.path} {mismatch.model_shape}",
                f"{mismatch.key} {mismatch.checkpoint_shape}",
            )
        for what, listed in (("missing", self.missing), ("excluded", self.excluded)):
            for names, members in fold(listed):
                yield what, len(members), names, ""
        for layer in self.unbuilt:
            yield "unbuilt", 1, layer, ""
        for what, listed in (
            ("unexpected", self.unexpected),
            ("left out", self.ignored),
            ("slots", self.slots),
        ):
            folded = fold(listed)
            shown = folded if what == "unexpected" else folded[:3]
            for names, members in shown:
                yield what, len(members), "", names
            rest = sum(len(members) for _, members in folded[len(shown) :])
            if rest:
                yield what, rest, "", "…"

    def _print(self, file: io.StringIO, record: bool = False) -> Any:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table()
        table.add_column("")
        table.add_column("#", justify="right")
        table.add_column("variables of the model", overflow="fold")
        table.add_column("keys of the checkpoint", overflow="fold")
        for what, count, variables, keys in self._rows():
            table.add_row(what, str(count), Text(variables), Text(keys))
        console = Console(file=file, width=120, record=record)
        console.print(Text(self._summary()), soft_wrap=True)
        console.print(table)
        for problem in self.problems:
            console.print(Text(problem))
        return console


def fold(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Folds names that differ in one place: `conv{1..3}/{bias,kernel}` for six variables.

    Each fold stands for exactly its members. Numbers fold anywhere, words only in the last place.

    Returns:
        Folded text and its members, in the order of the first members.
    """
    groups = [(_tokens(name), [name]) for name in dict.fromkeys(names)]
    width = max((len(tokens) for tokens, _ in groups), default=0)
    for place in range(1, width + 1):  # from the right: variable, then the innermost index
        merged: dict[Any, tuple[list[frozenset[str]], list[str]]] = {}
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
        groups = list(merged.values())
    return [("".join(map(_fold_text, tokens)), members) for tokens, members in groups]


def _tokens(name: str) -> list[frozenset[str]]:
    """Numbers and what stands between them; the last component apart from what is above it."""
    leaf = re.split("[/.]", name)[-1]  # PyTorch's names are dotted
    parts = [*re.split(r"(\d+)", name[: len(name) - len(leaf)]), *re.split(r"(\d+)", leaf)]
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
    if len(numbers) > 2 and numbers == run:  # `01` is no member of `{1..3}`
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return "{" + ",".join(numbers) + "}"


def folded(names: Sequence[str]) -> str:
    """All folds of `names` in one line."""
    return ", ".join(text for text, _ in fold(names))
