"""Values of which a JAX process has only some shards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import keras
import numpy as np

from keras_trainops.backends.jax_parts import from_parts, host_part, parts_here


@dataclass(frozen=True)
class Shards:
    """Copies on the host of the parts that this process has.

    Attributes:
        shape: The shape of the whole value.
        sharding: Where the parts are.
        parts: The parts, in the order of `parts_here`.
    """

    shape: tuple[int, ...]
    sharding: Any
    parts: Sequence[np.ndarray]

    @classmethod
    def of(cls, array: Any) -> Shards:
        """Copy the parts of an array that several devices have."""
        held = parts_here(array) or []
        return cls(array.shape, array.sharding, [np.array(host_part(array, i)) for i in held])

    def tensor(self) -> Any:
        """Return the value, with the parts where they were."""
        copies = [np.array(part) for part in self.parts]  # as they become memory of the value
        return from_parts(self.shape, self.sharding, copies)

    def tobytes(self) -> bytes:
        """Return the bytes of all parts."""
        return b"".join(part.tobytes() for part in self.parts)


def is_whole(array: Any) -> bool:
    """Return whether this process has all of an array, on one device or in parts on several."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return True
    return sum(math.prod(i.stop - i.start for i in part) for part in parts_here(array) or []) == (
        array.size
    )


def on_host(array: Any) -> np.ndarray:
    """Return an array on the host.

    Raises:
        ValueError: If this process has only a part of it.
    """
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    if is_whole(array):
        whole = np.empty(array.shape, array.dtype)
        for shard in array.addressable_shards:
            whole[shard.index] = shard.data
        return whole
    raise ValueError(
        f"An array of shape {array.shape} is sharded over several processes, and process "
        f"{jax.process_index()} has only the part in its devices. `addressable_shards` of the "
        "JAX array contains that part."
    )


def of_this_process(variables: Sequence[Any]) -> list[tuple[Any, Any]] | None:
    """Return variables that several processes have, each with the value on one device.

    None if such a variable is sharded.
    """
    shared = [(v, v.value) for v in variables if not v.value.is_fully_addressable]
    if not all(value.is_fully_replicated for _, value in shared):
        return None
    return [(variable, value.addressable_data(0)) for variable, value in shared]


def distributed(batch: Any) -> Any:
    """Return a batch as one array over all processes, from the part that each process has."""
    distribution: Any = keras.distribution.distribution()

    def of_all(part: Any) -> Any:
        layout = distribution.get_data_layout(part.shape).backend_layout
        return jax.make_array_from_process_local_data(layout, np.asarray(part))

    return keras.tree.map_structure(of_all, batch)


def samples_of_all(count: int) -> int:
    """Return the number of samples in a batch of which each process has `count`.

    Processes with the same place on the batch axis have the same samples.
    """
    if keras.distribution.distribution() is None:
        return count
    return int(distributed(np.empty(count, np.uint8)).shape[0])


def gathered(array: Any) -> np.ndarray:
    """Return an array on the host of every process; all of them must call it."""
    from jax.experimental import multihost_utils

    if is_whole(array):
        return on_host(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
