"""Arrays in memory, and the weights of another model, as checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from keras_trainops.checkpoints.checkpoint import PIECE, Checkpoint, Memory
from keras_trainops.checkpoints.formats import torch
from keras_trainops.checkpoints.nested import flattened
from keras_trainops.checkpoints.storage.raw import aligned
from keras_trainops.checkpoints.training_state import is_counter

_DEEPEST = 64  # dimensions that NumPy takes: deeper lists are no arrays


class ArraysCheckpoint(Checkpoint):
    """A mapping from name to anything NumPy takes for an array, and to PyTorch's tensors.

    Mappings in it are joined by `/`. So are lists and tuples that hold arrays or mappings, by
    position (`blocks/0/kernel`); those of numbers are arrays themselves. Arrays stay where they
    are until they are read, and then are copied once.

    Args:
        arrays: The mapping. Of one that `scipy.io.loadmat` made its header is left out.
        location: What it is, for messages.
        is_overwritten: Whether memory at an address is a variable's, whose value changes while the
            mapping is in use: arrays there are copied at once.

    Raises:
        ValueError: If a key is no name, two values have one name, a container holds itself, or a
            value is no array, is sparse or has masked elements.

    Example:
        >>> import numpy as np
        >>> params = {"dense": {"kernel": np.ones((2, 3)), "bias": [0.0, 0.0, 0.0]}}
        >>> {key: array.shape for key, array in ArraysCheckpoint(params).items()}
        {'dense/kernel': (2, 3), 'dense/bias': (3,)}
    """

    format = "arrays in memory"

    def __init__(
        self,
        arrays: Mapping[str, Any],
        location: str = "a mapping of arrays",
        is_overwritten: Callable[[int], bool] = lambda address: False,
    ) -> None:
        super().__init__(location)
        self._arrays: dict[str, Any] = {}
        for key, value in flattened(_without_header(arrays), _entries, "the mapping"):
            array = _as_array(key, value)
            self._arrays[key] = _copy(array) if is_overwritten(_address(array)) else array
        # Arrays are to be used whole, but for what counts batches in a PyTorch `state_dict()`.
        self.training_state = frozenset(k for k in self._arrays if is_counter(k.replace(".", "/")))

    def _keys(self) -> Mapping[str, Any]:
        return self._arrays

    def _shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._arrays[key].shape)

    def _dtype(self, key: str) -> np.dtype:
        return _dtype_of(self._arrays[key])

    def _read(self, key: str) -> np.ndarray:
        # JAX would make an aligned array the variable's own memory, and so share it with the user.
        return self._view(key).copy()

    def _view(self, key: str) -> np.ndarray:
        """The array, in memory of the user's wherever NumPy can look at it there."""
        value = self._arrays[key]
        return torch.view_of(value) if _is_torch(value) else np.asarray(value)

    def pieces(self, key: str) -> Iterator[np.ndarray]:
        """The elements in C order, `PIECE` at a time, in memory of the user's."""
        elements = self._ask(self._view, key).reshape(-1)
        yield from (elements[i : i + PIECE] for i in range(0, elements.size, PIECE))

    def again(self, key: str, memory: Memory = aligned) -> np.ndarray:
        """The array, copied into what `memory` makes."""
        array = memory(self.shape(key), self.dtype(key))
        np.copyto(array, self._ask(self._view, key))
        return array


def _entries(value: Any, name: str) -> list[tuple[str, Any]] | None:
    """What a container holds, by name; None for what is to be an array."""
    if isinstance(value, Mapping):
        return [(_as_name(key, name), entry) for key, entry in value.items()]
    return [(str(i), v) for i, v in enumerate(value)] if _holds_arrays(value) else None


def _holds_arrays(value: Any, depth: int = 0) -> bool:
    """Whether a list is no array itself, as one of numbers is: it holds arrays or mappings."""
    if not isinstance(value, (list, tuple)):
        return isinstance(value, Mapping) or (depth > 0 and getattr(value, "ndim", 0) > 0)
    return depth > _DEEPEST or any(_holds_arrays(entry, depth + 1) for entry in value)


def _as_name(key: Any, above: str) -> str:
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)  # where others have lists, some libraries have mappings from position
    if isinstance(key, str):
        return key
    where = f" under {above!r}" if above else ""
    raise ValueError(
        f"A mapping of arrays must have names (strings) as keys. Received: {key!r}{where}"
    )


def _without_header(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """`arrays` without what `scipy.io.loadmat` adds: no name in MATLAB starts with `_`."""
    if not isinstance(arrays.get("__header__"), bytes):
        return arrays
    return {key: value for key, value in arrays.items() if not str(key).startswith("__")}


def _as_array(key: str, value: Any) -> Any:
    """`value` as it is, if its shape and dtype can be told, or as an array.

    Raises:
        ValueError: If it is no array, or one that has not all of its elements.
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ValueError(
            f"The array under {key!r} has masked elements, which have no value: pass its "
            "`filled(value)`."
        )
    if hasattr(value, "toarray"):
        raise ValueError(f"The array under {key!r} is sparse: pass its `toarray()`.")
    is_variable = hasattr(value, "assign")
    if _is_array(value) and not is_variable:
        return value
    try:
        array = np.asarray(value)
        # A variable may be one that this very restore overwrites.
        return array.copy() if is_variable else array
    except Exception as error:  # lists of unequal lengths; tensors that refuse to be converted
        raise ValueError(f"The value under {key!r} is no array: {error}") from error


def _is_array(value: Any) -> bool:
    """Whether it tells its shape and dtype without being read."""
    try:
        tuple(value.shape), _dtype_of(value)
    except (AttributeError, TypeError):
        return False  # as a table of pandas, or a dtype that NumPy lacks
    return _is_torch(value) or hasattr(value, "__array__")


def _is_torch(value: Any) -> bool:
    """Whether it is a tensor of PyTorch's, which is not imported to see it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _address(value: Any) -> int:
    """Where the first element is; 0 where that is not to be known, or nobody can write there."""
    if _is_torch(value):
        return 0 if value.is_sparse or value.is_meta else int(value.data_ptr())
    return int(value.__array_interface__["data"][0]) if isinstance(value, np.ndarray) else 0


def _copy(value: Any) -> Any:
    return value.detach().clone() if _is_torch(value) else value.copy()


def _dtype_of(value: Any) -> np.dtype:
    if _is_torch(value):
        return torch.dtype_of(value)
    return np.dtype(getattr(value.dtype, "as_numpy_dtype", value.dtype))  # TensorFlow's have both


class VariablesCheckpoint(Checkpoint):
    """Variables under names that are their own, read one by one when asked for.

    Raises:
        ValueError: If two have one name: neither may take the other's place.
    """

    format = "Keras model"

    def __init__(
        self,
        variables: Iterable[tuple[str, Any]],
        location: str,
        to_numpy: Callable[[Any], np.ndarray],
        training_state: Iterable[str] = (),
    ) -> None:
        super().__init__(location)
        self.training_state = frozenset(training_state)
        self._variables: dict[str, Any] = {}
        for name, variable in variables:
            if name in self._variables:
                raise ValueError(f"Two variables of {location} have the name {name!r}.")
            self._variables[name] = variable
        self._to_numpy = to_numpy

    def _keys(self) -> Mapping[str, Any]:
        return self._variables

    def _shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._variables[key].shape)

    def _dtype(self, key: str) -> np.dtype:
        return np.dtype(self._variables[key].dtype)

    def _read(self, key: str) -> np.ndarray:
        return self._to_numpy(self._variables[key])
