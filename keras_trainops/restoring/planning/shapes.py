"""Whether tensors fit their variables, by shape and dtype, and the words for where they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from keras_trainops.adapt import suggestion as hints
from keras_trainops.adapt.base import Chain, Shape
from keras_trainops.checkpoints.arrays import is_real
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.planning.dependent_tensors import is_packed
from keras_trainops.restoring.planning.report import Mismatch


def for_keys(assignment: Assignment, checkpoint: Checkpoint) -> Assignment:
    """The assignment with what its adapter makes of the names of the keys.

    Raises:
        ValueError: If they do not tell what it has to know; the message is a line of the report.
    """
    if assignment.adapter is None:
        return assignment
    shapes = [checkpoint.shape(key) for key in assignment.keys]
    wanted = tuple(assignment.variable.shape)
    try:
        keys, adapter = assignment.adapter.for_keys(assignment.keys, shapes, wanted)
    except ValueError as error:
        raise ValueError(f"{_shapes(assignment, checkpoint)}; {error}") from None
    return assignment._replace(keys=keys, adapter=adapter)


def mismatch_of(
    assignment: Assignment,
    checkpoint: Checkpoint,
    suggestions: hints.Hints,
    pattern: Callable[[], str],
) -> Mismatch | None:
    """What does not fit by shape; None if all does, or if only the values tell.

    Args:
        assignment: The variable and its keys.
        checkpoint: Where the tensors are.
        suggestions: Suggests adapters.
        pattern: Returns a pattern that matches the variable alone.

    Raises:
        ValueError: If there are several keys and nothing that combines them, or if the adapter
            does not take tensors of these shapes; the message is a line of the report.
    """
    adapter = assignment.adapter
    wanted = tuple(assignment.variable.shape)
    shapes = [checkpoint.shape(key) for key in assignment.keys]

    def suggestion(shapes: Sequence[Shape]) -> str:
        if is_packed(assignment, checkpoint):
            return ""
        keys, variable = assignment.keys, assignment.variable
        return suggestions.suggest(keys, shapes, variable, pattern(), adapter)

    if adapter is None and len(shapes) > 1:
        raise ValueError(_crowded(assignment, suggestion(shapes)))
    try:
        shape = shapes[0] if adapter is None else adapter.shape(shapes, wanted)
    except ValueError as error:
        reason = str(error) if isinstance(adapter, Chain) else f"{adapter}: {error}"
        raise ValueError(f"{_shapes(assignment, checkpoint)}; {reason}") from None
    if shape is None or tuple(shape) == wanted:
        return None
    shape = tuple(shape)
    key = " + ".join(assignment.keys)
    return Mismatch(assignment.path, key, wanted, shape, suggestion([shape]))


def in_words(mismatch: Mismatch, assignment: Assignment, checkpoint: Checkpoint) -> str:
    """A line that says the shapes before, wanted and after, and what would fit."""
    line = _shapes(assignment, checkpoint)
    if assignment.adapter is not None:
        line += f", {mismatch.checkpoint_shape} after {assignment.adapter}"
    return f"{line}; {hints.in_words(mismatch.suggestion)}" if mismatch.suggestion else line


def _shapes(assignment: Assignment, checkpoint: Checkpoint) -> str:
    found = [f"{checkpoint.shape(key)} under key {key!r}" for key in assignment.keys]
    wanted = tuple(assignment.variable.shape)
    return f"! {assignment.path}: {wanted} in the model, {' and '.join(found)}"


def _crowded(assignment: Assignment, suggestion: str) -> str:
    keys = assignment.keys
    count, all_of_them = ("Two", "both") if len(keys) == 2 else (str(len(keys)), "all")
    fitting = f": {hints.in_words(suggestion)}" if suggestion else ""
    return (
        f"{count} keys for one variable: {' and '.join(map(repr, keys))} {all_of_them} lead to "
        f"{assignment.path!r}. Leave out what is too many with a rename rule to None, or combine "
        f"them by an adapter, with `adapt=`{fitting}."
    )


def dtype_problems(assignment: Assignment, checkpoint: Checkpoint) -> list[str]:
    """Lines on tensors that are no numbers, or floats for a variable of integers."""
    path, wanted = assignment.path, np.dtype(assignment.variable.dtype)
    dtypes = {key: checkpoint.dtype(key) for key in assignment.keys}
    return [
        f"! {path}: {wanted} in the model, {dtype} under key {key!r}"
        for key, dtype in dtypes.items()
        if not is_assignable(dtype, wanted)
    ]


def is_assignable(dtype: np.dtype, wanted: np.dtype) -> bool:
    """Whether `dtype` may be assigned to `wanted`: int to float yes, float to int no."""
    return is_real(dtype) and (dtype.kind in "biu" or wanted.kind not in "biu")
