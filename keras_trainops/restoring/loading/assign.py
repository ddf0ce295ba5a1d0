"""Assign a plan, all or nothing, with one tensor in memory at a time.

Every tensor is read twice: once to check it, before anything is assigned, and once to assign it.
docs/architecture.md explains why, and what can still fail in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint, Memory
from keras_trainops.checkpoints.storage.raw import aligned
from keras_trainops.errors import RestoreError
from keras_trainops.restoring.loading.adapting import (
    adapted,
    cast_and_mask,
    complaint_about_array,
    complaint_about_copy,
    complaint_about_pieces,
    line_about,
    refuse,
)
from keras_trainops.restoring.loading.casting import cast
from keras_trainops.restoring.loading.signals import signals_wait
from keras_trainops.restoring.loading.tensors import Destination
from keras_trainops.restoring.loading.threads import in_order
from keras_trainops.restoring.loading.undoing import assigned, derive_again
from keras_trainops.restoring.planning.assignment import Assignment, variable_bytes
from keras_trainops.values import copy_of

UNDO_BYTES = 8 << 20
Progress = Callable[[int], None]


def assign(
    model: keras.Model,
    assignments: Sequence[Assignment],
    checkpoint: Checkpoint,
    progress: Progress = lambda nbytes: None,
) -> None:
    """Read and check every tensor, and then assign them, the largest first.

    Args:
        model: The model that the variables belong to.
        assignments: The planned assignments.
        checkpoint: The source.
        progress: Called repeatedly with the number of bytes processed since the last call.

    Raises:
        RestoreError: If a tensor cannot be read, is not finite, or is out of range in the
            variable's dtype, or if the files change meanwhile. No variable was changed.
    """
    check_all(assignments, checkpoint, progress)
    checkpoint.require_unchanged()
    # If memory is short, the largest fails first, before anything is changed.
    ordered = sorted(assignments, key=_nbytes, reverse=True)
    variables = [assignment.variable for assignment in assignments]
    undo = _Undo()
    with signals_wait():
        try:
            for assignment in ordered:
                undo.assign(assignment.variable, _value(assignment, checkpoint))
                progress(_nbytes(assignment))
            derive_again(model, variables)
            checkpoint.require_unchanged()
        except BaseException as error:
            undo.put_back(error)
            derive_again(model, variables)
            raise


class _Undo:
    """Previous values of variables, as far as they fit into `UNDO_BYTES`."""

    def __init__(self) -> None:
        self._before: list[tuple[keras.Variable, np.ndarray]] = []
        self._left = UNDO_BYTES
        self._lost = 0  # number of assigned variables whose previous value was not kept
        self._in_doubt: tuple[keras.Variable, Any] | None = None

    def assign(self, variable: keras.Variable, value: Any) -> None:
        """Assign a value, and keep the previous one if there is room for it."""
        if variable_bytes(variable) <= self._left:
            self._before.append((variable, copy_of(variable)))
            self._left -= variable_bytes(variable)
            variable.assign(value)
        else:
            # An asynchronous exception may arrive after the variable was assigned.
            self._lost, self._in_doubt = self._lost + 1, (variable, value)
            variable.assign(value)
            self._in_doubt = None

    def put_back(self, cause: BaseException) -> None:
        """Assign the previous values; add a note to `cause` if not all were kept."""
        if self._in_doubt is not None and not _holds(*self._in_doubt):
            self._lost -= 1
        self._lost += sum(not assigned(*kept) for kept in self._before)
        if self._lost:
            cause.add_note(
                f"The model is half-loaded: {self._lost} variables keep their new values, because "
                "the old ones were too large to keep. Restore it again before you use it."
            )


def _holds(variable: keras.Variable, value: Any) -> bool:
    """Return True if a variable has a value, or if that is unknown."""
    try:
        return np.array_equal(copy_of(variable), keras.ops.convert_to_numpy(value))
    except BaseException:
        return True


def check_all(
    assignments: Sequence[Assignment],
    checkpoint: Checkpoint,
    progress: Progress = lambda nbytes: None,
) -> None:
    """Read and check every tensor.

    Args:
        assignments: The planned assignments.
        checkpoint: The source.
        progress: Called repeatedly with the number of bytes processed since the last call.

    Raises:
        RestoreError: If a tensor cannot be read, or its variable cannot hold its values.
    """
    found = in_order(
        lambda assignment: _problems(assignment, checkpoint),
        assignments,
        lambda assignment: _may_be_in_thread(assignment, checkpoint),
    )
    problems: list[str] = []
    for assignment, lines in zip(assignments, found, strict=True):
        problems += lines
        progress(_nbytes(assignment))
    refuse(problems, checkpoint)


def _may_be_in_thread(assignment: Assignment, checkpoint: Checkpoint) -> bool:
    """Return True if checking reads plain bytes only, without user code or other libraries."""
    keys = [*assignment.keys, *assignment.copies]
    return assignment.adapter is None and all(map(checkpoint.in_pieces, keys))


def _problems(assignment: Assignment, checkpoint: Checkpoint) -> list[str]:
    """Return lines about the values for a variable and their copies."""
    complaint = _complaint(assignment, checkpoint)
    complaints = [line_about(assignment, complaint)] if complaint else []
    copies = [c for c in assignment.copies if not _equal(checkpoint, assignment.keys[0], c)]
    return complaints + [complaint_about_copy(assignment, copy) for copy in copies]


def _complaint(assignment: Assignment, checkpoint: Checkpoint) -> str:
    """Return what is wrong with the values for a variable; empty if nothing is."""
    if assignment.adapter is None:
        pieces = checkpoint.pieces(assignment.keys[0])
        return complaint_about_pieces(pieces, np.dtype(assignment.variable.dtype))
    return complaint_about_array(adapted(assignment, checkpoint), assignment)


def _equal(checkpoint: Checkpoint, first: str, second: str) -> bool:
    pairs = zip(checkpoint.pieces(first), checkpoint.pieces(second), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def _value(assignment: Assignment, checkpoint: Checkpoint) -> Any:
    """Return the value to assign, in memory of its own: JAX may make it the variable's memory."""
    destination = Destination()
    array, kept = read_again(assignment, checkpoint, destination.memory)
    if assignment.adapter is not None:
        array = np.array(array, order="C")
    if kept is not None:
        array[kept] = copy_of(assignment.variable)[kept]
    return destination.tensor(array)


def read_again(
    assignment: Assignment, checkpoint: Checkpoint, memory: Memory = aligned
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read tensors that `check_all` has checked.

    Args:
        assignment: The assignment.
        checkpoint: The source.
        memory: See `Checkpoint.again`.

    Returns:
        The array in the variable's dtype, and a mask of the elements to keep, or None.

    Raises:
        RestoreError: If an adapter returns something else than before, which does not fit.
    """
    dtype = np.dtype(assignment.variable.dtype)
    if assignment.adapter is None:
        return cast(checkpoint.again(assignment.keys[0], memory), dtype), None
    found = adapted(assignment, checkpoint)
    complaint = complaint_about_array(found, assignment)
    if complaint:
        raise RestoreError(f"{assignment.path}: the tensor, read again, {complaint}.")
    return cast_and_mask(found, dtype)


def _nbytes(assignment: Assignment) -> int:
    return variable_bytes(assignment.variable)
