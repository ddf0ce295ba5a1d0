"""The arguments of `restore`, checked, and the variables and adapters they select."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from keras_trainops import paths
from keras_trainops.adapt.base import Adapt, Adapter, as_adapter
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.restoring.naming.rules import Rename
from keras_trainops.restoring.naming.target import Target
from keras_trainops.restoring.planning.saved_plan import SavedPlan

Reaction = Literal["error", "warn", "ignore"]
REACTIONS = ("on_mismatch", "on_missing", "on_unexpected")


class Options(NamedTuple):
    """The arguments of `restore`, as documented there."""

    rename: Rename = None
    include: paths.Patterns = None
    exclude: paths.Patterns = None
    adapt: Adapt = None
    on_missing: Reaction | None = None
    on_unexpected: Reaction | None = None
    on_mismatch: Reaction = "error"
    include_optimizer: bool = False
    plan: SavedPlan | None = None

    def checked(self) -> Options:
        """Return the options, if they do not contradict each other.

        Raises:
            ValueError: If there is a plan and something that it decides.
        """
        given = [name for name in ("rename", "adapt") if getattr(self, name) is not None]
        if self.plan is not None and given:
            raise ValueError(
                "A plan decides which tensors lead to which variables, so it excludes "
                f"`{given[0]}`."
            )
        return self

    def for_source(self, checkpoint: Checkpoint) -> Options:
        """Return the options with the default reactions for a source in place of None.

        A checkpoint must cover the model. Every entry of a mapping of arrays must be used.

        Raises:
            ValueError: If a reaction is not one of the three.
        """
        is_arrays = isinstance(checkpoint, ArraysCheckpoint)
        options = self._replace(
            on_missing=self.on_missing or ("ignore" if is_arrays else "error"),
            on_unexpected=self.on_unexpected or ("error" if is_arrays else "ignore"),
        )
        for argument in REACTIONS:
            reaction = options.reaction(argument)
            if reaction not in get_args(Reaction):
                raise ValueError(
                    f"`{argument}` must be one of {get_args(Reaction)}. Received: {reaction!r}"
                )
        return options

    def reaction(self, argument: str) -> Reaction:
        """Return the value of one of `REACTIONS`."""
        return getattr(self, argument)


def choose(targets: Sequence[Target], options: Options) -> list[str]:
    """Set which targets are selected, and their adapters.

    Args:
        targets: The variables, changed in place.
        options: The patterns and adapters.

    Returns:
        Lines about patterns that match nothing.

    Raises:
        ValueError: If a pattern or an adapter has the wrong type.
    """
    named = [target.named for target in targets]
    everything = options.include is None
    included, problems = _selected("include", options.include, named)
    excluded, more = _selected("exclude", options.exclude, named)
    for target, is_included, is_excluded in zip(targets, included, excluded, strict=True):
        target.selected = (everything or is_included) and not is_excluded
    return problems + more + _choose_adapters(targets, named, options.adapt)


def _selected(
    argument: str, patterns: paths.Patterns, named: Sequence[paths.NamedVariable]
) -> tuple[list[bool], list[str]]:
    try:
        return paths.select(patterns, named), []
    except ValueError as error:
        return [False] * len(named), _lines(argument, error)


def _choose_adapters(
    targets: Sequence[Target], named: Sequence[paths.NamedVariable], adapt: Adapt
) -> list[str]:
    rules = [(pattern, as_adapter(value)) for pattern, value in paths.as_rules(adapt)]
    try:
        adapters = _first_adapters(rules, named)
    except ValueError as error:
        return _lines("adapt", error)
    for target, adapter in zip(targets, adapters, strict=True):
        target.adapter = adapter
    return []


def _first_adapters(
    rules: Sequence[tuple[paths.Pattern, Adapter]], named: Sequence[paths.NamedVariable]
) -> list[Adapter | None]:
    """Return the first adapter that matches each variable; user rules come before the others."""
    firm = [rule for rule in rules if not rule[1].yields_to_user_rules]
    yielding = [rule for rule in rules if rule[1].yields_to_user_rules]
    first = paths.first_match(firm, named)
    second = paths.first_match(yielding, named, shadowed="allow")
    return [adapter or other for adapter, other in zip(first, second, strict=True)]


def _lines(argument: str, error: ValueError) -> list[str]:
    return [f"`{argument}`: {line}" for line in str(error).splitlines()]
