"""The `Adapter` protocol, chains of adapters, and callables as adapters."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np

from keras_trainops import paths

Shape: TypeAlias = tuple[int, ...]


class Adapter(ABC):
    """Converts the tensors of a variable's keys into one array that fits the variable.

    An adapter works on arrays and shapes only; it knows neither models nor files. Its `repr` is the
    call that creates it, for reports and suggestions.

    Attributes:
        yields_to_user_rules: If True, other rules for the same variable take precedence, whatever
            their order.

    Example:
        >>> class Flip(Adapter):
        ...     def shape(self, shapes, target):
        ...         return shapes[0]
        ...
        ...     def __call__(self, arrays, target):
        ...         return arrays[0][::-1]
        >>> Flip()([np.array([1, 2, 3])], target=(3,)).tolist()
        [3, 2, 1]
    """

    yields_to_user_rules: ClassVar[bool] = False

    @abstractmethod
    def shape(self, shapes: Sequence[Shape], target: Shape) -> Shape | None:
        """Return the shape of the result without reading any tensor.

        Args:
            shapes: Shapes of the tensors.
            target: Shape of the variable.

        Returns:
            The shape, or None if it depends on the values.

        Raises:
            ValueError: If tensors of these shapes cannot be adapted; the message says why.
        """

    @abstractmethod
    def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
        """Return the array to assign.

        Args:
            arrays: The tensors, of any numeric dtype.
            target: Shape of the variable.

        Returns:
            The array. Masked elements of a `numpy.ma.MaskedArray` are not assigned; the variable
            keeps its values there.
        """

    def for_keys(
        self, keys: Sequence[str], shapes: Sequence[Shape], target: Shape
    ) -> tuple[Sequence[str], Adapter | None]:
        """Choose the order of the tensors and the adapter by the names of the keys.

        Args:
            keys: The keys that lead to the variable, in the order of the rename rules.
            shapes: Shapes of their tensors.
            target: Shape of the variable.

        Returns:
            The keys in the order in which the adapter takes their tensors, and the adapter, or None
            if the tensor needs no adapter. Default: `keys` and the adapter itself.

        Raises:
            ValueError: If the names are ambiguous; the message says what to do.
        """
        return keys, self


class OneTensor(Adapter):
    """Base class of adapters that take exactly one tensor."""

    def shape(self, shapes: Sequence[Shape], target: Shape) -> Shape:
        return self._shape(self._only(shapes), target)

    def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
        array = self._only(arrays)
        self._shape(np.shape(array), target)  # unchecked so far if it comes from a callable
        return self._adapt(array, target)

    @abstractmethod
    def _shape(self, shape: Shape, target: Shape) -> Shape: ...

    @abstractmethod
    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray: ...

    def _only(self, tensors: Sequence[Any]) -> Any:
        if len(tensors) != 1:
            raise ValueError(
                f"it takes one tensor, but {len(tensors)} keys lead here. Combine them first, with "
                "`Concat`, `Stack` or `Sum`"
            )
        return tensors[0]


class Chain(Adapter):
    """Applies adapters one after the other; a list of adapters means the same.

    The first adapter gets the tensors of all keys, every other one the result of its predecessor.
    `Pad`, `Crop`, `Rows` and `InputChannels` give one axis the length it has in the variable, so
    put them after `Transpose` and `Reshape`.

    Args:
        adapters: Adapters, or callables from one array to an array. A callable that comes first
            gets one array per key.

    Raises:
        ValueError: If there are no adapters, or one is neither an adapter nor a callable.

    Example:
        Restore the first 10 of the 1000 classes of a PyTorch head:

        >>> import keras_trainops as kt
        >>> head = kt.adapt.Chain(kt.adapt.Transpose(), kt.adapt.Crop(axis=1))
        >>> head.shape([(1000, 512)], target=(512, 10))
        (512, 10)
    """

    def __init__(self, *adapters: Adapter | Callable[..., Any]) -> None:
        if not adapters:
            raise ValueError("A chain must contain at least one adapter. Received: none")
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
        """Let the first adapter choose; only that one gets the tensors of the keys."""
        keys, first = self.adapters[0].for_keys(keys, shapes, target)
        if first is self.adapters[0]:
            return keys, self
        return keys, chain_of([*([first] if first else []), *self.adapters[1:]])

    def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
        for adapter in self.adapters:
            arrays = [adapter(arrays, target)]
        return arrays[0]

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.adapters))})"


def chain_of(adapters: Sequence[Adapter]) -> Adapter | None:
    """Return None for no adapters, the adapter itself for one, and a `Chain` for several."""
    return Chain(*adapters) if len(adapters) > 1 else next(iter(adapters), None)


class ArrayFunction(Adapter):
    """Wraps a callable on arrays; the shape of its result is unknown until it is called."""

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
    """Return `value` as an adapter.

    Args:
        value: An adapter, a callable, or a list of these, which becomes a `Chain`.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(value, Adapter):
        return value
    if callable(value) and not isinstance(value, type):
        return ArrayFunction(value)
    if isinstance(value, (list, tuple)):
        return Chain(*value)
    raise ValueError(
        "An adapter must be an instance from `keras_trainops.adapt` such as `Transpose()`, a "
        f"callable from arrays to an array, or a list of these. Received: {value!r}"
    )


def axis_of(axis: int, shape: Shape) -> int:
    """Return `axis` as a non-negative index into `shape`.

    Raises:
        ValueError: If a tensor of this shape does not have the axis.
    """
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"`axis` must be one of the {len(shape)} axes of {shape}. Received: axis={axis}"
        )
    return axis % len(shape)


def with_length(shape: Shape, axis: int, length: int) -> Shape:
    """Return `shape` with a different length along `axis`, a non-negative index."""
    return (*shape[:axis], length, *shape[axis + 1 :])


def upcast_for_arithmetic(array: np.ndarray) -> np.ndarray:
    """Cast narrow dtypes to wide ones, because sums would overflow or lose digits."""
    if array.dtype.kind in "bi":
        return array.astype("int64")
    if array.dtype.kind == "u":
        return array.astype("uint64")
    return array.astype("float32") if array.dtype.itemsize < 4 else array


def whole_numbers(argument: str, values: Iterable[Any]) -> tuple[int, ...]:
    """Return `values`, integers of Python or NumPy, as a tuple of `int`.

    Raises:
        ValueError: If a value is not an integer; the message names `argument`.
    """
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError:
        raise ValueError(
            f"`{argument}` must be whole numbers. Received: {argument}={values!r}"
        ) from None


def unmasked(array: np.ndarray) -> np.ndarray:
    """Return the array without its mask, for an adapter that computes with all elements.

    Raises:
        ValueError: If elements are masked, which means that the variable keeps its values there.
    """
    if np.ma.is_masked(array):
        raise ValueError(
            "it computes with all slices, but an earlier adapter leaves some to the variable. Put "
            "it before that adapter, or give that adapter a `default`"
        )
    return np.ma.getdata(array)


def differing_axis(shape: Shape, target: Shape) -> int | None:
    """Return the only axis along which two shapes of equal rank differ, or None."""
    if len(shape) != len(target):
        return None
    axes = [axis for axis, (a, b) in enumerate(zip(shape, target, strict=True)) if a != b]
    return axes[0] if len(axes) == 1 else None
