"""Arrays in memory, and the variables of a model, as checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint, Memory, pieces_of
from keras_trainops.checkpoints.formats import torch
from keras_trainops.checkpoints.nested import flattened
from keras_trainops.checkpoints.storage.parts import Index, aligned_copy
from keras_trainops.checkpoints.storage.raw import aligned
from keras_trainops.checkpoints.training_state import is_counter

_DEEPEST = 64  # dimensions of a NumPy array; deeper lists cannot be one


class ArraysCheckpoint(Checkpoint):
    """A mapping from name to anything that NumPy can convert to an array, or PyTorch tensors.

    Names in nested mappings are joined by `/`. Lists and tuples that contain arrays or mappings
    are nested too, with positions as names (`blocks/0/kernel`); those of numbers are arrays. Arrays
    are copied once, when they are read.

    Args:
        arrays: The mapping. The header that `scipy.io.loadmat` adds is ignored.
        location: A description for messages.
        is_overwritten: Returns True for memory addresses of variables that will be assigned while
            the mapping is in use; arrays at such addresses are copied at once.

    Raises:
        ValueError: If a key is not a name, two values have the same name, a container contains
            itself, or a value cannot be an array, is sparse or has masked elements.

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
        # The user wants all of the arrays, except counters such as PyTorch's `num_batches_tracked`.
        self.training_state = frozenset(k for k in self._arrays if is_counter(k.replace(".", "/")))

    def _keys(self) -> Mapping[str, Any]:
        return self._arrays

    def _shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._arrays[key].shape)

    def _dtype(self, key: str) -> np.dtype:
        return _dtype_of(self._arrays[key])

    def _read(self, key: str) -> np.ndarray:
        # Without a copy, JAX could use the user's aligned array as the variable's own memory.
        return self._view(key).copy()

    def _read_part(self, key: str, index: Index) -> np.ndarray:
        return aligned_copy(self._view(key)[index])

    def in_parts(self, key: str) -> bool:
        return True

    def _view(self, key: str) -> np.ndarray:
        """Return the array, in the user's own memory if NumPy can access it."""
        value = self._arrays[key]
        return torch.view_of(value) if _is_torch(value) else np.asarray(value)

    def pieces(self, key: str, memory: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Yield the elements in C order, `PIECE` at a time, in the user's own memory."""
        with self._reading(key):
            view = self._view(key)
        yield from pieces_of(view)

    def again(self, key: str, memory: Memory = aligned) -> np.ndarray:
        """Copy the array into one that `memory` returns."""
        array = memory(self.shape(key), self.dtype(key))
        with self._reading(key):
            view = self._view(key)
        np.copyto(array, view)
        return array


def _entries(value: Any, name: str) -> list[tuple[str, Any]] | None:
    """Return the named entries of a container; None if `value` should be an array."""
    if isinstance(value, Mapping):
        return [(_as_name(key, name), entry) for key, entry in value.items()]
    return [(str(i), v) for i, v in enumerate(value)] if _holds_arrays(value) else None


def _holds_arrays(value: Any, depth: int = 0) -> bool:
    """Return True for lists that contain arrays or mappings; a list of numbers is an array."""
    if not isinstance(value, (list, tuple)):
        return isinstance(value, Mapping) or (depth > 0 and getattr(value, "ndim", 0) > 0)
    return depth > _DEEPEST or any(_holds_arrays(entry, depth + 1) for entry in value)


def _as_name(key: Any, above: str) -> str:
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)  # some libraries use mappings from position instead of lists
    if isinstance(key, str):
        return key
    where = f" under {above!r}" if above else ""
    raise ValueError(
        f"A mapping of arrays must have names (strings) as keys. Received: {key!r}{where}"
    )


def _without_header(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """Drop the entries that `scipy.io.loadmat` adds; names in MATLAB never start with `_`."""
    if not isinstance(arrays.get("__header__"), bytes):
        return arrays
    return {key: value for key, value in arrays.items() if not str(key).startswith("__")}


def _as_array(key: str, value: Any) -> Any:
    """Return `value` itself if it has a shape and dtype, else converted to an array.

    Raises:
        ValueError: If it cannot be an array, is sparse or has masked elements.
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
        # This restore may overwrite the variable.
        return array.copy() if is_variable else array
    except Exception as error:  # lists of unequal lengths; tensors that refuse to be converted
        raise ValueError(f"The value under {key!r} is not an array: {error}") from error


def _is_array(value: Any) -> bool:
    """Return True if the shape and dtype are available without converting the value."""
    try:
        _ = tuple(value.shape), _dtype_of(value)
    except (AttributeError, TypeError):
        return False  # such as a pandas table, or a dtype unknown to NumPy
    return _is_torch(value) or hasattr(value, "__array__")


def _is_torch(value: Any) -> bool:
    """Return True for PyTorch tensors, without importing PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _address(value: Any) -> int:
    """Return the address of the first element; 0 if unknown, or if nothing can overwrite it."""
    if _is_torch(value):
        return 0 if value.is_sparse or value.is_meta else int(value.data_ptr())
    return int(value.__array_interface__["data"][0]) if isinstance(value, np.ndarray) else 0


def _copy(value: Any) -> Any:
    return value.detach().clone() if _is_torch(value) else value.copy()


def _dtype_of(value: Any) -> np.dtype:
    if _is_torch(value):
        return torch.dtype_of(value)
    return np.dtype(getattr(value.dtype, "as_numpy_dtype", value.dtype))  # TensorFlow's dtypes


class VariablesCheckpoint(Checkpoint):
    """Variables under unique names, read one at a time.

    Args:
        variables: Names and variables.
        location: A description for messages.
        to_numpy: Returns the value of a variable as a new array.
        training_state: Names of variables that are training state.

    Raises:
        ValueError: If two variables have the same name.
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
