"""Entries of a network's configuration that disagree with new shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from keras_trainops.adapt.base import Shape


def disagreements(
    config: Mapping[str, Any] | None, changes: Mapping[str, tuple[Shape, Shape]]
) -> list[str]:
    """Return a line per entry whose number is the old length of an axis.

    Args:
        config: The content of `config.json`; None if there is none.
        changes: The old and the new shape by key.

    Example:
        >>> disagreements({"vocab_size": 100}, {"embed.weight": ((100, 8), (120, 8))})
        ['config.json: `vocab_size` is 100, but not any more: embed.weight (120, 8)']
    """
    if config is None:
        return []
    keys_of: dict[str, list[str]] = {}
    unknown: list[str] = []
    for key, (old, new) in changes.items():
        lengths = {before for before, after in zip(old, new, strict=False) if before != after}
        entries = [text for length in lengths - {1} for text in _entries(config, length)]
        for text in entries:
            keys_of.setdefault(text, []).append(f"{key} {new}")
        unknown += [] if entries else [f"{key} {new}"]
    lines = [
        f"config.json: {text}, but not any more: {', '.join(keys)}"
        for text, keys in keys_of.items()
    ]
    if unknown:
        lines.append(
            f"config.json: no entry has the old length of {', '.join(unknown)}; the classes of a "
            "head are `id2label` and `label2id`"
        )
    return lines


def _entries(config: Mapping[str, Any], length: int, above: str = "") -> Iterator[str]:
    """Yield a text about each entry that is a number, or has as many entries."""
    for name, value in config.items():
        if value == length and not isinstance(value, (bool, float)):
            yield f"`{above}{name}` is {length}"
        elif isinstance(value, (list, Mapping)) and len(value) == length:
            yield f"`{above}{name}` has {length} entries"
        elif isinstance(value, Mapping):
            yield from _entries(value, length, f"{above}{name}.")
