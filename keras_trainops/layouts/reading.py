"""One way to take a tensor of another library as a Keras variable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from keras_trainops.adapt.base import Adapter, Shape, chain_of
from keras_trainops.adapt.layout import Reshape, Transpose

Convention: TypeAlias = Literal["torch", "keras"]
"""The axis order of kernels.

"torch": (outputs, inputs, *space). "keras": (*space, inputs, outputs), as in Keras, Flax,
TensorFlow, slim, and the `Conv1D` modules of GPT-2.
"""


class Reading(NamedTuple):
    """One way to take a tensor as a variable.

    Attributes:
        convention: The axis order that this reading assumes; None if the tensor looks the same in
            both, as vectors and tables do.
        steps: Adapters from the tensor to the variable, in order; none if it stays as it is.

    Example:
        >>> from keras_trainops.layouts.kinds import Linear
        >>> torch, keras = Linear((4,), (2, 2)).readings((4, 4))
        >>> torch
        Reading(convention='torch', steps=(Transpose(), Reshape()))
        >>> keras
        Reading(convention='keras', steps=(Reshape(),))
    """

    convention: Convention | None
    steps: tuple[Adapter, ...]

    @property
    def adapter(self) -> Adapter | None:
        """The steps as one adapter; None if the tensor stays as it is."""
        return chain_of(self.steps)


def reading(
    convention: Convention | None, steps: Iterable[Adapter], shape: Shape, target: Shape
) -> Reading:
    """Return a reading with the simplest steps that do the same.

    Args:
        convention: See `Reading`.
        steps: Adapters of one tensor.
        shape: Shape of the tensor.
        target: Shape of the variable.

    Example:
        >>> reading("torch", [Transpose(), Reshape([4, 2, 3])], (6, 4), (4, 2, 3))
        Reading(convention='torch', steps=(Transpose(), Reshape()))
        >>> reading("torch", [Transpose(), Transpose()], (3, 6), (3, 6))
        Reading(convention='torch', steps=())
    """
    kept: list[Adapter] = []
    shapes = [shape]
    for step in steps:
        while kept and (joined := _joined(kept[-1], step, shapes[-2])) is not None:
            step = joined
            kept.pop()
            shapes.pop()
        new_shape = step.shape([shapes[-1]], target) or ()
        if not _is_idle(step, shapes[-1], new_shape):
            kept.append(step)
            shapes.append(new_shape)
    if kept and isinstance(kept[-1], Reshape) and shapes[-1] == target:
        kept[-1] = Reshape()
    return Reading(convention, tuple(kept))


def _joined(first: Adapter, second: Adapter, shape: Shape) -> Adapter | None:
    """Return one adapter that does the same as two, or None.

    Args:
        first: An adapter.
        second: The one that follows it.
        shape: Shape of the tensor before both.
    """
    if isinstance(first, Reshape) and isinstance(second, Reshape):
        return second
    if isinstance(first, Transpose) and isinstance(second, Transpose):
        before, after = _order(first, len(shape)), _order(second, len(shape))
        return transpose([before[axis] for axis in after])
    return None


def _is_idle(step: Adapter, shape: Shape, new_shape: Shape) -> bool:
    if isinstance(step, Transpose):
        return _order(step, len(shape)) == list(range(len(shape)))
    return isinstance(step, Reshape) and shape == new_shape


def _order(step: Transpose, rank: int) -> list[int]:
    return list(range(rank)[::-1]) if step.axes is None else list(step.axes)


def transpose(axes: Sequence[int]) -> Transpose:
    """Return a `Transpose` in its shortest form."""
    is_reversed = list(axes) == list(range(len(axes)))[::-1]
    return Transpose(None if is_reversed else axes)
