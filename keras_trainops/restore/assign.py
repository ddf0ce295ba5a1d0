"""Assigning a plan, all or nothing."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from keras_trainops import _keras
from keras_trainops.readers.base import Checkpoint, RestoreError
from keras_trainops.restore.plan import Assignment


def assign(model: keras.Model, assignments: Sequence[Assignment], checkpoint: Checkpoint) -> None:
    """Reads every tensor, checks it, and only then assigns; a failure puts all values back.

    Args:
        model: The model that the variables belong to.
        assignments: What to assign. One key may serve several variables; it is read once.
        checkpoint: Where the tensors are read from.

    Raises:
        RestoreError: If a tensor cannot be read, or is not finite or out of range in the
            variable's dtype. No variable was changed then.
    """
    values = _read_all(assignments, checkpoint)
    done = 0
    try:
        for i, assignment in enumerate(assignments):
            before = to_numpy(assignment.variable)
            done = i + 1
            new, values[i] = values[i], before  # once assigned, the new value's memory is free
            assignment.variable.assign(new)
        _derive_again(model, assignments)
    except BaseException:
        for assignment, before in zip(assignments[:done], values[:done], strict=True):
            assignment.variable.assign(before)
        _derive_again(model, assignments)
        raise


def _derive_again(model: keras.Model, assignments: Sequence[Assignment]) -> None:
    """Lets layers compute anew what they derive from their variables.

    `Normalization` normalises with constants that it computes from its variables: in Keras, too,
    loading calls its `finalize_state`.
    """
    assigned = {id(assignment.variable) for assignment in assignments}
    for layer in _keras.all_layers(model):
        derive = getattr(layer, "finalize_state", None)
        if derive is not None and any(id(v) in assigned for v in layer.weights):
            derive()


def to_numpy(variable: keras.Variable) -> np.ndarray:
    """A copy of a variable's value: some backends would hand out the live buffer."""
    return np.array(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable)))


def _read_all(assignments: Sequence[Assignment], checkpoint: Checkpoint) -> list[np.ndarray]:
    raw: dict[str, np.ndarray] = {}
    values = []
    problems = []
    for path, variable, key, copies in assignments:
        if key not in raw:
            raw[key] = checkpoint[key]
        value = _cast(raw[key], np.dtype(variable.dtype))
        if not _is_kept(raw[key], value):
            problems.append(
                f"{path}: the tensor under key {key!r} {_complaint(raw[key], variable)}"
            )
        problems += [
            f"{path}: layers of this model share it, but {key!r} and {copy!r} differ"
            for copy in copies
            if not np.array_equal(checkpoint[copy], raw[key])
        ]
        values.append(value)
    if problems:
        raise RestoreError(
            f"Cannot restore from {checkpoint.location!r} ({checkpoint.format}):\n"
            + "\n".join(f"  ! {problem}" for problem in problems)
            + "\nNothing was changed. Leave these variables out with `exclude=`."
        )
    return values


def _cast(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):  # an overflow is told by `_is_kept`, with the path
        return value.astype(dtype, copy=False)


def _is_kept(raw: np.ndarray, value: np.ndarray) -> bool:
    """Whether a cast kept what it had to: integers are exact (they would wrap), floats finite."""
    return bool((value == raw).all()) if value.dtype.kind in "biu" else _all_finite(value)


def _all_finite(value: np.ndarray) -> bool:
    return value.dtype.kind in "biu" or bool(np.isfinite(value).all())


def _complaint(raw: np.ndarray, variable: keras.Variable) -> str:
    if _all_finite(raw):
        return f"has values outside the range of {variable.dtype}"
    count = int(np.size(raw) - np.count_nonzero(np.isfinite(raw)))
    return f"has {count} values that are NaN or infinite"
