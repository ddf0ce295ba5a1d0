"""Assign a plan, all or nothing, with one tensor in memory at a time.

Every tensor is read twice: once to check it, before anything is assigned, and once to assign it.
docs/architecture.md explains why, and what can still fail in between.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np

from keras_trainops import keras_private
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.errors import RestoreError
from keras_trainops.restoring.loading.casting import Casting, cast
from keras_trainops.restoring.loading.signals import signals_wait
from keras_trainops.restoring.loading.tensors import Destination
from keras_trainops.restoring.planning.assignment import Assignment, variable_bytes
from keras_trainops.restoring.planning.shapes import is_assignable
from keras_trainops.values import copy_of

UNDO_BYTES = 8 << 20
THREADS = 4  # for checking tensors, each with one piece in memory
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
    _check_all(assignments, checkpoint, progress)
    checkpoint.require_unchanged()
    # If memory is short, the largest fails first, before anything is changed.
    ordered = sorted(assignments, key=_nbytes, reverse=True)
    undo = _Undo()
    with signals_wait():
        try:
            for assignment in ordered:
                undo.assign(assignment.variable, _value(assignment, checkpoint))
                progress(_nbytes(assignment))
            _derive_again(model, assignments)
            checkpoint.require_unchanged()
        except BaseException as error:
            undo.put_back(error)
            _derive_again(model, assignments)
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
        self._lost += sum(not _assigned(*kept) for kept in self._before)
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


def _assigned(variable: keras.Variable, value: np.ndarray) -> bool:
    """Assign a value, with a second try after an exception; return True if it succeeded."""
    for _ in range(2):
        try:
            variable.assign(value)
        except BaseException:
            continue
        return True
    return False


def _derive_again(model: keras.Model, assignments: Sequence[Assignment]) -> None:
    """Let layers recompute values that they derive from their variables.

    `Normalization` uses constants that it computes from its variables. Keras also calls
    `finalize_state` when it loads weights.
    """
    assigned = {id(assignment.variable) for assignment in assignments}
    for layer in keras_private.all_layers(model):
        derive = getattr(layer, "finalize_state", None)
        if derive is not None and any(id(v) in assigned for v in layer.weights):
            derive()


def _check_all(
    assignments: Sequence[Assignment], checkpoint: Checkpoint, progress: Progress
) -> None:
    problems: list[str] = []
    with _threads() as in_thread:
        # Report in the order of the model, whichever thread finishes first.
        found = [
            in_thread.submit(_problems, assignment, checkpoint)
            if _may_be_in_thread(assignment, checkpoint)
            else None
            for assignment in assignments
        ]
        for assignment, future in zip(assignments, found, strict=True):
            problems += future.result() if future else _problems(assignment, checkpoint)
            progress(_nbytes(assignment))
    if problems:
        raise RestoreError(
            f"Cannot restore from {checkpoint.location!r} ({checkpoint.format}):\n"
            + "\n".join(f"  ! {problem}" for problem in problems)
            + "\nNothing was changed. Leave these variables out with `exclude=`."
        )


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    threads = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)  # after an error, drop the remaining checks


def _may_be_in_thread(assignment: Assignment, checkpoint: Checkpoint) -> bool:
    """Return True if checking reads plain bytes only, without user code or other libraries."""
    keys = [*assignment.keys, *assignment.copies]
    return assignment.adapter is None and all(map(checkpoint.in_pieces, keys))


def _problems(assignment: Assignment, checkpoint: Checkpoint) -> list[str]:
    """Return lines about the values for a variable and their copies."""
    path, keys = assignment.path, " and ".join(map(repr, assignment.keys))
    complaint = _complaint(assignment, checkpoint)
    complaints = [f"{path}: the tensor under key {keys} {complaint}"] if complaint else []
    return complaints + [
        f"{path}: layers of this model share it, but {keys} and {copy!r} differ"
        for copy in assignment.copies
        if not _equal(checkpoint, assignment.keys[0], copy)
    ]


def _complaint(assignment: Assignment, checkpoint: Checkpoint) -> str:
    """Return what is wrong with the values for a variable; empty if nothing is."""
    variable = assignment.variable
    if assignment.adapter is None:
        return _complaint_about_pieces(checkpoint.pieces(assignment.keys[0]), variable)
    return _complaint_about_array(_adapted(assignment, checkpoint), assignment)


def _complaint_about_array(adapted: np.ndarray, assignment: Assignment) -> str:
    variable, becomes = assignment.variable, f"by {assignment.adapter}, and the variable is"
    if adapted.shape != tuple(variable.shape):
        return f"becomes {adapted.shape} {becomes} {tuple(variable.shape)}"
    if not is_assignable(adapted.dtype, np.dtype(variable.dtype)):
        return f"becomes {adapted.dtype} {becomes} {variable.dtype}"
    is_masked = np.ma.isMaskedArray(adapted)
    return _complaint_about_pieces([np.ma.compressed(adapted) if is_masked else adapted], variable)


def _complaint_about_pieces(pieces: Iterable[np.ndarray], variable: keras.Variable) -> str:
    casting = Casting(np.dtype(variable.dtype))
    for piece in pieces:
        casting.check(piece)
    return casting.complaint


def _equal(checkpoint: Checkpoint, first: str, second: str) -> bool:
    pairs = zip(checkpoint.pieces(first), checkpoint.pieces(second), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def _value(assignment: Assignment, checkpoint: Checkpoint) -> Any:
    """Return the value to assign, in memory of its own: JAX may make it the variable's memory."""
    dtype, destination = np.dtype(assignment.variable.dtype), Destination()
    if assignment.adapter is None:
        array = cast(checkpoint.again(assignment.keys[0], destination.memory), dtype)
    else:
        array = _adapted_value(assignment, checkpoint, dtype)
    return destination.tensor(array)


def _adapted_value(assignment: Assignment, checkpoint: Checkpoint, dtype: np.dtype) -> np.ndarray:
    """Return the adapted array, with the variable's values in place of masked elements."""
    adapted = _adapted(assignment, checkpoint)
    # A callable may return something else than during the check.
    complaint = _complaint_about_array(adapted, assignment)
    if complaint:
        raise RestoreError(f"{assignment.path}: the tensor, read again, {complaint}.")
    if not np.ma.isMaskedArray(adapted):
        return np.array(cast(adapted, dtype), order="C")
    array = np.array(cast(adapted.filled(0), dtype), order="C")
    kept = np.ma.getmaskarray(adapted)
    array[kept] = copy_of(assignment.variable)[kept]
    return array


def _adapted(assignment: Assignment, checkpoint: Checkpoint) -> np.ndarray:
    """Return the adapted array; masked elements are not assigned."""
    assert assignment.adapter is not None
    arrays = [checkpoint[key] for key in assignment.keys]
    try:
        adapted = assignment.adapter(arrays, tuple(assignment.variable.shape))
        return adapted if np.ma.isMaskedArray(adapted) else np.asarray(adapted)
    except Exception as error:  # a user's callable may raise anything
        raise RestoreError(
            f"{assignment.path}: {assignment.adapter} failed on {assignment.keys[0]!r}: {error}"
        ) from error


def _nbytes(assignment: Assignment) -> int:
    return variable_bytes(assignment.variable)
