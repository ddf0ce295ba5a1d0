"""Fold the adapters of variables into a few entries of `adapt=`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from keras_trainops import numbering
from keras_trainops.adapt.base import Adapter


def fold_adapters(
    adapters: Mapping[str, Adapter | None], paths: Collection[str]
) -> dict[str, Adapter]:
    """Return patterns that give each variable its adapter, and no other variable any.

    Args:
        adapters: The adapter of each variable by path; None for a variable that needs none.
        paths: All paths of the model.
    """
    groups: dict[tuple[object, str], list[str]] = {}
    for path, adapter in adapters.items():
        if adapter is not None:
            groups.setdefault((numbering.split(path)[0], repr(adapter)), []).append(path)
    names = numbering.NumberedNames(paths)
    folded: dict[str, Adapter] = {}
    for members in groups.values():
        adapter = adapters[members[0]]
        assert adapter is not None
        texts, numbers = _common(members)
        is_theirs = names.count(texts, numbers) == len(members)
        patterns = [_pattern(texts, numbers)] if is_theirs else map(re.escape, members)
        folded |= {f"^{each}$": adapter for each in patterns}
    return folded


def _common(paths: Sequence[str]) -> tuple[Sequence[str], list[Collection[str] | None]]:
    """Return the texts of paths, and the number that all have at each place, if they do."""
    texts, _ = numbering.split(paths[0])
    columns = zip(*(numbering.split(path)[1] for path in paths), strict=True)
    return texts, [column[:1] if len(set(column)) == 1 else None for column in columns]


def _pattern(texts: Sequence[str], numbers: Sequence[Collection[str] | None]) -> str:
    pattern = re.escape(texts[0])
    for number, text in zip(numbers, texts[1:], strict=True):
        pattern += (r"\d+" if number is None else "".join(number)) + re.escape(text)
    return pattern
