"""`RestoreError`, and the limit on the length of its message."""

from __future__ import annotations

import re

_LONGEST_WORD = 1000  # characters; folded lists of names have a few hundred
_LONGEST = 20_000


class RestoreError(ValueError):
    """A checkpoint cannot be read or restored as requested; nothing was changed.

    Messages contain names from files, which may be of any length: they are shortened.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(message))


def shortened(text: str) -> str:
    """Cut out the middle of words of 1,000 characters and of texts of more than 20,000.

    Args:
        text: The message.

    Returns:
        The message, shortened if necessary.

    Example:
        >>> len(shortened("x" * 120_000)) < 1000
        True
    """
    text = re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: _cut(word[0], 600, 200), text)
    return text if len(text) <= _LONGEST else _cut(text, _LONGEST - 2000, 1500)


def _cut(text: str, first: int, last: int) -> str:
    return f"{text[:first]}…({len(text) - first - last:,} characters)…{text[-last:]}"
