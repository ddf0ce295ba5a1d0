"""The kinds of variables, by how other libraries store them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from keras_trainops.adapt.base import Adapter, Shape
from keras_trainops.adapt.combination import Stack, Sum
from keras_trainops.adapt.layout import (
    Flip,
    Gates,
    Reshape,
    ReshapeFrom,
    Transpose,
    channels_first_flatten,
)
from keras_trainops.layouts.layout import Candidate, Layout
from keras_trainops.layouts.reading import transpose

__all__ = [
    "Convolution",
    "Depthwise",
    "Layout",
    "Linear",
    "Parameter",
    "RecurrentBias",
    "RecurrentKernel",
    "Table",
    "Vector",
]


class Linear(Layout):
    """A matrix product's kernel, whose inputs or outputs may be several axes.

    Other libraries have one axis for all inputs and one for all outputs.

    Args:
        inputs: Lengths of the input axes, in the order in which they are flattened.
        outputs: Lengths of the output axes, in the order in which they are flattened.
        order: Order of these axes in the variable; they are numbered inputs first. Default: as is.
        features: For a layer after `Flatten` of a convolution's features: their shape, channels
            last. PyTorch flattens the channels first.
        is_channels_first: True if Keras flattens the channels first too.

    Example:
        The output projection of an attention with 2 heads of size 3:

        >>> Linear((2, 3), (8,)).readings((8, 6))
        (Reading(convention='torch', steps=(Transpose(), Reshape())),)
    """

    kind = "linear"

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        order: Sequence[int] | None = None,
        features: Shape | None = None,
        *,
        is_channels_first: bool = False,
    ) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        axes = (*self.inputs, *self.outputs)
        self.order: tuple[int, ...] = tuple(range(len(axes)) if order is None else order)
        self.features = features
        self._is_plain = len(self.inputs) == len(self.outputs) == 1
        self._has_windows = self._is_plain and not is_channels_first
        super().__init__([axes[axis] for axis in self.order])

    @property
    def rows(self) -> int:
        """Number of outputs."""
        return math.prod(self.outputs)

    @property
    def columns(self) -> int:
        """Number of inputs."""
        return math.prod(self.inputs)

    def from_matrix(self) -> list[Adapter]:
        """Return the steps from a tensor with the inputs first, in any number of axes."""
        return [Reshape([*self.inputs, *self.outputs]), transpose(self.order)]

    def _candidates(self, shape: Shape) -> Iterator[Candidate]:
        as_matrix = shape == (self.columns, self.rows)
        if shape == (self.rows, self.columns):
            yield "torch", [Transpose(), *self._reordered(), *self.from_matrix()]
        elif shape == self.outputs + self.inputs and not self._is_plain:
            axes = [*range(len(self.outputs), len(shape)), *range(len(self.outputs))]
            yield "torch", [transpose(axes), *self.from_matrix()]
        elif self._is_window(shape, shape[1:], shape[2:] + shape[1:2], shape[0:1]):
            yield "torch", [_space_first(len(shape)), *self.from_matrix()]
        if shape == self.shape:
            yield "keras", []
        if as_matrix or shape == self.inputs + self.outputs or self._has_inputs_first(shape):
            yield "keras", self.from_matrix()

    def _is_window(self, shape: Shape, inputs: Shape, features: Shape, outputs: Shape) -> bool:
        """Return True for the kernel of a convolution whose window covers all its inputs.

        Args:
            shape: Shape of the tensor.
            inputs: Its input axes.
            features: The same, channels last.
            outputs: Its output axis.
        """
        if len(shape) < 3 or math.prod(inputs) != self.columns or outputs != (self.rows,):
            return False
        if math.prod(shape[2:]) == 1:
            return True
        return self._has_windows and self.features in (None, features)

    def _has_inputs_first(self, shape: Shape) -> bool:
        """Return True if the first axes of a tensor are the inputs, and the others the outputs."""
        for axis in range(1, len(shape)):
            given, result = shape[:axis], shape[axis:]
            if (math.prod(given), math.prod(result)) == (self.columns, self.rows):
                return self._are_axes(given, self.inputs) and self._are_axes(result, self.outputs)
        return False

    def _are_axes(self, given: Shape, wanted: Shape) -> bool:
        """Return True if axes of a tensor may be those of the variable, or split or merge them."""
        if _is_flat(given) or _same_but_ones(given, wanted):
            return True
        is_window = self._has_windows and self.features in (None, given)
        return is_window if wanted is self.inputs else self._is_plain

    def _reordered(self) -> list[Adapter]:
        return [] if self.features is None else [*channels_first_flatten(self.features).adapters]

    def torch_steps(self) -> Sequence[Adapter]:
        if self._is_plain:
            swapped = [Transpose()] if self.order == (1, 0) else []
            return [] if swapped else [Transpose(), *self._reordered()]
        check = ReshapeFrom([self.columns, self.rows], [*self.inputs, *self.outputs])
        ordered = self.order == tuple(range(len(self.order)))
        return [Transpose(), check, *([] if ordered else [Transpose(self.order)])]


class Convolution(Layout):
    """The kernel of a convolution or of a transposed one, also with groups.

    Args:
        shape: Shape of the variable: the space, then two axes of channels.
        is_transposed: True for a transposed convolution.
    """

    kind = "convolution"

    def __init__(self, shape: Sequence[int], *, is_transposed: bool = False) -> None:
        super().__init__(shape)
        self.is_transposed = is_transposed

    def _candidates(self, shape: Shape) -> Iterator[Candidate]:
        *space, first, second = self.shape
        if len(shape) < 2 or math.prod(shape) != math.prod(self.shape):
            return
        if shape[:2] == (second, first) and _same_but_ones(shape[2:], space):
            yield "torch", [_space_first(len(shape)), Reshape(self.shape)]
        elif shape == (second, first * math.prod(space)) and not self.is_transposed:
            yield "torch", [Reshape([second, first, *space]), _space_first(len(self.shape))]
            yield "torch", [Transpose(), Reshape(self.shape)]
        has_channels = shape[-2:] == (first, second) and _same_but_ones(shape[:-2], space)
        is_matrix = shape == (first * math.prod(space), second) and not self.is_transposed
        if has_channels or is_matrix:
            yield "keras", [Reshape(self.shape)]
        if self.is_transposed and shape == (*space, second, first):  # Flax
            rank = len(shape)
            swapped = Transpose([*range(rank - 2), rank - 1, rank - 2])
            yield "keras", [Flip(range(rank - 2)), swapped]

    def torch_steps(self) -> Sequence[Adapter]:
        return [_space_first(len(self.shape))]


class Depthwise(Layout):
    """The kernel of a depthwise convolution, of shape (*space, channels, multiplier)."""

    kind = "depthwise"

    def _candidates(self, shape: Shape) -> Iterator[Candidate]:
        *space, channels, multiplier = self.shape
        if shape == (channels * multiplier, 1, *space):
            yield "torch", self._by_channel(Reshape([channels, multiplier, *space]))
        if shape == self.shape:
            yield "keras", []
        elif shape == (*space, 1, channels * multiplier):  # Flax
            yield "keras", [Reshape()]

    def _by_channel(self, split: Reshape) -> list[Adapter]:
        rank = len(self.shape)
        return [split, Transpose([*range(2, rank), 0, 1])]

    def torch_steps(self) -> Sequence[Adapter]:
        *space, channels, multiplier = self.shape
        whole = [channels * multiplier, 1, *space]
        return self._by_channel(ReshapeFrom(whole, [channels, multiplier, *space]))


class Vector(Layout):
    """A bias, or a scale, offset or statistic of a normalization.

    Args:
        shape: Shape of the variable.
        features: For a layer after `Flatten` of a convolution's features: their shape, channels
            last. PyTorch flattens the channels first.
        has_channels_last: True if the axes are those of an image, which PyTorch stores channels
            first.
    """

    kind = "vector"

    def __init__(
        self,
        shape: Sequence[int],
        features: Shape | None = None,
        *,
        has_channels_last: bool = False,
    ) -> None:
        super().__init__(shape)
        self.features = features
        self.has_channels_last = has_channels_last

    def _candidates(self, shape: Shape) -> Iterator[Candidate]:
        if math.prod(shape) != math.prod(self.shape):
            return
        channels_first = (self.shape[-1], *self.shape[:-1]) if self.has_channels_last else None
        if (self.features is not None and _is_flat(shape)) or shape == channels_first:
            yield "torch", self.torch_steps()
        if _same_but_ones(shape, self.shape) or _is_flat(shape) or _is_flat(self.shape):
            yield None if self.features is None else "keras", [Reshape(self.shape)]

    def torch_steps(self) -> Sequence[Adapter]:
        if self.features is not None:
            *space, channels = self.features
            return [
                Reshape([channels, *space]),
                Transpose([*range(1, len(self.features)), 0]),
                Reshape(),
            ]
        if self.has_channels_last:
            return [Transpose([*range(1, len(self.shape)), 0])]
        return [Reshape()] if len(self.shape) > 1 else []


class Table(Layout):
    """A table with a row per word or position; the same in all libraries."""

    kind = "table"

    def _candidates(self, shape: Shape) -> Iterator[Candidate]:
        if _same_but_ones(shape, self.shape):
            yield None, [Reshape(self.shape)]


class RecurrentKernel(Layout):
    """The kernel of a recurrent cell for its inputs or for its state.

    Args:
        shape: Shape of the variable: (inputs, gates · units).
        gates: For each gate in Keras, its index in PyTorch; none if the order is the same.
        is_in_torch: False if PyTorch does not have this cell.
    """

    kind = "recurrent"

    def __init__(
        self, shape: Sequence[int], gates: Sequence[int] = (), *, is_in_torch: bool = True
    ) -> None:
        super().__init__(shape)
        self.gates = tuple(gates)
        self.is_in_torch = is_in_torch

    def _candidates(self, shape: Shape) -> Iterator[Candidate]:
        if shape == self.shape[::-1] and self.is_in_torch:
            yield "torch", self.torch_steps()
        if shape == self.shape:
            yield "keras", []

    def torch_steps(self) -> Sequence[Adapter]:
        return [Transpose(), *([Gates(self.gates)] if self.gates else [])]


class RecurrentBias(Layout):
    """The bias of a recurrent cell; PyTorch has two, of the inputs and of the state.

    Args:
        shape: Shape of the variable.
        gates: See `RecurrentKernel`.

    Attributes:
        is_pair: True if the variable keeps the two biases apart, as a GRU does; an LSTM adds them.
    """

    kind = "recurrent"

    def __init__(self, shape: Sequence[int], gates: Sequence[int] = ()) -> None:
        super().__init__(shape)
        self.gates = tuple(gates)
        self.is_pair = len(self.shape) > 1

    def _candidates(self, shape: Shape) -> Iterator[Candidate]:
        if shape == self.shape:
            yield None if not self.gates else "keras", []

    def torch_steps(self) -> Sequence[Adapter]:
        """Return the adapters of both tensors, that of the inputs first."""
        joined: Adapter = Stack() if self.is_pair else Sum()
        return [joined, *([Gates(self.gates)] if self.gates else [])]


class Parameter(Layout):
    """A variable of a layer that this package does not know.

    It is taken as it is. A matrix may be stored transposed, and so may a stack of matrices, such as
    the weights of experts (experts, inputs, outputs).
    """

    kind = "parameter"

    def _candidates(self, shape: Shape) -> Iterator[Candidate]:
        if _same_but_ones(shape, self.shape):
            yield None, [Reshape(self.shape)]
        if len(self.shape) == 2 and shape == self.shape[::-1]:
            yield "torch", [Transpose()]
        if len(self.shape) != 3:
            return
        count, first, second = self.shape
        if shape == (count, second, first):
            yield "torch", [Transpose([0, 2, 1])]
        if shape == (count * second, first):
            yield "torch", [Reshape([count, second, first]), Transpose([0, 2, 1])]
        if shape == (count * first, second):
            yield None, [Reshape()]


def _space_first(rank: int) -> Transpose:
    """Return the adapter from (outputs, inputs, *space) to (*space, inputs, outputs)."""
    return transpose([*range(2, rank), 1, 0])


def _same_but_ones(one: Iterable[int], other: Iterable[int]) -> bool:
    """Return True if two shapes differ at most in axes of length 1."""
    return [n for n in one if n != 1] == [n for n in other if n != 1]


def _is_flat(shape: Shape) -> bool:
    return sum(length != 1 for length in shape) <= 1
