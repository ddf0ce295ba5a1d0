"""The protocol of layouts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, TypeAlias

from keras_trainops.adapt.base import Adapter, Shape
from keras_trainops.layouts.reading import Convention, Reading, reading

Kind: TypeAlias = Literal[
    "linear", "convolution", "depthwise", "vector", "table", "recurrent", "parameter"
]
Candidate: TypeAlias = "tuple[Convention | None, Sequence[Adapter]]"


class Layout(ABC):
    """How other libraries store the tensor of one variable. Layouts are compared by value.

    Args:
        shape: Shape of the variable.

    Attributes:
        shape: Shape of the variable.
        kind: What the variable is.
    """

    kind: ClassVar[Kind]

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape: Shape = tuple(shape)

    def readings(self, shape: Shape) -> tuple[Reading, ...]:
        """Return all ways to take a tensor as the variable.

        Args:
            shape: Shape of the tensor.

        Returns:
            The readings, the more usual ones of a convention first; none if the tensor does not
            fit. A square matrix has several.

        Example:
            >>> from keras_trainops.layouts.kinds import Depthwise
            >>> Depthwise((3, 3, 8, 1)).readings((8, 1, 3, 3))
            (Reading(convention='torch', steps=(Transpose([2, 3, 0, 1]),)),)
        """
        found: dict[str, Reading] = {}
        for convention, steps in self._candidates(tuple(shape)):
            new = reading(convention, steps, tuple(shape), self.shape)
            known = found.setdefault(repr(new.steps), new)
            if known.convention != convention:
                found[repr(new.steps)] = Reading(None, new.steps)
        return tuple(found.values())

    @abstractmethod
    def _candidates(self, shape: Shape) -> Iterator[Candidate]:
        """Yield the convention and the steps of each reading of a tensor of this shape."""

    def torch_steps(self) -> Sequence[Adapter]:
        """Return the adapters of PyTorch's tensor; they check what the steps of a reading need not.

        A tensor of another length passes, so that `Crop`, `Pad` or an error can follow.
        """
        return ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.shape)})"
