"""The variables of a training run: named, and copied to the host."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.backends.grouping import grouped
from keras_trainops.processes import Processes
from keras_trainops.values import copy_of, parts_of

METRICS, RANDOM = "metrics/", "random/"
_THREADS, _COPIED = 4, 1 << 20  # elements that a thread copies at once, or one variable
_GATHERED = 1 << 24  # bytes of each process, if several variables are gathered at once
_WHAT = "to save the values that differ between processes"


def variables_of(model: Any) -> dict[str, keras.Variable]:
    """Return all variables that one step hands to the next, by a name that is stable over runs.

    Weights and the seeds of layers are named by their path. The variables of the optimizer (with
    the state of transforms), of updates and of metrics have a prefix.
    """
    updates = getattr(model, "train_ops", None)
    with nullcontext() if updates is None else updates.outside_evaluation():
        metrics = model.metrics_variables
    groups: list[tuple[str, Iterable[keras.Variable]]] = [
        ("", model.variables),
        ("optimizer/", model.optimizer.variables if model.optimizer is not None else []),
        ("updates/", updates.policy.variables if updates is not None else []),
        (METRICS, metrics),
    ]
    seed = keras_private.global_seed()
    if seed is not None:
        groups.append((RANDOM, [seed]))
    named: dict[str, keras.Variable] = {}
    seen: set[int] = set()
    for prefix, variables in groups:
        for variable in variables:
            if id(variable) not in seen:
                seen.add(id(variable))
                named[_unique(f"{prefix}{variable.path}", named)] = variable
    return named


def gradient_sums_of(model: Any) -> list[keras.Variable]:
    """Return the accumulators of gradients: each replica has a part of their sum."""
    return keras_private.gradient_sums(model.optimizer)


def _unique(key: str, taken: Mapping[str, Any]) -> str:
    """Return `key`, with a number if another variable has the same path."""
    count, unique = 1, key
    while unique in taken:
        count += 1
        unique = f"{key}#{count}"
    return unique


class HostCopy:
    """The values of variables on the host, which training does not change any more.

    They are copied in threads, unless the backend leaves them alone anyway. The memory of copies is
    reused: fresh memory costs most of the time.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def reserve(self, variables: Mapping[str, keras.Variable]) -> None:
        """Allocate the memory, so that the first copy is as fast as the others."""
        if not backend().host_views_last:
            self._arrays = {key: _allocated(v) for key, v in variables.items()}

    def take(
        self,
        variables: Mapping[str, keras.Variable],
        sums: Iterable[keras.Variable],
        processes: Processes,
    ) -> dict[str, np.ndarray]:
        """Return the values of variables; the next call may overwrite the arrays.

        They include the values on each replica, of all processes, if they differ from the value
        that the variable reads as. All processes call this; only process 0 gets the values of
        variables that are the same on all.

        Args:
            variables: Those of `variables_of` the model that the host can hold.
            sums: `gradient_sums_of` the model. Their parts are always copied, as restoring needs to
                know the number of parts.
            processes: The processes of the run.

        Returns:
            Arrays by name; `name[replica 0]` is the value on the first replica.
        """
        sources: dict[str, keras.Variable] = {}
        of_replicas: dict[str, np.ndarray] = {}
        gradients = {id(v) for v in sums}
        summed = summed_among(variables.values(), sums)
        apart = processes.several and not backend().processes_share_arrays
        own: dict[str, list[np.ndarray]] = {}
        for key, variable in variables.items():
            may_differ = apart and (id(variable) in gradients or _may_differ(key, variable))
            if not may_differ and not processes.is_first:
                continue
            sources[key] = variable
            parts = parts_of(variable)
            if may_differ:
                own[key] = list(map(copy_of, parts))
            elif len(parts) > 1 and (id(variable) in summed or _differ(variable, parts)):
                of_replicas |= {_part(key, i): copy_of(part) for i, part in enumerate(parts)}
        arrays = {**self._read(sources), **of_replicas}
        for key, parts in _of_all(own, processes):
            is_sum = id(variables[key]) in summed
            if not processes.is_first:
                arrays.pop(key)  # what all processes have of a variable is held by one
            elif is_sum or any(p.tobytes() != arrays[key].tobytes() for p in parts):
                arrays.update({_part(key, i): part for i, part in enumerate(parts)})
        return arrays

    def _read(self, variables: Mapping[str, keras.Variable]) -> dict[str, np.ndarray]:
        view = backend().host_view
        if backend().host_views_last:
            return {key: view(variable) for key, variable in variables.items()}

        def copied(group: Sequence[tuple[str, keras.Variable]]) -> list[np.ndarray]:
            return [self._copied(key, view(variable)) for key, variable in group]

        groups = grouped(variables.items(), lambda item: math.prod(item[1].shape), _COPIED)
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
            copies = itertools.chain.from_iterable(threads.map(copied, groups))
            self._arrays = dict(zip(variables, copies, strict=True))
        return dict(self._arrays)

    def _copied(self, key: str, value: np.ndarray) -> np.ndarray:
        copy = self._arrays.get(key)
        if copy is None or copy.shape != value.shape or copy.dtype != value.dtype:
            copy = np.empty(value.shape, value.dtype)
        np.copyto(copy, value)
        return copy


def _part(key: str, index: int) -> str:
    return f"{key}[replica {index}]"


def _may_differ(key: str, variable: keras.Variable) -> bool:
    """Return True if processes may have other values of a variable: a metric, a seed, a counter."""
    if key.startswith((METRICS, RANDOM)) or variable.synchronization == "on_read":
        return True
    return not is_float(variable.dtype)


def summed_among(variables: Iterable[keras.Variable], sums: Iterable[keras.Variable]) -> set[int]:
    """Return the ids of variables that are sums of what replicas have: of metrics, and `sums`."""
    if not backend().replicas_add_up:
        return set()
    on_read = (v for v in variables if v.synchronization == "on_read" and v.aggregation == "sum")
    return {id(v) for v in (*on_read, *sums)}


def is_float(dtype: Any) -> bool:
    """Return True for floating-point dtypes, those that NumPy lacks included."""
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(dtype))


def _of_all(
    own: Mapping[str, Sequence[np.ndarray]], processes: Processes
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yield the parts of variables on all processes, for parts on this one."""
    for keys in grouped(own, lambda key: sum(part.nbytes for part in own[key]), _GATHERED):
        mine = [part for key in keys for part in own[key]]
        each = [iter(arrays) for arrays in processes.gather_arrays(mine, _WHAT)]
        for key in keys:
            yield key, [next(arrays) for arrays in each for _ in own[key]]


def _differ(variable: keras.Variable, parts: Sequence[Any]) -> bool:
    """Return True if a replica's value differs from the one that the variable reads as."""
    value = ops.convert_to_tensor(variable)
    return not all(bool(ops.all(ops.equal(ops.convert_to_tensor(p), value))) for p in parts)


def _allocated(variable: keras.Variable) -> np.ndarray:
    # The first copy allocates dtypes that NumPy lacks by itself.
    name = variable.dtype if variable.dtype in np.sctypeDict else "float32"
    array = np.empty(tuple(variable.shape), name)
    array.fill(0)  # the system assigns memory on the first write only
    return array
