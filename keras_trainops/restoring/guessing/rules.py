"""Fold pairs of a key and its paths into a few rename rules."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from keras_trainops import numbering
from keras_trainops.layouts.words import split_name
from keras_trainops.restoring.guessing.sides import Rule, merge_sides

Paths: TypeAlias = tuple[str, ...]
_LEAVES = r"\w+"
_SAME_MEANING = "*"
_LONGEST = 8  # entries of a table from numbers to numbers


class _Pair(NamedTuple):
    """A key and its paths, each split at the last component."""

    key_owner: str
    key_leaf: str
    path_owners: Paths
    path_leaves: Paths

    @property
    def kind(self) -> tuple[object, ...]:
        """Everything but the numbers."""
        paths = tuple(numbering.split_numerals(owner)[0] for owner in self.path_owners)
        return numbering.split(self.key_owner)[0], self.key_leaf, paths, self.path_leaves

    @property
    def key_numbers(self) -> numbering.Numbers:
        return numbering.split(self.key_owner)[1]

    @property
    def path_numbers(self) -> tuple[numbering.Numbers, ...]:
        """The numbers and letters of each path."""
        return tuple(numbering.split_numerals(owner)[1] for owner in self.path_owners)


class _Source(NamedTuple):
    """What a number of a path is made of: a number of the key, plus a constant or an entry.

    Attributes:
        place: The place of the number in the key.
        text: What follows the number of the group in the template.
        other: The place of the number that chooses the constant, if one does.
    """

    place: int
    text: str = ""
    other: int | None = None


def fold_rules(
    pairs: Mapping[str, str | Paths],
    keys: Collection[str],
    counted: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str | list[str]]:
    r"""Return rename rules that lead each key to its paths and no other key to a variable.

    Numbers that are copied, shifted or counted through become groups. If all tensors of a layer
    lead to the variables of the same meaning in another, one rule leads them (`bn1/*`). No two
    rules match the same key, so their order does not matter.

    Args:
        pairs: Key -> path, or paths.
        keys: All keys of the checkpoint.
        counted: Another name of each path, in which automatic numbers are counted within their
            owner. It is used where it takes fewer rules.

    Returns:
        Expression -> template, or a list of templates.

    Example:
        >>> fold_rules({"layer.0.weight": "block1/kernel", "layer.1.weight": "block2/kernel"}, [])
        {'layer\\.(\\d+)\\.weight': 'block\\g<1+1>/kernel'}
    """
    every = _owners_by_leaf([*keys, *pairs])
    owners = {leaf: numbering.NumberedNames(names) for leaf, names in every.items()}
    kinds: dict[tuple[object, ...], list[tuple[_Pair, _Pair]]] = {}
    named = {key: [paths] if isinstance(paths, str) else [*paths] for key, paths in pairs.items()}
    plain = _by_layer([_split_pair(key, paths) for key, paths in named.items()])
    other = _by_layer(
        [_split_pair(key, [counted.get(p, p) for p in paths]) for key, paths in named.items()]
    )
    for pair, twin in zip(plain, other, strict=True):
        kinds.setdefault(twin.kind, []).append((pair, twin))
    rules: list[Rule] = []
    for kind in kinds.values():
        rules += _fewest(kind, owners)
    return dict(_with_leaves(rule) for rule in merge_sides(rules))


def _fewest(
    pairs: Sequence[tuple[_Pair, _Pair]], owners: Mapping[str, numbering.NumberedNames]
) -> list[Rule]:
    """Return the rules for pairs of a kind, with their names as they are or counted."""
    kinds: dict[tuple[object, ...], list[_Pair]] = {}
    for plain, _ in pairs:
        kinds.setdefault(plain.kind, []).append(plain)
    rules: list[Rule] = []
    for kind in kinds.values():
        rules += _rules(kind, owners[kind[0].key_leaf])
    twins = [counted for _, counted in pairs]
    if len(rules) > 1 and twins != [plain for plain, _ in pairs]:
        shorter = _rules(twins, owners[twins[0].key_leaf])
        return shorter if len(shorter) < len(rules) else rules
    return rules


def _split_pair(key: str, paths: Sequence[str]) -> _Pair:
    owner, leaf = _split_leaf(key, "/.")
    each = [_split_leaf(path, "/") for path in paths]
    return _Pair(owner, leaf, tuple(o for o, _ in each), tuple(leaf for _, leaf in each))


def _split_leaf(name: str, separators: str) -> tuple[str, str]:
    leaf = re.split(f"[{re.escape(separators)}]", name)[-1]
    return name[: -len(leaf)] if leaf else name, leaf


def _by_layer(pairs: Sequence[_Pair]) -> list[_Pair]:
    """Join the pairs of a layer into one, where their leaves mean the same."""
    layers: dict[str, list[_Pair]] = {}
    for pair in pairs:
        layers.setdefault(pair.key_owner, []).append(pair)
    joined: list[_Pair] = []
    for members in layers.values():
        joined += [_joined(members)] if _mean_the_same(members) else members
    return joined


def _mean_the_same(pairs: Sequence[_Pair]) -> bool:
    if len(pairs) < 2 or len({pair.path_owners for pair in pairs}) > 1:
        return False
    for pair in pairs:
        key = split_name(pair.key_owner + pair.key_leaf)
        path = [
            split_name(o + leaf) for o, leaf in zip(pair.path_owners, pair.path_leaves, strict=True)
        ]
        if not key.leaf or len(path) != 1 or not path[0].leaf or path[0].meaning != key.meaning:
            return False
        if path[0].leaf != pair.path_leaves[0] or key.leaf != pair.key_leaf:
            return False
    meanings = [split_name(pair.key_owner + pair.key_leaf).meaning for pair in pairs]
    return len(set(meanings)) == len(meanings)


def _joined(pairs: Sequence[_Pair]) -> _Pair:
    return pairs[0]._replace(key_leaf=_LEAVES, path_leaves=(_SAME_MEANING,))


def _owners_by_leaf(keys: Iterable[str]) -> dict[str, set[str]]:
    owners: dict[str, set[str]] = {_LEAVES: set()}
    for key in keys:
        owner, leaf = _split_leaf(key, "/.")
        owners.setdefault(leaf, set()).add(owner)
        owners[_LEAVES].add(owner)
    return owners


def _rules(pairs: Sequence[_Pair], owners: numbering.NumberedNames) -> list[Rule]:
    """Return one rule for all pairs of a kind, or several for parts of them.

    Args:
        pairs: Pairs of one kind.
        owners: The owners of all keys with the same last component. The rules match no other.
    """
    if len(pairs) == 1:
        return [_literal_rule(pairs[0])]
    texts, _ = numbering.split(pairs[0].key_owner)
    columns = [set(column) for column in zip(*(pair.key_numbers for pair in pairs), strict=True)]
    for listed in (False, True):
        choices = [column if listed or len(column) == 1 else None for column in columns]
        rule = _one_rule(pairs, listed) if owners.count(texts, choices) == len(pairs) else None
        if rule is not None:
            return [rule]
    rules: list[Rule] = []
    for part in _parts_by_path(pairs) or _parts(pairs):
        rules += _rules(part, owners)
    return rules


def _parts_by_path(pairs: Sequence[_Pair]) -> list[list[_Pair]]:
    """Split pairs by a number of their paths that is made of no number of their keys."""
    key_numbers = [pair.key_numbers for pair in pairs]
    for index in range(len(pairs[0].path_owners)):
        columns = zip(*(pair.path_numbers[index] for pair in pairs), strict=True)
        for place, column in enumerate(columns):
            if _source(column, key_numbers) is None and 1 < len(set(column)) < len(pairs):
                parts: dict[str, list[_Pair]] = {}
                for pair in pairs:
                    parts.setdefault(pair.path_numbers[index][place], []).append(pair)
                return list(parts.values())
    return []


def varying(members: Sequence[numbering.Numbers]) -> list[int]:
    """Return the positions at which not all members have the same number."""
    return [i for i, column in enumerate(zip(*members, strict=True)) if len(set(column)) > 1]


def _parts(pairs: Sequence[_Pair]) -> list[list[_Pair]]:
    """Split pairs by one of the numbers of their keys: the one with the fewest values."""
    numbers = [pair.key_numbers for pair in pairs]
    place = min(varying(numbers), key=lambda i: len({n[i] for n in numbers}))
    parts: dict[str, list[_Pair]] = {}
    for pair in pairs:
        parts.setdefault(pair.key_numbers[place], []).append(pair)
    return list(parts.values())


def _literal_rule(pair: _Pair) -> Rule:
    templates = tuple(map(_escape_template, pair.path_owners))
    return Rule(re.escape(pair.key_owner), templates, pair.key_leaf, pair.path_leaves)


def _one_rule(pairs: Sequence[_Pair], listed: bool) -> Rule | None:
    """Return the rule with groups for numbers; None if the numbers of the paths have no source.

    Args:
        pairs: Pairs of one kind.
        listed: If True, groups match only the numbers that occur, instead of any number.
    """
    key_numbers = [pair.key_numbers for pair in pairs]
    sources: list[list[_Source | str]] = []
    for index in range(len(pairs[0].path_owners)):
        columns = zip(*(pair.path_numbers[index] for pair in pairs), strict=True)
        of_path = [_source(column, key_numbers) for column in columns]
        if None in of_path:
            return None
        sources.append([source for source in of_path if source is not None])
    grouped = sorted({place for path in sources for place in _places(path)})
    return Rule(
        _expression(pairs, grouped, listed),
        tuple(
            _template(owner, path, grouped)
            for owner, path in zip(pairs[0].path_owners, sources, strict=True)
        ),
        pairs[0].key_leaf,
        pairs[0].path_leaves,
    )


def _places(sources: Iterable[_Source | str]) -> set[int]:
    """Return the places of the numbers in the keys that a path needs."""
    places: set[int] = set()
    for source in sources:
        if isinstance(source, _Source):
            places.add(source.place)
            if source.other is not None:
                places.add(source.other)
    return places


def _source(
    column: Sequence[str], key_numbers: Sequence[numbering.Numbers]
) -> _Source | str | None:
    """Return the source of a number of all paths: a constant, or numbers of the keys."""
    if len(set(column)) == 1:
        return column[0]
    wanted = [numbering.numeral_value(numeral) for numeral in column]
    if len({numeral.isdigit() for numeral in column}) > 1:
        return None
    places = varying(key_numbers)
    for place in places:
        numbers = [each[place] for each in key_numbers]
        shifts = {a - int(b) for a, b in zip(wanted, numbers, strict=True)}
        source = _shifted(place, shifts.pop(), column, numbers) if len(shifts) == 1 else None
        if source is not None:
            return source
    is_plain = all(numeral == str(value) for numeral, value in zip(column, wanted, strict=True))
    return _counted(wanted, key_numbers, places) if is_plain else None


def _shifted(
    place: int, shift: int, column: Sequence[str], numbers: Sequence[str]
) -> _Source | None:
    """Return the source that adds a constant; None if it does not give the texts of the column.

    Args:
        place: The place of the number in the keys.
        shift: The constant.
        column: The numbers or letters of the paths.
        numbers: The numbers of the keys.
    """
    if not shift and column == tuple(numbers):
        return _Source(place)
    if column[0].isdigit():
        same = [str(int(number) + shift) for number in numbers] == list(column)
        return _Source(place, f"{shift:+}") if same and shift else None
    return _Source(place, f"+{chr(ord('a') + shift)}") if 0 <= shift < 26 else None


def _counted(
    wanted: Sequence[int], key_numbers: Sequence[numbering.Numbers], places: Sequence[int]
) -> _Source | None:
    """Return a source that counts through: a number, plus an entry for another number."""
    for other in places:
        for place in places:
            entries: dict[str, set[int]] = {}
            for value, numbers in zip(wanted, key_numbers, strict=True):
                entries.setdefault(numbers[other], set()).add(value - int(numbers[place]))
            is_table = place == other and 2 * len(entries) > min(len(wanted), 2 * _LONGEST)
            if not is_table and all(len(found) == 1 for found in entries.values()):
                ordered = sorted(entries, key=int)
                table = ",".join(f"{number}:{entries[number].pop()}" for number in ordered)
                return _Source(place, f"{{{table}}}", other)
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


def _template(path_owner: str, sources: Sequence[_Source | str], grouped: Sequence[int]) -> str:
    """Return a template for the owners of the paths.

    Args:
        path_owner: One of the owners.
        sources: The source of each number.
        grouped: The positions of numbers in the keys that are groups.
    """
    texts, _ = numbering.split_numerals(path_owner)
    template = _escape_template(texts[0])
    for source, text in zip(sources, texts[1:], strict=True):
        template += source if isinstance(source, str) else _reference(source, grouped, text)
        template += _escape_template(text)
    return template


def _reference(source: _Source, grouped: Sequence[int], following: str) -> str:
    group = grouped.index(source.place) + 1
    if source.other is not None:
        return f"\\g<{group}+{grouped.index(source.other) + 1}{source.text}>"
    if source.text:
        return f"\\g<{group}{source.text}>"
    return f"\\g<{group}>" if following[:1].isdigit() else f"\\{group}"


def _escape_template(text: str) -> str:
    return text.replace("\\", r"\\")


def _with_leaves(rule: Rule) -> tuple[str, str | list[str]]:
    """Return the expression and the templates of a rule, with the last components."""
    leaf = rule.key_leaf if rule.key_leaf == _LEAVES else re.escape(rule.key_leaf)
    templates = [
        template + _escape_template(path_leaf)
        for template, path_leaf in zip(rule.templates, rule.path_leaves, strict=True)
    ]
    return rule.expression + leaf, templates[0] if len(templates) == 1 else templates
