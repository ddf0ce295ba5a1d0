"""Tables of variables and keys, in which names that differ in one place are folded."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from keras_trainops import numbering

_Group: TypeAlias = tuple[list[frozenset[str]], list[str]]  # alternatives per token, members


class Row(NamedTuple):
    """A row of the table; `variables` and `keys` are folded."""

    outcome: str
    number: int
    variables: str
    keys: str


class Table:
    """A report that prints as a table of variables and keys."""

    def _summary(self) -> str:
        """Return the line above the table."""
        raise NotImplementedError

    def _rows(self) -> Iterable[Row]:
        raise NotImplementedError

    def _lines(self) -> Iterable[str]:
        """Return the lines below the table."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._summary()}>"

    def __str__(self) -> str:
        text = io.StringIO()
        self._print(text)
        return text.getvalue().rstrip("\n")

    def _repr_html_(self) -> str:
        html: str = self._print(io.StringIO(), record=True).export_html(
            inline_styles=True,
            code_format='<pre style="white-space:pre;line-height:normal">{code}</pre>',
        )
        return html

    def _print(self, file: io.StringIO, record: bool = False) -> Any:
        """Print to a file, and return the console; one that records can export what it printed."""
        from rich.console import Console
        from rich.table import Table as Columns
        from rich.text import Text

        table = Columns()
        table.add_column("")
        table.add_column("#", justify="right")
        table.add_column("variables of the model", overflow="fold")
        table.add_column("keys of the checkpoint", overflow="fold")
        for row in self._rows():
            table.add_row(row.outcome, str(row.number), Text(row.variables), Text(row.keys))
        console = Console(file=file, width=120, record=record)
        console.print(Text(self._summary()), soft_wrap=True)
        console.print(table)
        for line in self._lines():
            console.print(Text(line))
        return console


def rows_of_pairs(outcome: str, key_of: Mapping[str, str]) -> Iterator[Row]:
    """Yield rows of variables and the keys they come from, unless both look the same."""
    for variables, paths in fold(list(key_of)):
        keys = "\n".join(text for text, _ in fold([key_of[path] for path in paths]))
        yield Row(outcome, len(paths), variables, "" if keys == variables else keys)


def rows_of_variables(outcome: str, paths: Sequence[str]) -> Iterator[Row]:
    """Yield rows of variables alone."""
    return (Row(outcome, len(names), text, "") for text, names in fold(paths))


def rows_of_keys(outcome: str, keys: Sequence[str], most: int | None = None) -> Iterator[Row]:
    """Yield rows of keys; `most` folds and one row for the rest."""
    folds = fold(keys)
    shown = folds[:most]
    for text, names in shown:
        yield Row(outcome, len(names), "", text)
    rest = sum(len(names) for _, names in folds[len(shown) :])
    if rest:
        yield Row(outcome, rest, "", "…")


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
