"""The `Adapter` protocol, chains of adapters, and callables as adapters."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np

from keras_trainops import paths
from keras_trainops.adapt.axes import Index as Index
from keras_trainops.adapt.axes import Shape as Shape


class Adapter(ABC):
    """Converts the tensors of a variable's keys into one array that fits the variable.

    An adapter works on arrays and shapes only; it knows neither models nor files. Its `repr` is the
    call that creates it, for reports and suggestions.

    Attributes:
        yields_to_user_rules: If True, other rules for the same variable take precedence, whatever
            their order.
        resizes: If True, the adapter only changes the length of one axis.
        inverse_is_exact: If False, `inverse` may return other tensors than those that were adapted,
            such as rounded ones; a tensor that has not changed is then copied from the source.

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
    resizes: ClassVar[bool] = False
    inverse_is_exact: ClassVar[bool] = True

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

    def sources(
        self, index: Index, shapes: Sequence[Shape], target: Shape
    ) -> Sequence[Index] | None:
        """Return the parts of the tensors that are adapted to a part of the variable.

        Where a variable is spread over devices, only these are read. The adapter is then called
        with them, and the shape of the variable's part as `target`.

        Args:
            index: The part of the variable, or, inside a chain, of an intermediate result: a slice
                per axis, with its bounds.
            shapes: Shapes of the tensors.
            target: Shape of the variable.

        Returns:
            An index per tensor, or None if whole tensors are needed. Default: None.
        """
        return None

    def inverse(
        self, array: np.ndarray, shapes: Sequence[Shape], target: Shape
    ) -> Sequence[np.ndarray]:
        """Return the tensors that the adapter converts into `array`.

        Args:
            array: The value of the variable, or, inside a chain, of an intermediate result.
            shapes: Shapes of the tensors.
            target: Shape of the variable.

        Returns:
            One array per tensor. Masked elements are those that the variable does not determine,
            such as the slices that `Crop` leaves out.

        Raises:
            ValueError: If the tensors do not follow from `array`; the message says why.
        """
        raise ValueError("its inverse is unknown")

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that create the adapter, for a plan in a file.

        Returns:
            Plain data that can be stored as JSON. Default: the attributes that have the names of
            the constructor's arguments.

        Raises:
            ValueError: If an argument has no attribute of its name.
        """
        names = [*inspect.signature(type(self)).parameters]
        missing = [name for name in names if not hasattr(self, name)]
        if missing:
            raise ValueError(
                f"{type(self).__name__} cannot be stored: it has no attribute {missing[0]!r}. "
                "Define `get_config`, and `from_config` if it does not return the constructor's "
                "arguments"
            )
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Adapter:
        """Create the adapter from the result of `get_config`."""
        return cls(**config)

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

    def inverse(
        self, array: np.ndarray, shapes: Sequence[Shape], target: Shape
    ) -> Sequence[np.ndarray]:
        return [self._undo(array, self._only(shapes), target)]

    @abstractmethod
    def _shape(self, shape: Shape, target: Shape) -> Shape: ...

    @abstractmethod
    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray: ...

    def _undo(self, array: np.ndarray, shape: Shape, target: Shape) -> np.ndarray:
        """Return the tensor of the given shape that is adapted to `array`; see `inverse`."""
        raise ValueError("its inverse is unknown")

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

    def sources(
        self, index: Index, shapes: Sequence[Shape], target: Shape
    ) -> Sequence[Index] | None:
        try:
            steps = self.with_shapes(shapes, target)
        except ValueError:  # a shape depends on the values
            return None
        indices: Sequence[Index] | None = [index]
        for adapter, before in reversed(steps):
            if indices is None:
                return None
            indices = adapter.sources(indices[0], before, target)
        return indices

    @property
    def inverse_is_exact(self) -> bool:  # type: ignore[override]
        """True if all adapters have an exact inverse."""
        return all(adapter.inverse_is_exact for adapter in self.adapters)

    def inverse(
        self, array: np.ndarray, shapes: Sequence[Shape], target: Shape
    ) -> Sequence[np.ndarray]:
        arrays: Sequence[np.ndarray] = [array]
        for adapter, before in reversed(self.with_shapes(shapes, target)):
            try:
                arrays = adapter.inverse(arrays[0], before, target)
            except ValueError as error:
                raise ValueError(f"{adapter}: {error}") from None
        return arrays

    def with_shapes(
        self, shapes: Sequence[Shape], target: Shape
    ) -> list[tuple[Adapter, Sequence[Shape]]]:
        """Return each adapter with the shapes of what it gets.

        Args:
            shapes: Shapes of the tensors.
            target: Shape of the variable.

        Raises:
            ValueError: If an adapter does not accept these shapes, or the shape of its result
                depends on the values.
        """
        found: list[tuple[Adapter, Sequence[Shape]]] = []
        for adapter in self.adapters:
            found.append((adapter, shapes))
            result = adapter.shape(shapes, target)
            if result is None:
                raise ValueError(f"{adapter}: the inverse of a callable is unknown")
            shapes = [result]
        return found

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.adapters))})"


def steps_of(adapter: Adapter | None) -> tuple[Adapter, ...]:
    """Return the adapters that one applies in order: none for None, all of a `Chain`."""
    if adapter is None:
        return ()
    return adapter.adapters if isinstance(adapter, Chain) else (adapter,)


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

    def inverse(
        self, array: np.ndarray, shapes: Sequence[Shape], target: Shape
    ) -> Sequence[np.ndarray]:
        raise ValueError("the inverse of a callable is unknown: use an `Adapter` with `inverse`")

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
