"""Variable paths, patterns and selection: the one rule by which the library addresses variables.

A *pattern* is a regular expression that must match one or more whole, consecutive `/` components
of a variable's path: `fc8` matches `vgg_16/fc8/kernel` and `fc8/bias`, never `fc80/kernel`.
Wherever a pattern is accepted, so are a `keras.Variable`, a layer, and a list of any of these.
A pattern that matches nothing is an error that names the closest paths.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import keras

Pattern: TypeAlias = "str | keras.Variable | keras.layers.Layer"
Patterns: TypeAlias = "Pattern | Iterable[Pattern] | None"

T = TypeVar("T")


class NamedVariable(NamedTuple):
    """A variable and the path by which it is addressed and reported."""

    path: str
    variable: keras.Variable


def by_path(variables: Iterable[keras.Variable]) -> list[NamedVariable]:
    """Names variables by their own `path`, which need not be unique."""
    return [NamedVariable(variable.path, variable) for variable in variables]


def as_list(patterns: Patterns) -> list[Pattern]:
    """One pattern, several, or None as a list of single patterns.

    Raises:
        ValueError: If something in it is no string, variable or layer.
    """
    if patterns is None:
        return []
    if _is_pattern(patterns):
        return [patterns]
    if isinstance(patterns, Iterable) and not isinstance(patterns, Mapping):
        patterns = list(patterns)
        if all(_is_pattern(pattern) for pattern in patterns):
            return patterns
    raise ValueError(
        "A pattern must be a regular expression as a string, a `keras.Variable`, a layer, or a "
        f"list of these. Received: {patterns!r}"
    )


def _is_pattern(value: Any) -> bool:
    return isinstance(value, (str, keras.Variable, keras.layers.Layer))


def matcher(pattern: Pattern) -> Callable[[NamedVariable], bool]:
    """The test that `pattern` stands for.

    Raises:
        ValueError: If `pattern` is no valid regular expression.
    """
    if isinstance(pattern, str):
        expression = _components(pattern)
        return lambda named: expression.fullmatch(named.path) is not None
    variables = [pattern] if isinstance(pattern, keras.Variable) else pattern.variables
    ids = {id(variable) for variable in variables}  # a `keras.Variable` cannot be hashed
    return lambda named: id(named.variable) in ids


def _components(pattern: str) -> re.Pattern[str]:
    compile_expression(pattern)  # alone first, so that an error speaks of what the user wrote
    flags = re.match(r"(?:\(\?[aiLmsux]+\))*", pattern)
    start = flags.end() if flags else 0  # flags such as `(?i)` must stay in front of everything
    return compile_expression(rf"{pattern[:start]}(?:.*/)?(?:{pattern[start:]})(?:/.*)?")


def compile_expression(expression: str) -> re.Pattern[str]:
    """Compiles a user's regular expression.

    Raises:
        ValueError: If it is not valid; the message says where.
    """
    try:
        return re.compile(expression)
    except re.error as error:
        raise ValueError(f"{expression!r} is not a valid regular expression: {error}") from None


def select(patterns: Patterns, named: Sequence[NamedVariable]) -> list[bool]:
    """Which of `named` any of `patterns` matches.

    Raises:
        ValueError: If a pattern matches nothing; the message names the closest paths.
    """
    first = first_match([(pattern, True) for pattern in as_list(patterns)], named, shadowed="allow")
    return [choice is not None for choice in first]


def first_match(
    rules: Mapping[str, T] | Iterable[tuple[Pattern, T]],
    named: Sequence[NamedVariable],
    *,
    shadowed: str = "error",
) -> list[T | None]:
    """The value of the first pattern that matches each variable, None where none does.

    Args:
        rules: Patterns and their values, in order. Pairs where a pattern is a variable or a
            layer, which cannot be keys of a mapping.
        named: The variables.
        shadowed: "error" refuses a pattern that only matches what earlier ones took; "allow"
            lets it pass, as in a plain list where the order means nothing.

    Raises:
        ValueError: If a pattern matches nothing or, with `shadowed="error"`, never wins.
    """
    pairs = as_rules(rules)
    values: list[T | None] = [None] * len(named)
    taken = [False] * len(named)
    problems = []
    for pattern, value in pairs:
        test = matcher(pattern)
        hits = [i for i, entry in enumerate(named) if test(entry)]
        won = [i for i in hits if not taken[i]]
        if not hits:
            problems.append(no_match(pattern, [entry.path for entry in named]))
        elif not won and shadowed == "error":
            problems.append(
                f"{describe(pattern)} never applies: earlier patterns match all that it matches, "
                f"as {named[hits[0]].path!r}. Put it first, or leave it out."
            )
        for i in won:
            values[i], taken[i] = value, True
    if problems:
        raise ValueError("\n".join(problems))
    return values


def as_rules(rules: Any) -> list[tuple[Pattern, Any]]:
    """Patterns with a value each, as a mapping, pairs or None, as a list of pairs."""
    if isinstance(rules, Mapping):
        return list(rules.items())
    return [(pattern, value) for pattern, value in rules or ()]


def describe(pattern: Pattern) -> str:
    """A pattern as an error message names it."""
    if isinstance(pattern, str):
        return f"Pattern {pattern!r}"
    if isinstance(pattern, keras.Variable):
        return f"Variable {pattern.path!r}"
    return f"Layer {pattern.name!r}"


def no_match(pattern: Pattern, paths: Sequence[str]) -> str:
    """The message for a pattern that matches none of `paths`."""
    message = f"{describe(pattern)} matches no variable."
    if not isinstance(pattern, str):
        return f"{message} It is not among these {len(paths)} variables, or has none."
    return f"{message} {closest_phrase(pattern, paths, 'path')}"


def closest_phrase(name: str, candidates: Iterable[str], kind: str, count: int = 3) -> str:
    """`Closest paths: 'a', 'b'.`, or what there is instead."""
    near = closest(name, candidates, count)
    if not near:
        return f"There is no {kind} to choose from."
    return f"Closest {kind}s: {', '.join(map(repr, near))}."


def closest(name: str, candidates: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` candidates most like `name`, which may be like a part of them only."""
    width = name.count("/") + 1
    likeness = difflib.SequenceMatcher(b=name, autojunk=False)

    def best(candidate: str, ratio: Callable[[], float]) -> float:
        parts = candidate.split("/")
        windows = {"/".join(parts[i : i + width]) for i in range(len(parts) - width + 1)}
        ratios = []
        for window in windows | {candidate}:
            likeness.set_seq1(window)
            ratios.append(ratio())
        return max(ratios)

    # The cheap upper bound sorts out what cannot be near, so that long lists stay quick.
    unique = dict.fromkeys(candidates)
    likely = sorted(unique, key=lambda c: best(c, likeness.quick_ratio), reverse=True)[:50]
    return sorted(likely, key=lambda c: best(c, likeness.ratio), reverse=True)[:count]


def exact_pattern(variable: keras.Variable) -> str:
    """The pattern that a saved configuration keeps in place of a variable: its whole path."""
    return f"^{re.escape(variable.path)}$"


def serializable(patterns: Patterns) -> list[str] | None:
    """Patterns as a saved configuration keeps them: variables and layers become their paths."""
    if patterns is None:
        return None
    texts: list[str] = []
    for pattern in as_list(patterns):
        if isinstance(pattern, str):
            texts.append(pattern)
        elif isinstance(pattern, keras.Variable):
            texts.append(exact_pattern(pattern))
        else:
            texts.extend(exact_pattern(variable) for variable in pattern.weights)
    return texts


def serializable_rules(rules: Iterable[tuple[Pattern, Any]]) -> list[list[Any]]:
    """Rules as a saved configuration keeps them: pairs of a path and a value."""
    return [[text, value] for pattern, value in rules for text in serializable(pattern) or []]


def runs(path: str) -> set[str]:
    """Return every run of whole, consecutive components of a path.

    Example:
        >>> sorted(runs("net/a"))
        ['a', 'net', 'net/a']
    """
    parts = path.split("/")
    found: set[str] = set()
    for start in range(len(parts)):
        found.update("/".join(parts[start:end]) for end in range(start + 1, len(parts) + 1))
    return found
