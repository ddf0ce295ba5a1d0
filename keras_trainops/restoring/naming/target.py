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
    """A variable of the model, with its names and everything that is decided about it.

    Two targets are equal if they are the same object: names may repeat, and none is an identity.

    Attributes:
        weight: The variable and its names.
        stored_as: The names under which a weights file would store it: several if layers share it,
            as tied embeddings do; none if the source is no such file.
        selected: Whether `include` and `exclude` choose it.
        adapter: What makes tensors fit; None if they are assigned as they are.
        leads: The keys that lead to it, each with the place of its rename rule among the rules.
        copies: Keys under which a weights file holds it again, for another layer that shares it.
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
        """The path by which it is addressed and reported."""
        return self.weight.path

    @property
    def short_path(self) -> str:
        """The same without the model's own name."""
        return self.weight.short

    @property
    def shape(self) -> tuple[int, ...]:
        """The variable's shape."""
        return tuple(self.variable.shape)

    @property
    def named(self) -> NamedVariable:
        """The variable under its path, as patterns look at it."""
        return NamedVariable(self.path, self.variable)

    @property
    def keys(self) -> list[str]:
        """The keys that lead to it, in the order of the rules.

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
