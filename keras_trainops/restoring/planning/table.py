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


def print_table(
    summary: str,
    rows: Iterable[Row],
    lines: Iterable[str],
    file: io.StringIO,
    record: bool = False,
) -> Any:
    """Print a table of variables and keys.

    Args:
        summary: The line above the table.
        rows: The rows.
        lines: The lines below it.
        file: The file to print to.
        record: If True, the returned console can export what it has printed.

    Returns:
        The console of `rich`.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("")
    table.add_column("#", justify="right")
    table.add_column("variables of the model", overflow="fold")
    table.add_column("keys of the checkpoint", overflow="fold")
    for row in rows:
        table.add_row(row.outcome, str(row.number), Text(row.variables), Text(row.keys))
    console = Console(file=file, width=120, record=record)
    console.print(Text(summary), soft_wrap=True)
    console.print(table)
    for line in lines:
        console.print(Text(line))
    return console


def html_of(console: Any) -> str:
    """Return what a recording console has printed, as HTML."""
    text: str = console.export_html(
        inline_styles=True,
        code_format='<pre style="white-space:pre;line-height:normal">{code}</pre>',
    )
    return text


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
