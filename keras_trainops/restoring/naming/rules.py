"""Rename rules: from the key of a checkpoint to the path of a variable."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import keras

from keras_trainops import paths

Address: TypeAlias = "str | keras.Variable"
Rename: TypeAlias = (
    "Mapping[str, Address | Sequence[Address] | None] | Callable[[str], str | None] | str | None"
)

_SHIFTED = re.compile(r"\\g<(\d+)([+-]\d+)>")  # a number in a group, plus or minus another


@dataclass
class Renamed:
    """Where one key is to go.

    Attributes:
        key: The key in the checkpoint.
        addresses: Variables, or names of variables; empty where a rule leaves the key out.
        rule: The rule that decided, None where the key keeps its own name.
        order: The rule's place among the rules: the order of keys that are combined.
    """

    key: str
    addresses: Sequence[Address]
    rule: str | None = None
    order: int = 0


@dataclass
class Renaming:
    """What the rules make of all keys, and what is wrong with the rules."""

    renamed: list[Renamed] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def apply_rules(rename: Rename, keys: Iterable[str]) -> Renaming:
    r"""Decides for each key, by the first rule that matches it, where it is to go.

    Args:
        rename: Regular expressions (matched with `re.fullmatch` on the key) and, for each, a
            template (`\1` as in `re.sub`; `\g<1+1>` is the number in group 1, plus one), a
            variable, a list of these, or None to leave the key out; or a callable from key to path
            or None. A key that no rule matches keeps its name.
        keys: The keys of the checkpoint.

    Raises:
        ValueError: If `rename` is none of this, or an expression or a template is not valid.
    """
    keys = list(keys)
    if rename is None:
        return Renaming([Renamed(key, [key]) for key in keys])
    if isinstance(rename, Mapping):
        return _apply_mapping(rename, keys)
    if callable(rename):
        return Renaming([Renamed(key, _called(rename, key), "the callable") for key in keys])
    raise ValueError(
        "`rename` must be a mapping from regular expression to path, or a callable from key to "
        f"path. Received: rename={rename!r}"
    )


def _called(rename: Callable[[str], str | None], key: str) -> list[Address]:
    path = rename(key)
    if path is None:
        return []
    if not isinstance(path, (str, keras.Variable)):
        raise ValueError(
            f"`rename` must return a path or None for every key. Received: {path!r} for {key!r}"
        )
    return [path]


def _apply_mapping(rules: Mapping[str, Any], keys: Sequence[str]) -> Renaming:
    compiled = [
        (rule, paths.compile_expression(_rule_text(rule)), _as_targets(rule, value))
        for rule, value in rules.items()
    ]
    won: set[str] = set()
    result = Renaming()
    for key in keys:
        for order, (rule, expression, targets) in enumerate(compiled):
            match = expression.fullmatch(key)
            if match is not None:
                won.add(rule)
                filled = [_fill(rule, target, match) for target in targets]
                result.renamed.append(Renamed(key, filled, rule, order))
                break
        else:
            result.renamed.append(Renamed(key, [key]))
    result.problems = [
        _why_unused(rule, expression, keys) for rule, expression, _ in compiled if rule not in won
    ]
    return result


def _why_unused(rule: str, expression: re.Pattern[str], keys: Sequence[str]) -> str:
    shadowed = next(filter(expression.fullmatch, keys), None)
    if shadowed is None:
        near = paths.closest_phrase(rule, keys, "key")
        return f"Rename rule {rule!r} matches no key. {near}"
    return (
        f"Rename rule {rule!r} never applies: earlier rules match all that it matches, as "
        f"{shadowed!r}. Put it first, or leave it out."
    )


def _rule_text(rule: Any) -> str:
    if not isinstance(rule, str):
        raise ValueError(
            f"A rename rule must be a regular expression as a string. Received: {rule!r}"
        )
    return rule


def _as_targets(rule: str, value: Any) -> list[Address]:
    if value is None:
        return []
    targets = list(value) if isinstance(value, (list, tuple)) else [value]
    if not targets or not all(isinstance(t, (str, keras.Variable)) for t in targets):
        raise ValueError(
            f"Rename rule {rule!r} must lead to a path, a `keras.Variable`, a list of these, or "
            f"None. Received: {value!r}"
        )
    return targets


def _fill(rule: str, target: Address, match: re.Match[str]) -> Address:
    if not isinstance(target, str):
        return target
    try:
        texts = _SHIFTED.split(target)  # plain, group, shift, plain, …
        filled = [match.expand(text) for text in texts[::3]]
        for i, (group, shift) in enumerate(zip(texts[1::3], texts[2::3], strict=True)):
            filled[i] += str(int(match[int(group)]) + int(shift))
        return "".join(filled)
    except (re.error, IndexError, ValueError, TypeError) as error:
        raise ValueError(
            f"Rename rule {rule!r}: the template {target!r} does not fit it: {error}"
        ) from None
