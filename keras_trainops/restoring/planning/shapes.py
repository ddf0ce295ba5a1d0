"""Compare tensors with their variables by shape and dtype, and describe differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from keras_trainops.adapt.base import Chain, Shape
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.dtypes import is_real
from keras_trainops.layouts import hints
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.planning.dependent_tensors import gets_integers
from keras_trainops.restoring.planning.report import Mismatch


def with_adapter_for_keys(assignment: Assignment, checkpoint: Checkpoint) -> Assignment:
    """Return the assignment with the adapter and order that the names of its keys decide.

    Raises:
        ValueError: If the names are ambiguous; the message is a line of the report.
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
    """Return the difference in shape; None if there is none, or if it depends on the values.

    Args:
        assignment: The variable and its keys.
        checkpoint: The source.
        suggestions: Suggests adapters.
        pattern: Returns a pattern that matches only this variable.

    Raises:
        ValueError: If there are several keys without an adapter that combines them, or if the
            adapter does not accept tensors of these shapes; the message is a line of the report.
    """
    adapter = assignment.adapter
    shapes = [checkpoint.shape(key) for key in assignment.keys]

    def suggestion(shapes: Sequence[Shape]) -> str:
        if gets_integers(assignment, checkpoint):
            return ""
        keys, variable = assignment.keys, assignment.variable
        return suggestions.suggest(keys, shapes, variable, pattern(), adapter)

    if adapter is None and len(shapes) > 1:
        raise ValueError(_too_many_keys(assignment, suggestion(shapes)))
    wanted = tuple(assignment.variable.shape)
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


def mismatch_line(mismatch: Mismatch, assignment: Assignment, checkpoint: Checkpoint) -> str:
    """Return a line with the shapes in the model, in the source and adapted, and the suggestion.

    Args:
        mismatch: The difference in shape.
        assignment: The variable and its keys.
        checkpoint: The source.
    """
    line = _shapes(assignment, checkpoint)
    if assignment.adapter is not None:
        line += f", {mismatch.checkpoint_shape} after {assignment.adapter}"
    return f"{line}; {hints.in_words(mismatch.suggestion)}" if mismatch.suggestion else line


def _shapes(assignment: Assignment, checkpoint: Checkpoint) -> str:
    found = [f"{checkpoint.shape(key)} under key {key!r}" for key in assignment.keys]
    wanted = tuple(assignment.variable.shape)
    return f"! {assignment.path}: {wanted} in the model, {' and '.join(found)}"


def _too_many_keys(assignment: Assignment, suggestion: str) -> str:
    keys = assignment.keys
    count, all_of_them = ("Two", "both") if len(keys) == 2 else (str(len(keys)), "all")
    fitting = f": {hints.in_words(suggestion)}" if suggestion else ""
    return (
        f"{count} keys for one variable: {' and '.join(map(repr, keys))} {all_of_them} lead to "
        f"{assignment.path!r}. Leave out all but one with rename rules to None, or combine them by "
        f"an adapter, with `adapt=`{fitting}."
    )


def dtype_problems(assignment: Assignment, checkpoint: Checkpoint) -> list[str]:
    """Return lines about tensors that are not numeric, or are floats for an integer variable."""
    path, wanted = assignment.path, np.dtype(assignment.variable.dtype)
    dtypes = {key: checkpoint.dtype(key) for key in assignment.keys}
    return [
        f"! {path}: {wanted} in the model, {dtype} under key {key!r}"
        for key, dtype in dtypes.items()
        if not is_assignable(dtype, wanted)
    ]


def is_assignable(dtype: np.dtype, wanted: np.dtype) -> bool:
    """Return True if `dtype` may be assigned to `wanted`: int to float, but not float to int."""
    return is_real(dtype) and (dtype.kind in "biu" or wanted.kind not in "biu")
