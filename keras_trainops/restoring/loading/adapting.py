"""Adapt the tensors of an assignment, and find values that its variable cannot hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.storage.parts import Index, shape_of
from keras_trainops.errors import RestoreError
from keras_trainops.restoring.loading.casting import Casting, cast
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.planning.shapes import is_assignable


def refuse(problems: Sequence[str], checkpoint: Checkpoint) -> None:
    """Raise if there are problems with values.

    Raises:
        RestoreError: With a line for each problem.
    """
    if problems:
        raise RestoreError(
            f"Cannot restore from {checkpoint.location!r} ({checkpoint.format}):\n"
            + "\n".join(f"  ! {problem}" for problem in problems)
            + "\nNothing was changed. Leave these variables out with `exclude=`."
        )


def line_about(assignment: Assignment, complaint: str) -> str:
    """Return a line about the tensors of an assignment."""
    keys = " and ".join(map(repr, assignment.keys))
    return f"{assignment.path}: the tensor under key {keys} {complaint}"


def complaint_about_copy(assignment: Assignment, copy: str) -> str:
    """Return a line about the tensor of a layer that shares the variable, with other values."""
    keys = " and ".join(map(repr, assignment.keys))
    return f"{assignment.path}: layers of this model share it, but {keys} and {copy!r} differ"


def adapted(assignment: Assignment, checkpoint: Checkpoint) -> np.ndarray:
    """Return the adapted array; masked elements are not assigned."""
    arrays = [checkpoint[key] for key in assignment.keys]
    return _adapt(assignment, arrays, tuple(assignment.variable.shape))


def adapted_parts(
    assignment: Assignment, checkpoint: Checkpoint, indices: Sequence[Index]
) -> Iterator[np.ndarray]:
    """Yield parts of the adapted array.

    Whole tensors are read, once, unless the adapter says which parts of them a part depends on.

    Args:
        assignment: An assignment with an adapter.
        checkpoint: The source.
        indices: Normalized indices into the variable.

    Raises:
        RestoreError: If the adapter fails, or the adapted array does not fit.
    """
    assert assignment.adapter is not None
    shapes, target = [checkpoint.shape(key) for key in assignment.keys], assignment.variable.shape
    sources = [assignment.adapter.sources(index, shapes, tuple(target)) for index in indices]
    whole = None if all(sources) else adapted(assignment, checkpoint)
    if whole is not None:
        _require_shape(whole, tuple(target), assignment)
    for index, each in zip(indices, sources, strict=True):
        if whole is not None:
            yield whole[index]
            continue
        pairs = zip(assignment.keys, each or (), strict=True)
        arrays = [checkpoint.part(key, part) for key, part in pairs]
        array = _adapt(assignment, arrays, shape_of(index))
        _require_shape(array, shape_of(index), assignment)
        yield array


def _adapt(
    assignment: Assignment, arrays: Sequence[np.ndarray], target: tuple[int, ...]
) -> np.ndarray:
    assert assignment.adapter is not None
    try:
        result = assignment.adapter(arrays, target)
        return result if np.ma.isMaskedArray(result) else np.asarray(result)
    except Exception as error:  # a user's callable may raise anything
        raise RestoreError(
            f"{assignment.path}: {assignment.adapter} failed on {assignment.keys[0]!r}: {error}"
        ) from error


def _require_shape(array: np.ndarray, shape: tuple[int, ...], assignment: Assignment) -> None:
    complaint = _complaint_about_kind(array, assignment, shape)
    if complaint:
        raise RestoreError(f"{assignment.path}: the tensor {complaint}.")


def complaint_about_array(array: np.ndarray, assignment: Assignment) -> str:
    """Return what is wrong with an adapted array, after "the tensor"; empty if nothing is."""
    variable = assignment.variable
    complaint = _complaint_about_kind(array, assignment, tuple(variable.shape))
    if complaint:
        return complaint
    return complaint_about_pieces([unmasked(array)], np.dtype(variable.dtype))


def _complaint_about_kind(array: np.ndarray, assignment: Assignment, shape: tuple[int, ...]) -> str:
    becomes = f"by {assignment.adapter}, and the variable is"
    if array.shape != shape:
        return f"becomes {array.shape} {becomes} {shape}"
    if not is_assignable(array.dtype, np.dtype(assignment.variable.dtype)):
        return f"becomes {array.dtype} {becomes} {assignment.variable.dtype}"
    return ""


def complaint_about_pieces(pieces: Iterable[np.ndarray], dtype: np.dtype) -> str:
    """Return which values a dtype cannot hold, after "the tensor"; empty if it holds all."""
    casting = Casting(dtype)
    for piece in pieces:
        casting.check(piece)
    return casting.complaint


def unmasked(array: np.ndarray) -> np.ndarray:
    """Return the elements that are assigned."""
    return np.ma.compressed(array) if np.ma.isMaskedArray(array) else array


def cast_and_mask(array: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray | None]:
    """Return an array in the variable's dtype, and a mask of elements to keep, or None."""
    if not np.ma.isMaskedArray(array):
        return cast(array, dtype), None
    return cast(array.filled(0), dtype), np.ma.getmaskarray(array)
