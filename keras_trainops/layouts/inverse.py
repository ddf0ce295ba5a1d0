"""From variables back to the tensors of which they are parts, or that they stack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_trainops.adapt.base import Adapter, Shape, chain_of
from keras_trainops.adapt.combination import Concat, Split, Stack
from keras_trainops.adapt.layout import Reshape
from keras_trainops.layouts.reading import Reading, inverses


class Joined(Adapter):
    """Makes a fused tensor from its parts, in the order in which they were taken out.

    Args:
        parts: For each variable, the adapters that undo what follows the `Split`.
        order: For each part of the tensor, the index of its variable.
        axis: The axis along which the parts are joined.
        rest: The adapters that undo what precedes the `Split`.
    """

    def __init__(
        self,
        parts: Sequence[Adapter | None],
        order: Sequence[int],
        axis: int,
        rest: Adapter | None,
    ) -> None:
        self.parts, self.order = tuple(parts), tuple(order)
        self.concat, self.rest = Concat(axis), rest

    def shape(self, shapes: Sequence[Shape], target: Shape) -> Shape | None:
        undone = [
            part.shape([shape], target) if part else shape
            for part, shape in zip(self.parts, shapes, strict=True)
        ]
        whole = self.concat.shape([undone[i] or () for i in self.order], target)
        return self.rest.shape([whole], target) if self.rest else whole

    def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
        undone = [
            part([array], target) if part else array
            for part, array in zip(self.parts, arrays, strict=True)
        ]
        whole = self.concat([undone[i] for i in self.order], target)
        return self.rest([whole], target) if self.rest else whole

    def __repr__(self) -> str:
        parts = ", ".join(map(repr, self.parts))
        return f"Joined([{parts}], {self.concat}, {self.rest})"


def joined(readings: Sequence[Reading], shape: Shape) -> Adapter:
    """Return the adapter from variables back to the fused tensor that they were taken from.

    Args:
        readings: The readings of all parts, as `parts_of` and `halves_of` return them.
        shape: Shape of the fused tensor.

    Raises:
        ValueError: If the readings are not those of all parts of one tensor.

    Example:
        >>> from keras_trainops.layouts.fused import halves_of
        >>> from keras_trainops.layouts.kinds import Linear
        >>> halves = halves_of("gate_up", Linear((4,), (6,)), Linear((4,), (6,)), (12, 4), "torch")
        >>> joined(halves, (12, 4)).shape([(4, 6), (4, 6)], ())
        (12, 4)
    """
    places = [_place_of_split(found.steps) for found in readings]
    splits = [found.steps[place] for found, place in zip(readings, places, strict=True)]
    indices = [split.index for split in splits if isinstance(split, Split)]
    count = _count(splits[0])
    before = {repr(found.steps[:place]) for found, place in zip(readings, places, strict=True)}
    if sorted(indices) != list(range(count)) or len(before) > 1:
        raise ValueError(
            f"`readings` must be those of all parts of one tensor. Received: {readings!r}"
        )
    prefix = readings[0].steps[: places[0]]
    whole = _shape_after(prefix, shape)
    parts = [
        chain_of(inverses(found.steps[place + 1 :], _shape_after([split], whole)))
        for found, place, split in zip(readings, places, splits, strict=True)
    ]
    order = [indices.index(index) for index in range(count)]
    axis = splits[0].axis if isinstance(splits[0], Split) else 0
    return Joined(parts, order, axis, chain_of(inverses(prefix, shape)))


def _place_of_split(steps: Sequence[Adapter]) -> int:
    places = [place for place, step in enumerate(steps) if isinstance(step, Split)]
    if len(places) != 1:
        raise ValueError(f"{list(steps)} takes no part of a tensor")
    return places[0]


def _count(split: Adapter) -> int:
    parts = split.parts if isinstance(split, Split) else 0
    return parts if isinstance(parts, int) else len(parts)


def _shape_after(steps: Sequence[Adapter], shape: Shape) -> Shape:
    for step in steps:
        shape = step.shape([shape], ()) or ()
    return shape


def unstacked(found: Reading, shape: Shape, count: int) -> list[Adapter]:
    """Return an adapter per tensor, from the variable back to the tensors that it stacks.

    Args:
        found: A reading that begins with `Stack`.
        shape: Shape of each tensor.
        count: Number of tensors.

    Raises:
        ValueError: If the reading does not stack tensors.

    Example:
        >>> from keras_trainops.layouts.fused import stacked
        >>> from keras_trainops.layouts.kinds import Parameter
        >>> unstacked(stacked(Parameter((2, 4, 6)), (6, 4), 2)[0], (6, 4), 2)[1]
        Chain(Transpose([0, 2, 1]), Split(1, 2), Reshape([6, 4]))
    """
    if not found.steps or not isinstance(found.steps[0], Stack) or found.steps[0].axis:
        raise ValueError(f"`found` must begin with `Stack()`. Received: {found!r}")
    whole = inverses(found.steps[1:], (count, *shape))
    adapters = [chain_of([*whole, Split(i, count), Reshape(shape)]) for i in range(count)]
    return [adapter for adapter in adapters if adapter is not None]
