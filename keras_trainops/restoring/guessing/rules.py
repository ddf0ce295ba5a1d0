"""Fold pairs of a key and a path into a few rename rules."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from keras_trainops import numbering
from keras_trainops.restoring.guessing import numbered_names
from keras_trainops.restoring.guessing.layers import split_leaf


class _Pair(NamedTuple):
    """A key and a path, each split at the last component."""

    key_owner: str
    key_leaf: str
    path_owner: str
    path_leaf: str

    @property
    def kind(self) -> tuple[object, ...]:
        """Everything but the numbers."""
        key_texts, path_texts = (
            numbering.split(self.key_owner)[0],
            numbering.split(self.path_owner)[0],
        )
        return key_texts, self.key_leaf, path_texts, self.path_leaf

    @property
    def key_numbers(self) -> numbering.Numbers:
        return numbering.split(self.key_owner)[1]

    @property
    def path_numbers(self) -> numbering.Numbers:
        return numbering.split(self.path_owner)[1]


class _Rule(NamedTuple):
    """An expression and a template for owners, and the last components to append to them."""

    expression: str
    template: str
    groups: int
    key_leaf: str
    path_leaf: str

    def matches_any(self, owners: Iterable[str]) -> bool:
        return any(map(re.compile(self.expression).fullmatch, owners))


class _ShiftedNumber(NamedTuple):
    """The number of a key at a position, plus a constant."""

    place: int
    shift: int


def fold_rules(pairs: Mapping[str, str], keys: Collection[str]) -> dict[str, str]:
    r"""Return rename rules that lead each key to its path and match no other key.

    Numbers that are copied or shifted become groups; last components that stay the same become
    alternatives. No two rules match the same key, so their order does not matter.

    Args:
        pairs: Key -> path.
        keys: All keys of the checkpoint.

    Returns:
        Expression -> template.

    Example:
        >>> fold_rules({"layer.0.weight": "block1/kernel", "layer.1.weight": "block2/kernel"}, [])
        {'layer\\.(\\d+)\\.weight': 'block\\g<1+1>/kernel'}
    """
    kinds: dict[tuple[object, ...], list[_Pair]] = {}
    for key, path in pairs.items():
        pair = _Pair(*split_leaf(key, "/."), *split_leaf(path, "/"))
        kinds.setdefault(pair.kind, []).append(pair)
    owners = _owners_by_leaf([*keys, *pairs])
    rules: list[_Rule] = []
    for kind in kinds.values():
        rules += _rules(kind, owners[kind[0].key_leaf])
    return dict(_with_leaves(alike) for alike in _alike(rules))


def _owners_by_leaf(keys: Iterable[str]) -> dict[str, set[str]]:
    owners: dict[str, set[str]] = {}
    for key in keys:
        owner, leaf = split_leaf(key, "/.")
        owners.setdefault(leaf, set()).add(owner)
    return owners


def _rules(pairs: Sequence[_Pair], owners: Collection[str]) -> list[_Rule]:
    """Return one rule for all pairs of a kind, or several for parts of them.

    Args:
        pairs: Pairs of one kind.
        owners: The owners of all keys with the same last component. The rules match no other.
    """
    if len(pairs) == 1:
        return [_literal_rule(pairs[0])]
    others = set(owners) - {pair.key_owner for pair in pairs}
    for listed in (False, True):
        rule = _one_rule(pairs, listed)
        if rule is not None and not rule.matches_any(others):
            return [rule]
    rules: list[_Rule] = []
    for part in _parts(pairs):
        rules += _rules(part, owners)
    return rules


def _parts(pairs: Sequence[_Pair]) -> list[list[_Pair]]:
    """Split pairs by one of the numbers of their keys: the one with the fewest values."""
    numbers = [pair.key_numbers for pair in pairs]
    place = min(numbered_names.varying(numbers), key=lambda i: len({n[i] for n in numbers}))
    parts: dict[str, list[_Pair]] = {}
    for pair in pairs:
        parts.setdefault(pair.key_numbers[place], []).append(pair)
    return list(parts.values())


def _literal_rule(pair: _Pair) -> _Rule:
    expression, template = re.escape(pair.key_owner), _escape_template(pair.path_owner)
    return _Rule(expression, template, 0, pair.key_leaf, pair.path_leaf)


def _one_rule(pairs: Sequence[_Pair], listed: bool) -> _Rule | None:
    """Return the rule with groups for numbers; None if the numbers of the paths have no source.

    Args:
        pairs: Pairs of one kind.
        listed: If True, groups match only the numbers that occur, instead of any number.
    """
    sources = []
    for column in zip(*(pair.path_numbers for pair in pairs), strict=True):
        source = _source(column, [pair.key_numbers for pair in pairs])
        if source is None:
            return None
        sources.append(source)
    grouped = sorted({source.place for source in sources if isinstance(source, _ShiftedNumber)})
    return _Rule(
        _expression(pairs, grouped, listed),
        _template(pairs[0].path_owner, sources, grouped),
        len(grouped),
        pairs[0].key_leaf,
        pairs[0].path_leaf,
    )


def _source(
    column: Sequence[str], key_numbers: Sequence[numbering.Numbers]
) -> _ShiftedNumber | str | None:
    """Return the source of a number of all paths: a constant, or a number of the keys."""
    if len(set(column)) == 1:
        return column[0]
    for place in numbered_names.varying(key_numbers):
        shift = int(column[0]) - int(key_numbers[0][place])
        if [numbered_names.shifted(numbers[place], shift) for numbers in key_numbers] == list(
            column
        ):
            return _ShiftedNumber(place, shift)
    return None


def _expression(pairs: Sequence[_Pair], grouped: Sequence[int], listed: bool) -> str:
    """Return an expression for the owners of the keys.

    Args:
        pairs: Pairs of one kind.
        grouped: The positions of numbers that become groups.
        listed: If True, the numbers that occur are listed.
    """
    texts, _ = numbering.split(pairs[0].key_owner)
    columns = zip(*(pair.key_numbers for pair in pairs), strict=True)
    expression = re.escape(texts[0])
    for place, (column, text) in enumerate(zip(columns, texts[1:], strict=True)):
        expression += _number_expression(column, place in grouped, listed) + re.escape(text)
    return expression


def _number_expression(column: Sequence[str], grouped: bool, listed: bool) -> str:
    if len(set(column)) == 1:
        return column[0]
    numbers = "|".join(sorted(set(column), key=int)) if listed else r"\d+"
    if grouped:
        return f"({numbers})"
    return f"(?:{numbers})" if listed else numbers


def _template(
    path_owner: str, sources: Sequence[_ShiftedNumber | str], grouped: Sequence[int]
) -> str:
    """Return a template for the owners of the paths.

    Args:
        path_owner: One of the owners.
        sources: The source of each number.
        grouped: The positions of numbers in the keys that are groups.
    """
    texts, _ = numbering.split(path_owner)
    template = _escape_template(texts[0])
    for source, text in zip(sources, texts[1:], strict=True):
        if isinstance(source, str):
            template += source
        else:
            template += _reference(grouped.index(source.place) + 1, source.shift, text)
        template += _escape_template(text)
    return template


def _reference(group: int, shift: int, following: str) -> str:
    if shift:
        return f"\\g<{group}{shift:+}>"
    return f"\\g<{group}>" if following[:1].isdigit() else f"\\{group}"


def _escape_template(text: str) -> str:
    return text.replace("\\", r"\\")


def _alike(rules: Sequence[_Rule]) -> list[list[_Rule]]:
    """Group rules that differ only in a last component that keys and paths have in common."""
    alike: dict[object, list[_Rule]] = {}
    for rule in rules:
        same = rule.key_leaf == rule.path_leaf
        kind = (rule.expression, rule.template) if same else rule
        alike.setdefault(kind, []).append(rule)
    return list(alike.values())


def _with_leaves(rules: Sequence[_Rule]) -> tuple[str, str]:
    """Return the expression and the template of rules that are alike."""
    rule = rules[0]
    if len(rules) == 1:
        template = rule.template + _escape_template(rule.path_leaf)
        return rule.expression + re.escape(rule.key_leaf), template
    leaves = "|".join(re.escape(leaf) for leaf in sorted(each.key_leaf for each in rules))
    return f"{rule.expression}({leaves})", f"{rule.template}\\{rule.groups + 1}"
