"""The one error of readers and restores, and how long its message may be."""

from __future__ import annotations

import re

_LONGEST_WORD = 1000  # characters; lists of names fold into a few hundred
_LONGEST = 20_000


class RestoreError(ValueError):
    """A checkpoint that cannot be read, or cannot be restored as asked; nothing was changed.

    Names come from files, which may hold any: the message shortens those that are endless.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(message))


def shortened(text: str) -> str:
    """`text`, cut in the middle where it has more than 20,000 characters, or a word of 1,000.

    Example:
        >>> len(shortened("x" * 120_000)) < 1000
        True
    """
    text = re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: _cut(word[0], 600, 200), text)
    return text if len(text) <= _LONGEST else _cut(text, _LONGEST - 2000, 1500)


def _cut(text: str, first: int, last: int) -> str:
    return f"{text[:first]}…({len(text) - first - last:,} characters)…{text[-last:]}"
