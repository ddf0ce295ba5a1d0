"""The arguments of `restore`, checked, and which variables and adapters they choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from keras_trainops import paths
from keras_trainops.adapt.base import Adapt, as_adapter
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.restoring.naming.rules import Rename
from keras_trainops.restoring.naming.target import Target

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

    def for_source(self, checkpoint: Checkpoint) -> Options:
        """Return the options with the usual reactions for such a source in place of None.

        A checkpoint must cover the model; arrays somebody put together must be used whole.

        Raises:
            ValueError: If a reaction is none of the three.
        """
        whole = isinstance(checkpoint, ArraysCheckpoint)
        options = self._replace(
            on_missing=self.on_missing or ("ignore" if whole else "error"),
            on_unexpected=self.on_unexpected or ("error" if whole else "ignore"),
        )
        for argument in REACTIONS:
            reaction = options.reaction(argument)
            if reaction not in get_args(Reaction):
                raise ValueError(
                    f"`{argument}` must be one of {get_args(Reaction)}. Received: {reaction!r}"
                )
        return options

    def reaction(self, argument: str) -> Reaction:
        """Return the reaction that one of `REACTIONS` holds."""
        return getattr(self, argument)


def choose(targets: Sequence[Target], options: Options) -> list[str]:
    """Set which targets are selected, and their adapters.

    Returns:
        Lines about patterns that match nothing.
    """
    named = [target.named for target in targets]
    everything = options.include is None
    included, problems = _selected("include", options.include, named)
    excluded, more = _selected("exclude", options.exclude, named)
    for target, chosen, left_out in zip(targets, included, excluded, strict=True):
        target.selected = (everything or chosen) and not left_out
    return problems + more + _choose_adapters(targets, options.adapt)


def _selected(
    argument: str, patterns: paths.Patterns, named: Sequence[paths.NamedVariable]
) -> tuple[list[bool], list[str]]:
    try:
        return paths.select(patterns, named), []
    except ValueError as error:
        return [False] * len(named), [f"`{argument}`: {line}" for line in str(error).splitlines()]


def _choose_adapters(targets: Sequence[Target], adapt: Adapt) -> list[str]:
    named = [target.named for target in targets]
    rules = [(pattern, as_adapter(value)) for pattern, value in paths.as_rules(adapt)]
    own = [rule for rule in rules if not rule[1].gives_way]
    others = [rule for rule in rules if rule[1].gives_way]
    try:
        first = paths.first_match(own, named)
        second = paths.first_match(others, named, shadowed="allow")
    except ValueError as error:
        return [f"`adapt`: {line}" for line in str(error).splitlines()]
    for target, ours, other in zip(targets, first, second, strict=True):
        target.adapter = ours or other
    return []
