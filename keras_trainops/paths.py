"""Variable paths, patterns and selection: one rule for the whole library.

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
    """A variable and the path that addresses it and appears in reports."""

    path: str
    variable: keras.Variable


def by_path(variables: Iterable[keras.Variable]) -> list[NamedVariable]:
    """Name variables by their own `path`, which may not be unique."""
    return [NamedVariable(variable.path, variable) for variable in variables]


def as_list(patterns: Patterns) -> list[Pattern]:
    """Return one pattern, several, or None as a list of patterns.

    Raises:
        ValueError: If an entry is not a string, variable or layer.
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
    """Return a function that tests if a variable matches `pattern`.

    Raises:
        ValueError: If `pattern` is not a valid regular expression.
    """
    if isinstance(pattern, str):
        expression = _components(pattern)
        return lambda named: expression.fullmatch(named.path) is not None
    variables = [pattern] if isinstance(pattern, keras.Variable) else pattern.variables
    ids = {id(variable) for variable in variables}  # a `keras.Variable` cannot be hashed
    return lambda named: id(named.variable) in ids


def _components(pattern: str) -> re.Pattern[str]:
    """Compile a pattern so that `fullmatch` on a path matches whole components."""
    compile_expression(pattern)  # alone first, so that an error quotes what the user wrote
    flags = re.match(r"(?:\(\?[aiLmsux]+\))*", pattern)
    start = flags.end() if flags else 0  # flags such as `(?i)` must come before everything else
    return compile_expression(rf"{pattern[:start]}(?:.*/)?(?:{pattern[start:]})(?:/.*)?")


def compile_expression(expression: str) -> re.Pattern[str]:
    """Compile a user's regular expression.

    Raises:
        ValueError: If the expression is not valid; the message says where.
    """
    try:
        return re.compile(expression)
    except re.error as error:
        raise ValueError(f"{expression!r} is not a valid regular expression: {error}") from None


def select(patterns: Patterns, named: Sequence[NamedVariable]) -> list[bool]:
    """Return, for each variable, True if any pattern matches it.

    Raises:
        ValueError: If a pattern matches nothing; the message names the closest paths.
    """
    first = first_match([(pattern, True) for pattern in as_list(patterns)], named, shadowed="allow")
    return [choice is not None for choice in first]


def selected(patterns: Patterns, variables: Iterable[keras.Variable]) -> list[keras.Variable]:
    """Return the variables whose own `path` any pattern matches.

    Raises:
        ValueError: If a pattern matches nothing; the message names the closest paths.
    """
    named = by_path(variables)
    chosen = select(patterns, named)
    return [variable for (_, variable), yes in zip(named, chosen, strict=True) if yes]


def first_match(
    rules: Mapping[str, T] | Iterable[tuple[Pattern, T]],
    named: Sequence[NamedVariable],
    *,
    shadowed: str = "error",
) -> list[T | None]:
    """Return, for each variable, the value of the first pattern that matches it.

    Args:
        rules: Patterns and their values, in order. Use pairs if a pattern is a variable or a
            layer, because these cannot be keys of a mapping.
        named: The variables.
        shadowed: Reaction to a pattern that only matches variables taken by earlier patterns:
            "error", or "allow" for plain lists, in which the order has no meaning.

    Returns:
        The values, with None for variables that no pattern matches.

    Raises:
        ValueError: If a pattern matches nothing or, with `shadowed="error"`, never wins.
    """
    values: dict[int, T] = {}
    problems = []
    for pattern, value in as_rules(rules):
        matched = _indices(pattern, named)
        won = [i for i in matched if i not in values]
        if not matched or (not won and shadowed == "error"):
            problems.append(_why_unused(pattern, named, matched))
        values.update((i, value) for i in won)
    if problems:
        raise ValueError("\n".join(problems))
    return [values.get(i) for i in range(len(named))]


def _indices(pattern: Pattern, named: Sequence[NamedVariable]) -> list[int]:
    matches = matcher(pattern)
    return [i for i, entry in enumerate(named) if matches(entry)]


def _why_unused(pattern: Pattern, named: Sequence[NamedVariable], matched: Sequence[int]) -> str:
    if not matched:
        return no_match(pattern, [entry.path for entry in named])
    return (
        f"{describe(pattern)} never applies: earlier patterns match everything it matches, for "
        f"example {named[matched[0]].path!r}. Put it first, or remove it."
    )


def as_rules(rules: Any) -> list[tuple[Pattern, Any]]:
    """Return a mapping from pattern to value, pairs, or None as a list of pairs."""
    if isinstance(rules, Mapping):
        return list(rules.items())
    return [(pattern, value) for pattern, value in rules or ()]


def describe(pattern: Pattern) -> str:
    """Return a pattern as an error message names it."""
    if isinstance(pattern, str):
        return f"Pattern {pattern!r}"
    if isinstance(pattern, keras.Variable):
        return f"Variable {pattern.path!r}"
    return f"Layer {pattern.name!r}"


def no_match(pattern: Pattern, paths: Sequence[str]) -> str:
    """Return the error message for a pattern that matches none of `paths`."""
    message = f"{describe(pattern)} matches no variable."
    if isinstance(pattern, str):
        return f"{message} {closest_phrase(pattern, paths, 'path')}"
    if isinstance(pattern, keras.Variable):
        return f"{message} It is not among the {len(paths)} candidate variables."
    return f"{message} None of its variables is among the {len(paths)} candidates."


def closest_phrase(name: str, candidates: Iterable[str], kind: str, count: int = 3) -> str:
    """Return a sentence such as `Closest paths: 'a', 'b'.` for an error message.

    Args:
        name: The name that was not found.
        candidates: The names that exist.
        kind: The noun for a candidate, such as "path".
        count: The most candidates to show.
    """
    near = closest(name, candidates, count)
    if not near:
        return f"No {kind} exists."
    return f"Closest {kind}s: {', '.join(map(repr, near))}."


def closest(name: str, candidates: Iterable[str], count: int = 3) -> list[str]:
    """Return the candidates most similar to `name`, the most similar first.

    Args:
        name: A name, which may resemble only a part of a candidate.
        candidates: The names to choose from.
        count: The most candidates to return.
    """
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

    # The cheap upper bound discards what cannot be near, so that long lists stay fast.
    unique = dict.fromkeys(candidates)
    likely = sorted(unique, key=lambda c: best(c, likeness.quick_ratio), reverse=True)[:50]
    return sorted(likely, key=lambda c: best(c, likeness.ratio), reverse=True)[:count]


def exact_pattern(path: str) -> str:
    """Return the pattern that matches one whole path and no longer one."""
    return f"^{re.escape(path)}$"


def serializable(patterns: Patterns) -> list[str] | None:
    """Return patterns for a saved configuration, with paths in place of variables and layers."""
    if patterns is None:
        return None
    texts: list[str] = []
    for pattern in as_list(patterns):
        if isinstance(pattern, str):
            texts.append(pattern)
        elif isinstance(pattern, keras.Variable):
            texts.append(exact_pattern(pattern.path))
        else:
            texts.extend(exact_pattern(variable.path) for variable in pattern.weights)
    return texts


def serializable_rules(rules: Iterable[tuple[Pattern, Any]]) -> list[list[Any]]:
    """Return rules for a saved configuration, as pairs of a path and a value."""
    pairs: list[list[Any]] = []
    for pattern, value in rules:
        pairs += [[text, value] for text in serializable(pattern) or []]
    return pairs


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
