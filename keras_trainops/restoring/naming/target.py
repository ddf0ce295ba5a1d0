"""The record of one variable that a restore may assign."""

from __future__ import annotations

from dataclasses import dataclass, field

import keras

from keras_trainops import numbering
from keras_trainops.adapt.base import Adapter
from keras_trainops.paths import NamedVariable
from keras_trainops.weight_names import NamedWeight


@dataclass(eq=False)
class Target:
    """A variable of the model, with its names and all decisions about it.

    Targets compare by identity, because names may repeat.

    Attributes:
        weight: The variable and its names.
        stored_as: Names under which a Keras weights file stores it: several if layers share it, as
            with tied embeddings; none for sources of other formats.
        selected: If True, `include` and `exclude` select it.
        adapter: The adapter for its tensors; None to assign them unchanged.
        leads: Keys that lead to it, each preceded by the position of its rename rule.
        copies: Keys under which a weights file stores it again, for another layer that shares it.
    """

    weight: NamedWeight
    stored_as: set[str] = field(default_factory=set)
    selected: bool = True
    adapter: Adapter | None = None
    leads: list[tuple[int, str]] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)

    @property
    def variable(self) -> keras.Variable:
        """The variable."""
        return self.weight.variable

    @property
    def path(self) -> str:
        """The unique path that addresses the variable and appears in reports."""
        return self.weight.path

    @property
    def short_path(self) -> str:
        """The path without the model's own name."""
        return self.weight.short

    @property
    def shape(self) -> tuple[int, ...]:
        """The variable's shape."""
        return tuple(self.variable.shape)

    @property
    def named(self) -> NamedVariable:
        """The variable under its path, for matching with patterns."""
        return NamedVariable(self.path, self.variable)

    @property
    def keys(self) -> list[str]:
        """The keys that lead to the variable, in the order of the rules.

        Keys of one rule that differ only in numbers are in numerical order: some formats sort keys
        as text, `experts.10` before `experts.2`.
        """
        keys: list[str] = []
        for order in sorted({order for order, _ in self.leads}):
            of_rule = [key for other, key in self.leads if other == order]
            numbered = len(numbering.by_family(of_rule)) == 1
            keys += sorted(of_rule, key=_numbers) if numbered else of_rule
        return keys


def _numbers(key: str) -> list[int]:
    return [int(number) for number in numbering.split(key)[1]]
