"""Adapters: what tensors of a checkpoint become before they are assigned to a variable.

`adapt={pattern: adapter}` of `restore` says for which variables; the first pattern that matches
wins. An adapter is an `Adapter`, or a callable that takes the arrays of the keys that lead to the
variable (one each, in the order of the rename rules) and returns one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_trainops import paths

Shape: TypeAlias = tuple[int, ...]


class Adapter(ABC):
    """Makes one array, that fits a variable, of the arrays that a checkpoint has for it."""

    @abstractmethod
    def shape(self, shapes: Sequence[Shape], target: Shape) -> Shape | None:
        """The shape of the result, told before anything is read.

        Args:
            shapes: The shapes of the tensors.
            target: The shape of the variable.

        Returns:
            The shape; None where only the values tell.

        Raises:
            ValueError: If tensors of these shapes cannot be adapted; the message says why.
        """

    @abstractmethod
    def __call__(self, arrays: Sequence[np.ndarray], variable: keras.Variable) -> np.ndarray:
        """The array to assign."""


Adapt: TypeAlias = (
    "Mapping[str, Adapter | Callable[..., Any]]"
    " | Iterable[tuple[paths.Pattern, Adapter | Callable[..., Any]]] | None"
)


def _only(tensors: Sequence[Any], adapter: Adapter) -> Any:
    if len(tensors) != 1:
        raise ValueError(f"{adapter} takes one tensor, and {len(tensors)} keys lead here")
    return tensors[0]


class Transpose(Adapter):
    """Permutes the axes of one tensor.

    Square kernels need it, too, where the other library stores them as (outputs, inputs): that is
    nothing shapes could tell.

    Args:
        axes: The order of the tensor's axes; None reverses them.

    Example:
        >>> import numpy as np, keras_trainops as kt
        >>> kt.adapt.Transpose().shape([(768, 3072)], target=(3072, 768))
        (3072, 768)

    References: `numpy.transpose`; PyTorch's `Linear.weight` is `Dense.kernel` transposed.
    """

    def __init__(self, axes: Sequence[int] | None = None) -> None:
        if axes is not None and sorted(axes) != list(range(len(axes))):
            raise ValueError(f"`axes` must be a permutation of 0 … n-1. Received: axes={axes!r}")
        self.axes = None if axes is None else tuple(axes)

    def shape(self, shapes: Sequence[Shape], target: Shape) -> Shape:
        """The permuted shape."""
        shape = _only(shapes, self)
        if self.axes is None:
            return shape[::-1]
        if len(shape) != len(self.axes):
            raise ValueError(f"{self} takes {len(self.axes)} axes, and the tensor is {shape}")
        return tuple(shape[axis] for axis in self.axes)

    def __call__(self, arrays: Sequence[np.ndarray], variable: keras.Variable) -> np.ndarray:
        """The tensor with permuted axes."""
        return np.transpose(_only(arrays, self), self.axes)

    def __repr__(self) -> str:
        return f"Transpose({'' if self.axes is None else list(self.axes)})"


class Reshape(Adapter):
    """Gives one tensor the variable's shape; the elements keep their order.

    Example:
        >>> import keras_trainops as kt
        >>> kt.adapt.Reshape().shape([(1, 1, 2048, 10)], target=(2048, 10))
        (2048, 10)

    References: `reshape_variables` of `assign_from_checkpoint_fn` in tf.contrib.framework.
    """

    def shape(self, shapes: Sequence[Shape], target: Shape) -> Shape:
        """The variable's shape, if it has as many elements."""
        shape = _only(shapes, self)
        if math.prod(shape) != math.prod(target):
            raise ValueError(
                f"{shape} has {math.prod(shape)} elements, and the variable's {target} has "
                f"{math.prod(target)}"
            )
        return target

    def __call__(self, arrays: Sequence[np.ndarray], variable: keras.Variable) -> np.ndarray:
        """The tensor in the variable's shape."""
        return np.reshape(_only(arrays, self), tuple(variable.shape))

    def __repr__(self) -> str:
        return "Reshape()"


class _Function(Adapter):
    """A callable on arrays, whose result is known when it is called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def shape(self, shapes: Sequence[Shape], target: Shape) -> None:
        return None

    def __call__(self, arrays: Sequence[np.ndarray], variable: keras.Variable) -> np.ndarray:
        return np.asarray(self.function(*arrays))

    def __repr__(self) -> str:
        return str(getattr(self.function, "__name__", self.function))


def as_adapter(value: Any) -> Adapter:
    """An adapter, or a callable as one.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(value, Adapter):
        return value
    if callable(value) and not isinstance(value, type):
        return _Function(value)
    raise ValueError(
        "An adapter must be of `keras_trainops.adapt`, as `Transpose()`, or a callable from arrays "
        f"to an array. Received: {value!r}"
    )
