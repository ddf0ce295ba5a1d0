"""Rename rules: from the key of a checkpoint to the path of a variable."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import keras

from keras_trainops import paths

Address: TypeAlias = "str | keras.Variable"
Auto: TypeAlias = Literal["auto"]
Rename: TypeAlias = (
    "Mapping[str, Address | Sequence[Address] | None] | Callable[[str], str | None] | Auto | None"
)

# A number in a group: plus or minus a constant, as a letter, or plus an entry for another group.
_COMPUTED = re.compile(
    r"\\g<(?P<group>\d+)(?:(?P<shift>[+-]\d+)|\+(?P<letter>[a-z])"
    r"|\+(?P<other>\d+)\{(?P<table>[\d:,-]+)\})>"
)


@dataclass
class Renamed:
    """The variables that one key is renamed to.

    Attributes:
        key: The key in the checkpoint.
        addresses: Variables, or names of variables; empty if a rule leaves the key out.
        by: The origin of `addresses`: "nothing" if the key keeps its own name, else a rule of the
            mapping, the callable or the heuristic.
        rule: The text of the rule; None unless one decided.
        order: The position of the rule among the rules, which orders keys that are combined.
    """

    key: str
    addresses: Sequence[Address]
    by: Literal["nothing", "rule", "callable", "heuristic"] = "nothing"
    rule: str | None = None
    order: int = 0


@dataclass
class Renaming:
    """All renamed keys, and lines about problems with the rules."""

    renamed: list[Renamed] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class _Rule(NamedTuple):
    text: str
    expression: re.Pattern[str]
    addresses: list[Address]


def apply_rules(rename: Rename, keys: Iterable[str]) -> Renaming:
    r"""Rename each key by the first rule that matches it.

    Args:
        rename: Mapping from regular expression (`re.fullmatch` on the key) to a template (`\1` as
            in `re.sub`; `\g<1+1>` is the number in group 1, plus one; `\g<1+a>` is a letter, `a`
            for 0; `\g<2+1{0:0,1:3}>` is the number in group 2, plus the entry for group 1; a last
            component `*` is the variable with the meaning of the key's last component), a
            variable, a list of these, or None to leave the key out; or a callable from key to
            path or None. A key that no rule matches keeps its name.
        keys: The keys of the checkpoint.

    Returns:
        The renamed keys, and lines about rules that are never used.

    Raises:
        ValueError: If `rename` has another type, or an expression or a template is not valid.
    """
    keys = list(keys)
    if rename is None:
        return Renaming([Renamed(key, [key]) for key in keys])
    if isinstance(rename, Mapping):
        return _apply_mapping(rename, keys)
    if callable(rename):
        return Renaming([Renamed(key, _called(rename, key), "callable") for key in keys])
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


def _apply_mapping(rename: Mapping[str, Any], keys: Sequence[str]) -> Renaming:
    rules = [_compile(text, value) for text, value in rename.items()]
    renamed = [_rename(key, rules) for key in keys]
    used = {entry.rule for entry in renamed}
    return Renaming(renamed, [_why_unused(rule, keys) for rule in rules if rule.text not in used])


def _compile(text: Any, value: Any) -> _Rule:
    if not isinstance(text, str):
        raise ValueError(
            f"A rename rule must be a regular expression as a string. Received: {text!r}"
        )
    return _Rule(text, paths.compile_expression(text), _as_addresses(text, value))


def _as_addresses(rule: str, value: Any) -> list[Address]:
    if value is None:
        return []
    addresses = list(value) if isinstance(value, (list, tuple)) else [value]
    if not addresses or not all(isinstance(a, (str, keras.Variable)) for a in addresses):
        raise ValueError(
            f"Rename rule {rule!r} must lead to a path, a `keras.Variable`, a list of these, or "
            f"None. Received: {value!r}"
        )
    return addresses


def _rename(key: str, rules: Sequence[_Rule]) -> Renamed:
    for order, rule in enumerate(rules):
        match = rule.expression.fullmatch(key)
        if match is not None:
            filled = [_fill(rule.text, address, match) for address in rule.addresses]
            return Renamed(key, filled, "rule", rule.text, order)
    return Renamed(key, [key])


def _fill(rule: str, address: Address, match: re.Match[str]) -> Address:
    """Fill the groups of a match into a template; a variable stays as it is."""
    if not isinstance(address, str):
        return address
    try:
        filled, start = "", 0
        for reference in _COMPUTED.finditer(address):
            filled += match.expand(address[start : reference.start()]) + _computed(reference, match)
            start = reference.end()
        return filled + match.expand(address[start:])
    except (re.error, IndexError, ValueError, TypeError) as error:
        raise ValueError(
            f"Rename rule {rule!r}: the template {address!r} does not fit it: {error}"
        ) from None


def _computed(reference: re.Match[str], match: re.Match[str]) -> str:
    r"""Return the number or letter that a reference such as `\g<1+1>` stands for.

    Args:
        reference: The reference in a template.
        match: The match of the rule.

    Raises:
        ValueError: If a group is not a number, or the reference has no entry for it.
    """
    number = int(match[int(reference["group"])])
    if reference["shift"]:
        return str(number + int(reference["shift"]))
    if reference["letter"]:
        letter = ord(reference["letter"]) + number
        if not ord("a") <= letter <= ord("z"):
            raise ValueError(f"no letter is {number} after {reference['letter']!r}")
        return chr(letter)
    table = dict(entry.split(":") for entry in reference["table"].split(","))
    chosen = match[int(reference["other"])]
    if chosen not in table:
        raise ValueError(f"it has no entry for {chosen}")
    return str(number + int(table[chosen]))


def _why_unused(rule: _Rule, keys: Sequence[str]) -> str:
    shadowed = next(filter(rule.expression.fullmatch, keys), None)
    if shadowed is None:
        near = paths.closest_phrase(rule.text, keys, "key")
        return f"Rename rule {rule.text!r} matches no key. {near}"
    return (
        f"Rename rule {rule.text!r} never applies: earlier rules match everything it matches, for "
        f"example {shadowed!r}. Put it first, or remove it."
    )
