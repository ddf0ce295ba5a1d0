"""Merge rules that differ only in the side of the network: encoder and decoder, text and vision."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_SIDES = (("encoder", "decoder"), ("text", "vision"))
_GROUP = re.compile(r"(?<!\\)\((?!\?)")
_REFERENCE = re.compile(r"\\(?:g<)?(?P<group>\d+)(?P<computed>(?:\+(?P<other>\d+)(?=\{))?)")


class Rule(NamedTuple):
    """An expression and templates for owners, and the last components to append to them."""

    expression: str
    templates: tuple[str, ...]
    key_leaf: str
    path_leaves: tuple[str, ...]


def merge_sides(rules: Sequence[Rule]) -> list[Rule]:
    r"""Return rules, with one for each two that only name another side.

    Example:
        >>> sides = ("encoder", "decoder")
        >>> rules = [Rule(rf"{side}\.fc\.", (f"{side}_fc/",), "w", ("w",)) for side in sides]
        >>> merge_sides(rules)[0][:2]
        ('(encoder|decoder)\\.fc\\.', ('\\1_fc/',))
    """
    merged = list(rules)
    for one, other in _SIDES:
        twins = {_renamed(rule, one, other): rule for rule in merged if one in rule.expression}
        now: dict[Rule, Rule | None] = {rule: rule for rule in merged}
        for rule in merged:
            twin = twins.get(rule)
            is_of_other = twin is not None and other in rule.expression
            if twin is not None and is_of_other and now[twin] is twin and now[rule] is rule:
                now[twin], now[rule] = _with_both(twin, one, other), None
        merged = [rule for rule in now.values() if rule is not None]
    return merged


def _renamed(rule: Rule, one: str, other: str) -> Rule:
    return rule._replace(
        expression=rule.expression.replace(one, other),
        templates=tuple(template.replace(one, other) for template in rule.templates),
    )


def _with_both(rule: Rule, one: str, other: str) -> Rule:
    """Return a rule for both sides.

    Args:
        rule: The rule for one side.
        one: The name of that side.
        other: The name of the other side.
    """
    before, _, after = rule.expression.partition(one)
    group = len(_GROUP.findall(before)) + 1
    templates = tuple(
        _shifted(template, group).replace(one, f"\\g<{group}>") for template in rule.templates
    )
    simple = tuple(re.sub(r"\\g<(\d+)>(?!\d)", r"\\\1", template) for template in templates)
    expression = f"{before}({one}|{other}){after.replace(one, chr(92) + str(group))}"
    return rule._replace(expression=expression, templates=simple)


def _shifted(template: str, group: int) -> str:
    """Return a template whose references to groups from `group` on are one higher."""

    def shift(match: re.Match[str]) -> str:
        text = match[0]
        for name in ("other", "group"):  # from the end, so that the places before stay true
            if match[name] is not None and int(match[name]) >= group:
                start, end = match.start(name) - match.start(), match.end(name) - match.start()
                text = f"{text[:start]}{int(match[name]) + 1}{text[end:]}"
        return text

    return _REFERENCE.sub(shift, template)
