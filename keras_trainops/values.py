"""Copies of variables' values, on one replica or on each, whole or in parts on several devices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from keras_trainops.backends import backend
from keras_trainops.processes import Processes

Copies: TypeAlias = "list[Any]"  # what `copies_of` returned


def parts_of(variable: keras.Variable) -> list[Any]:
    """Return a variable's part on each replica of a strategy, or the variable itself on one.

    Parts may differ, as those of gradient sums and metrics do. Such a variable reads as one of its
    parts, or as their sum, and an assignment to it reaches all parts.
    """
    return backend().parts_of(variable)


def copies_of(variable: keras.Variable) -> Copies:
    """Return copies on the host of a variable's value on each replica.

    Of a variable that is sharded over processes, each keeps its shards.
    """
    return [backend().kept(part) for part in parts_of(variable)]


def assign_copies(variable: keras.Variable, copies: Sequence[Any]) -> None:
    """Assign the result of `copies_of`, which must come from as many replicas.

    Arrays may take their place.
    """
    for part, kept in zip(parts_of(variable), copies, strict=True):
        part.assign(backend().assignable(kept))


def are_unchanged(taken: Sequence[tuple[keras.Variable, Copies]]) -> list[bool]:
    """Return, for each variable, whether it still has the value of which copies were taken.

    All processes of a run must ask for the same variables, and get the same answer.
    """
    pairs = [pair for v, copies in taken for pair in zip(parts_of(v), copies, strict=True)]
    # A process compares its own part of a divided variable.
    kept = [copy.tobytes() == backend().kept(part).tobytes() for part, copy in pairs]
    if not all(backend().is_whole(variable.value) for variable, _ in taken):
        of_all = Processes().gather(kept, "to compare weights")
        kept = [all(flags) for flags in zip(*of_all, strict=True)]
    same = iter(kept)
    return [all(list(itertools.islice(same, len(copies)))) for _, copies in taken]


def tensor_of(variable: Any, dtype: str | None = None) -> Any:
    """Return a copy of a variable's value as a tensor, on the same devices.

    Args:
        variable: The variable.
        dtype: The dtype of the copy; None for the variable's.
    """
    value = ops.convert_to_tensor(variable)
    return ops.copy(value if dtype is None else ops.cast(value, dtype))


def copy_of(variable: Any) -> np.ndarray:
    """Return a copy of a variable's value on the host; some backends would return the live buffer.

    Raises:
        ValueError: If this process has only a part of the value.
    """
    return np.array(view_of(variable))


def view_of(variable: Any) -> np.ndarray:
    """Return a variable's value to read from at once; it may be the live buffer.

    Raises:
        ValueError: If this process has only a part of the value.
    """
    return backend().on_host(ops.convert_to_tensor(variable))
