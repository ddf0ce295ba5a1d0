"""The parts of a JAX array that this process holds, on one device or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from keras_trainops.backends.memory import Index

_Bounds: TypeAlias = tuple[tuple[int, int], ...]


def parts_here(value: Any) -> list[Index] | None:
    """Return the parts of an array that this process holds, each once; None on one device."""
    if len(value.sharding.device_set) == 1:
        return None
    return [_slices(bounds) for bounds in _devices_by_part(value.shape, value.sharding)]


def from_parts(shape: tuple[int, ...], sharding: Any, parts: Sequence[np.ndarray]) -> Any:
    """Return an array of which each process gives its parts.

    Args:
        shape: The shape of the whole array.
        sharding: How it is laid out.
        parts: What `parts_here` lists of such an array. They are not used afterwards. Devices that
            hold the same part get memory of their own.
    """
    arrays = []
    for part, devices in zip(parts, _devices_by_part(shape, sharding).values(), strict=True):
        for number, device in enumerate(devices):
            # JAX takes over an aligned array as the memory of a CPU device.
            own = np.array(part) if number else part
            place = jax.sharding.SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
            arrays.append(jax.device_put(own, place))
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def host_part(value: Any, index: Index) -> np.ndarray:
    """Return a part of an array on the host.

    Raises:
        ValueError: If this process does not hold the part.
    """
    if value.is_fully_replicated:  # JAX 0.10 fails to list the shards of some of these
        return np.asarray(value)[index]
    for shard in value.addressable_shards:
        held = _slices(_bounds(shard.index, value.shape))
        pairs = list(zip(index, held, strict=True))
        if all(h.start <= i.start and i.stop <= h.stop for i, h in pairs):
            inside = tuple(slice(i.start - h.start, i.stop - h.start) for i, h in pairs)
            return np.asarray(shard.data)[inside]
    if not value.is_fully_addressable:
        raise ValueError("this process does not hold that part of it")
    return np.asarray(value)[index]


def _devices_by_part(shape: tuple[int, ...], sharding: Any) -> dict[_Bounds, list[Any]]:
    """Return the devices of this process that hold each part of an array."""
    found: dict[_Bounds, list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        found.setdefault(_bounds(index, shape), []).append(device)
    return found


def _bounds(index: Index, shape: Sequence[int]) -> _Bounds:
    """Return begin and end along each axis; unlike slices, they can be keys."""
    bounds = [each.indices(length) for each, length in zip(index, shape, strict=True)]
    return tuple((start, stop) for start, stop, _ in bounds)


def _slices(bounds: _Bounds) -> Index:
    return tuple(slice(start, stop) for start, stop in bounds)
