"""Fold the adapters of variables into a few entries of `adapt=`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

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
    folded: dict[str, Adapter] = {}
    for members in groups.values():
        adapter = adapters[members[0]]
        assert adapter is not None
        pattern = _pattern(members)
        matched = {path for path in paths if re.fullmatch(pattern, path)}
        patterns = [pattern] if matched == set(members) else map(re.escape, members)
        folded |= {f"^{each}$": adapter for each in patterns}
    return folded


def _pattern(paths: list[str]) -> str:
    texts, _ = numbering.split(paths[0])
    columns = zip(*(numbering.split(path)[1] for path in paths), strict=True)
    pattern = re.escape(texts[0])
    for column, text in zip(columns, texts[1:], strict=True):
        pattern += (column[0] if len(set(column)) == 1 else r"\d+") + re.escape(text)
    return pattern
