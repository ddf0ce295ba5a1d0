"""Pairs of a key and a path as few rename rules that say the same."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from keras_trainops import numbering
from keras_trainops.restoring.guessing import families
from keras_trainops.restoring.guessing.layers import parted


class _Pair(NamedTuple):
    """A key and a path, each as what is above the last component, and that."""

    key_owner: str
    key_leaf: str
    path_owner: str
    path_leaf: str


class _Rule(NamedTuple):
    """An expression and a template, without the last components, which follow."""

    expression: str
    template: str
    groups: int
    key_leaf: str
    path_leaf: str


def fold_rules(pairs: Mapping[str, str], keys: Collection[str]) -> dict[str, str]:
    r"""Rename rules that lead each key of `pairs` to its path, and match no other of `keys`.

    Numbers that are copied or shifted become groups, and last components that stay as they are
    alternatives. No two rules match one key, so that their order does not matter.

    Example:
        >>> fold_rules({"layer.0.weight": "block1/kernel", "layer.1.weight": "block2/kernel"}, [])
        {'layer\\.(\\d+)\\.weight': 'block\\g<1+1>/kernel'}
    """
    kinds: dict[tuple[object, ...], list[_Pair]] = {}
    for key, path in pairs.items():
        pair = _Pair(*parted(key, "/."), *parted(path, "/"))
        kind = (
            *(numbering.split(pair.key_owner)[0], pair.key_leaf),
            *(numbering.split(pair.path_owner)[0], pair.path_leaf),
        )
        kinds.setdefault(kind, []).append(pair)
    owners: dict[str, set[str]] = {}  # of all keys, by the last component
    for key in [*keys, *pairs]:
        owner, leaf = parted(key, "/.")
        owners.setdefault(leaf, set()).add(owner)
    found = [rule for kind in kinds.values() for rule in _rules(kind, owners[kind[0].key_leaf])]
    return dict(_with_leaves(rules) for rules in _alike(found))


def _rules(pairs: Sequence[_Pair], owners: Collection[str]) -> list[_Rule]:
    """One rule for all pairs of a kind, or several for parts of them, that match no other owner."""
    if len(pairs) == 1:
        pair = pairs[0]
        return [_Rule(re.escape(pair.key_owner), _plain(pair.path_owner), 0, *_leaves(pair))]
    mine = {pair.key_owner for pair in pairs}
    for listed in (False, True):
        rule = _one_rule(pairs, listed)
        if rule is None:
            break
        expression = re.compile(rule.expression)
        if not any(expression.fullmatch(owner) for owner in owners if owner not in mine):
            return [rule]
    numbers = [numbering.split(pair.key_owner)[1] for pair in pairs]
    place = min(families.varying(numbers), key=lambda i: len({n[i] for n in numbers}))
    parts: dict[str, list[_Pair]] = {}
    for pair, n in zip(pairs, numbers, strict=True):
        parts.setdefault(n[place], []).append(pair)
    return [rule for part in parts.values() for rule in _rules(part, owners)]


def _leaves(pair: _Pair) -> tuple[str, str]:
    return pair.key_leaf, pair.path_leaf


def _one_rule(pairs: Sequence[_Pair], listed: bool) -> _Rule | None:
    """The rule whose numbers are groups: any number or, `listed`, one of those that there are."""
    texts, _ = numbering.split(pairs[0].key_owner)
    path_texts, _ = numbering.split(pairs[0].path_owner)
    here = [numbering.split(pair.key_owner)[1] for pair in pairs]
    there = [numbering.split(pair.path_owner)[1] for pair in pairs]
    places = families.varying(here)
    sources: list[tuple[int, int] | str] = []
    for column in zip(*there, strict=True):
        source = _source(list(column), here, places)
        if source is None:
            return None
        sources.append(source)
    groups = sorted({source[0] for source in sources if isinstance(source, tuple)})
    expression = re.escape(texts[0])
    for place, text in enumerate(texts[1:]):
        number = here[0][place]
        if place in places:
            values = sorted({numbers[place] for numbers in here}, key=int)
            number = "|".join(values) if listed else r"\d+"
            number = f"({number})" if place in groups else f"(?:{number})" if listed else number
        expression += number + re.escape(text)
    template = _plain(path_texts[0])
    for source, text in zip(sources, path_texts[1:], strict=True):
        if isinstance(source, tuple):
            place, shift = source
            group = groups.index(place) + 1
            source = f"\\g<{group}{shift:+}>" if shift else _reference(group, text)
        template += source + _plain(text)
    return _Rule(expression, template, len(groups), *_leaves(pairs[0]))


def _source(
    column: Sequence[str], here: Sequence[numbering.Numbers], places: Sequence[int]
) -> tuple[int, int] | str | None:
    """Where a number of all paths comes from: a constant, or a number of the keys and its shift."""
    if len(set(column)) == 1:
        return column[0]
    for place in places:
        shift = int(column[0]) - int(here[0][place])
        numbers = [families.shifted(key[place], shift) for key in here]
        if numbers == list(column):
            return place, shift
    return None


def _reference(group: int, following: str) -> str:
    return f"\\g<{group}>" if following[:1].isdigit() else f"\\{group}"


def _plain(text: str) -> str:
    return text.replace("\\", r"\\")


def _alike(rules: Sequence[_Rule]) -> list[list[_Rule]]:
    """Rules that differ in a last component only, which both sides have in common."""
    alike: dict[object, list[_Rule]] = {}
    for rule in rules:
        same = rule.key_leaf == rule.path_leaf
        kind = (rule.expression, rule.template) if same else rule
        alike.setdefault(kind, []).append(rule)
    return list(alike.values())


def _with_leaves(rules: Sequence[_Rule]) -> tuple[str, str]:
    rule = rules[0]
    if len(rules) == 1:
        return rule.expression + re.escape(rule.key_leaf), rule.template + _plain(rule.path_leaf)
    leaves = "|".join(re.escape(leaf) for leaf in sorted(each.key_leaf for each in rules))
    return f"{rule.expression}({leaves})", f"{rule.template}\\{rule.groups + 1}"
