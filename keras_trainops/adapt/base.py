"""The protocol of adapters, their composition, and callables as adapters."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np

from keras_trainops import paths

Shape: TypeAlias = tuple[int, ...]


class Adapter(ABC):
    """Makes one array, that fits a variable, of the arrays that a checkpoint has for it.

    An adapter knows arrays and shapes only: neither models nor files. Its `repr` is the call that
    makes it, for reports and suggestions.

    Attributes:
        gives_way: Whether other rules for the same variable win, wherever they stand.
    """

    gives_way: ClassVar[bool] = False

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
    def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
        """The array to assign.

        Args:
            arrays: The tensors, of any numeric dtype.
            target: The shape of the variable.

        Returns:
            The array. Of a `numpy.ma.MaskedArray` the masked elements are not assigned: there the
            variable keeps what it holds.
        """

    def for_keys(
        self, keys: Sequence[str], shapes: Sequence[Shape], target: Shape
    ) -> tuple[Sequence[str], Adapter | None]:
        """What to do with the tensors of these keys, where their names decide it.

        Args:
            keys: The keys that lead to the variable, in the order of the rename rules.
            shapes: The shapes of their tensors.
            target: The shape of the variable.

        Returns:
            The keys in the order in which the adapter gets their tensors, and the adapter; None
            where the tensor is the variable's value as it is. By default what was given.

        Raises:
            ValueError: If the names do not tell; the message says what to do.
        """
        return keys, self


class OneTensor(Adapter):
    """What the adapters of one tensor share: more than one is an error."""

    def shape(self, shapes: Sequence[Shape], target: Shape) -> Shape:
        return self._shape(self._only(shapes), target)

    def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
        array = self._only(arrays)
        self._shape(np.shape(array), target)  # which nobody has told yet behind a callable
        return self._adapt(array, target)

    @abstractmethod
    def _shape(self, shape: Shape, target: Shape) -> Shape: ...

    @abstractmethod
    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray: ...

    def _only(self, tensors: Sequence[Any]) -> Any:
        if len(tensors) != 1:
            raise ValueError(
                f"it takes one tensor, and {len(tensors)} keys lead here. Combine them first, by "
                "`Concat`, `Stack` or `Sum`"
            )
        return tensors[0]


class Chain(Adapter):
    """Adapters one after the other, first to last; a list of adapters stands for the same.

    The first gets the tensors of all keys, each other what the one before it made. `Pad`, `Crop`,
    `Rows` and `InputChannels` bring one axis to the length it has in the variable, so they stand
    behind `Transpose` and `Reshape`.

    Args:
        adapters: Adapters, or callables from one array (the first: one for each key) to an array.

    Raises:
        ValueError: If there is none, or one is neither adapter nor callable.

    Example:
        A PyTorch head for 1000 classes, of which a model with 10 takes the first:

        >>> import keras_trainops as kt
        >>> head = kt.adapt.Chain(kt.adapt.Transpose(), kt.adapt.Crop(axis=1))
        >>> head.shape([(1000, 512)], target=(512, 10))
        (512, 10)
    """

    def __init__(self, *adapters: Adapter | Callable[..., Any]) -> None:
        if not adapters:
            raise ValueError("A chain of adapters must have at least one. Received: none")
        steps: list[Adapter] = []
        for adapter in map(as_adapter, adapters):
            steps += adapter.adapters if isinstance(adapter, Chain) else [adapter]
        self.adapters: tuple[Adapter, ...] = tuple(steps)

    def shape(self, shapes: Sequence[Shape], target: Shape) -> Shape | None:
        so_far = ""
        for adapter in self.adapters:
            try:
                result = adapter.shape(shapes, target)
            except ValueError as error:
                raise ValueError(f"{so_far}{adapter}: {error}") from None
            if result is None:
                return None
            shapes, so_far = [result], f"{result} after {adapter}, then "
        return shapes[0]

    def for_keys(
        self, keys: Sequence[str], shapes: Sequence[Shape], target: Shape
    ) -> tuple[Sequence[str], Adapter | None]:
        """As its first adapter, which is the only one that gets what keys lead to."""
        keys, first = self.adapters[0].for_keys(keys, shapes, target)
        if first is self.adapters[0]:
            return keys, self
        return keys, in_turn([*([first] if first else []), *self.adapters[1:]])

    def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
        for adapter in self.adapters:
            arrays = [adapter(arrays, target)]
        return arrays[0]

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.adapters))})"


def in_turn(adapters: Sequence[Adapter]) -> Adapter | None:
    """The one adapter, several as a chain, or None if there is none."""
    return Chain(*adapters) if len(adapters) > 1 else next(iter(adapters), None)


class ArrayFunction(Adapter):
    """A callable on arrays, the shape of whose result is known when it is called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def shape(self, shapes: Sequence[Shape], target: Shape) -> None:
        return None

    def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
        result = self.function(*arrays)
        return result if np.ma.isMaskedArray(result) else np.asarray(result)

    def __repr__(self) -> str:
        return str(getattr(self.function, "__name__", self.function))


_One: TypeAlias = "Adapter | Callable[..., Any]"
_Value: TypeAlias = "_One | Sequence[_One]"
Adapt: TypeAlias = "Mapping[str, _Value] | Iterable[tuple[paths.Pattern, _Value]] | None"


def as_adapter(value: Any) -> Adapter:
    """An adapter, a callable as one, or a list of these as a chain.

    Raises:
        ValueError: If it is none of this.
    """
    if isinstance(value, Adapter):
        return value
    if callable(value) and not isinstance(value, type):
        return ArrayFunction(value)
    if isinstance(value, (list, tuple)):
        return Chain(*value)
    raise ValueError(
        "An adapter must be of `keras_trainops.adapt`, as `Transpose()`, a callable from arrays "
        f"to an array, or a list of these. Received: {value!r}"
    )


def axis_of(axis: int, shape: Shape) -> int:
    """`axis` as a number from 0.

    Raises:
        ValueError: If a tensor of this shape has no such axis.
    """
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"`axis` must be one of the {len(shape)} axes of {shape}. Received: axis={axis}"
        )
    return axis % len(shape)


def with_length(shape: Shape, axis: int, length: int) -> Shape:
    """`shape` with another length of one axis, which is given as a number from 0."""
    return (*shape[:axis], length, *shape[axis + 1 :])


def upcast_for_arithmetic(array: np.ndarray) -> np.ndarray:
    """The array in a dtype to compute with: what is narrow would overflow, or lose digits."""
    if array.dtype.kind in "bi":
        return array.astype("int64")
    if array.dtype.kind == "u":
        return array.astype("uint64")
    return array.astype("float32") if array.dtype.itemsize < 4 else array


def whole_numbers(argument: str, values: Iterable[Any]) -> tuple[int, ...]:
    """`values` as a tuple of integers, of Python's or NumPy's.

    Raises:
        ValueError: If they are something else.
    """
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError:
        raise ValueError(
            f"`{argument}` must be whole numbers. Received: {argument}={values!r}"
        ) from None


def unmasked(array: np.ndarray) -> np.ndarray:
    """The array, for an adapter that computes with its elements.

    Raises:
        ValueError: If some are left to the variable.
    """
    if np.ma.is_masked(array):
        raise ValueError(
            "it computes with all slices, and an adapter before it leaves some to the variable. "
            "Put it in front of that one, or give that one a `default`"
        )
    return np.ma.getdata(array)


def only_difference(shape: Shape, target: Shape) -> int | None:
    """The one axis in which two shapes of the same rank differ; None if there is no such."""
    if len(shape) != len(target):
        return None
    axes = [axis for axis, (a, b) in enumerate(zip(shape, target, strict=True)) if a != b]
    return axes[0] if len(axes) == 1 else None
