"""Assigning a plan, all or nothing."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from keras_trainops.readers.base import Checkpoint, RestoreError
from keras_trainops.restore.plan import Assignment


def assign(assignments: Sequence[Assignment], checkpoint: Checkpoint) -> None:
    """Reads every tensor, checks it, and only then assigns; a failure puts all values back.

    Args:
        assignments: What to assign. One key may serve several variables; it is read once.
        checkpoint: Where the tensors are read from.

    Raises:
        RestoreError: If a tensor cannot be read, or is not finite in the variable's dtype. No
            variable was changed then.
    """
    values = _read_all(assignments, checkpoint)
    done = 0
    try:
        for i, (_, variable, _) in enumerate(assignments):
            before = to_numpy(variable)
            done = i + 1
            variable.assign(values[i])
            values[i] = before  # the new value's memory is free for the old one
    except BaseException:
        for (_, variable, _), before in zip(assignments[:done], values[:done], strict=True):
            variable.assign(before)
        raise


def to_numpy(variable: keras.Variable) -> np.ndarray:
    """A copy of a variable's value: some backends would hand out the live buffer."""
    return np.array(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable)))


def _read_all(assignments: Sequence[Assignment], checkpoint: Checkpoint) -> list[np.ndarray]:
    raw: dict[str, np.ndarray] = {}
    values = []
    problems = []
    for path, variable, key in assignments:
        if key not in raw:
            raw[key] = checkpoint[key]
        value = _cast(raw[key], np.dtype(variable.dtype))
        if not _all_finite(value):
            problems.append(
                f"{path}: the tensor under key {key!r} {_complaint(raw[key], variable)}"
            )
        values.append(value)
    if problems:
        raise RestoreError(
            f"Cannot restore from {checkpoint.location!r} ({checkpoint.format}):\n"
            + "\n".join(f"  ! {problem}" for problem in problems)
            + "\nNothing was changed. Leave these variables out with `exclude=`."
        )
    return values


def _cast(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):  # an overflow is told by `_all_finite`, with the path
        return value.astype(dtype, copy=False)


def _all_finite(value: np.ndarray) -> bool:
    return value.dtype.kind in "biu" or bool(np.isfinite(value).all())


def _complaint(raw: np.ndarray, variable: keras.Variable) -> str:
    if _all_finite(raw):
        return f"is too large for {variable.dtype}"
    count = int(np.size(raw) - np.count_nonzero(np.isfinite(raw)))
    return f"has {count} values that are NaN or infinite"
