"""How a backend keeps the values of variables: on the host, on a device, in parts on several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

Index: TypeAlias = tuple[slice, ...]  # one slice per axis, with bounds as numbers and no steps


class Memory:
    """The memory of variables. The default methods assume that each process has whole values.

    Attributes:
        host_views_last: Whether an array of `host_view` keeps its values, at no cost to training,
            when the variable is assigned.
    """

    host_views_last: bool = False

    def host_view(self, variable: keras.Variable) -> np.ndarray:
        """Return a variable's value on the host, valid until the next assignment.

        It is copied only if that cannot be avoided.
        """
        return self.on_host(variable.value)

    def on_host(self, tensor: Any) -> np.ndarray:
        """Return a tensor as an array, which may be its memory.

        Raises:
            ValueError: If this process has only a part of it.
        """
        return np.asarray(ops.convert_to_numpy(tensor))

    def is_whole(self, tensor: Any) -> bool:
        """Return whether this process has all of a tensor."""
        return True

    def gathered(self, tensor: Any) -> np.ndarray:
        """Return a tensor as an array; all processes call it if one of them has only a part."""
        return self.on_host(tensor)

    def of_this_process(
        self, variables: Sequence[keras.Variable]
    ) -> Sequence[tuple[keras.Variable, Any]] | None:
        """Return what this process needs to compute with variables on its own.

        Returns:
            Variables that it shares with other processes, with tensors that it has alone; None if
            one of them is sharded, so that all processes must compute at the same time.
        """
        return []

    def distributed(self, batch: Any) -> Any:
        """Return a batch that all processes compute with, from the part that each one has."""
        return batch

    def kept(self, variable: Any) -> Any:
        """Return a copy on the host of a variable's value, or of the part that this process has.

        Args:
            variable: A variable, or the part of one on a replica.
        """
        return np.array(self.on_host(ops.convert_to_tensor(variable)))

    def assignable(self, kept: Any) -> Any:
        """Return what to assign to a variable for a copy that `kept` returned, or an array."""
        return kept

    def empty_tensor(
        self, shape: tuple[int, ...], dtype: np.dtype
    ) -> tuple[Any, np.ndarray] | None:
        """Return a tensor that a variable takes over without a copy, and its writable memory.

        None if the backend assigns arrays without an extra copy.
        """
        return None

    def overwritten_memory(self, variables: Iterable[keras.Variable]) -> list[tuple[int, int]]:
        """Return the address ranges, begin and end, that assignments overwrite in place, sorted."""
        return []

    def is_in_host_memory(self, variable: keras.Variable) -> bool:
        """Return whether a variable is in the memory of this machine, not of an accelerator."""
        return True

    def parts_here(self, variable: keras.Variable) -> list[Index] | None:
        """Return the parts of a variable that this process holds, each once.

        None if this process holds all of it, on one device or as the backend copies it.
        """
        return None

    def from_parts(self, variable: keras.Variable, parts: Sequence[np.ndarray]) -> Any:
        """Return a value for a variable, laid out over devices as its present value.

        Args:
            variable: A variable of which `parts_here` returns parts.
            parts: Their arrays, which are not used afterwards.
        """
        raise NotImplementedError("This backend keeps variables in one part.")

    def snapshot(self, variable: keras.Variable) -> Any:
        """Return a variable's value to assign later; a copy only if assignments overwrite it."""
        return np.array(self.host_view(variable))

    def host_part(self, variable: Any, index: Index) -> np.ndarray:
        """Return a part of a variable's value, or of a snapshot, to read from at once.

        Raises:
            ValueError: If this process does not hold the part.
        """
        return self.on_host(ops.convert_to_tensor(variable))[index]
