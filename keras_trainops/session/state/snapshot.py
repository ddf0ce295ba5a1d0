"""The variables of a training run: named, copied to the host, and restored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import keras
import numpy as np
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.errors import RestoreError
from keras_trainops.numbering import without_automatic
from keras_trainops.values import assign_copies, copy_of, parts_of

_METRICS, _RANDOM = "metrics/", "random/"
_Value = TypeVar("_Value")


def variables_of(model: Any) -> dict[str, keras.Variable]:
    """Return all variables that one step hands to the next, by a name that is stable over runs.

    Weights and the seeds of layers are named by their path. The variables of the optimizer (with
    the state of transforms), of updates and of metrics have a prefix.
    """
    updates = getattr(model, "train_ops", None)
    groups: list[tuple[str, Iterable[keras.Variable]]] = [
        ("", model.variables),
        ("optimizer/", model.optimizer.variables if model.optimizer is not None else []),
        ("updates/", updates.policy.variables if updates is not None else []),
        (_METRICS, model.metrics_variables),
    ]
    seed = keras_private.global_seed()
    if seed is not None:
        groups.append((_RANDOM, [seed]))
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
    """Copies of variables in host memory that is reused: fresh memory costs most of the time."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def reserve(self, variables: Mapping[str, keras.Variable]) -> None:
        """Allocate the memory, so that the first copy is as fast as the others."""
        self._arrays = {key: _allocated(v) for key, v in variables.items()}

    def take(
        self, variables: Mapping[str, keras.Variable], sums: Iterable[keras.Variable] = ()
    ) -> dict[str, np.ndarray]:
        """Copy the values of variables; the next call overwrites the arrays.

        Under a distribution strategy the copies include the values on each replica, if they differ
        from the value that the variable reads as.

        Args:
            variables: `variables_of` the model.
            sums: `gradient_sums_of` the model. Their parts are always copied, as restoring needs to
                know the number of parts.

        Returns:
            Arrays by name; `name[replica 0]` is the value on the first replica.
        """
        view, arrays = backend().host_view, {}
        summed = {id(v) for v in sums}
        for key, variable in variables.items():
            arrays[key] = self._copied(key, view(variable))
            parts = parts_of(variable)
            if len(parts) > 1 and (id(variable) in summed or _differ(variable, parts)):
                for i, part in enumerate(parts):
                    name = f"{key}[replica {i}]"
                    arrays[name] = self._copied(name, copy_of(part))
        self._arrays = arrays
        return dict(arrays)

    def _copied(self, key: str, value: np.ndarray) -> np.ndarray:
        copy = self._arrays.get(key)
        if copy is None or copy.shape != value.shape or copy.dtype != value.dtype:
            copy = np.empty(value.shape, value.dtype)
        np.copyto(copy, value)
        return copy


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


class SavedVariable(NamedTuple):
    """The saved value of a variable.

    Attributes:
        value: The value that the variable read as.
        parts: The value on each replica; empty if all were `value`.
    """

    value: np.ndarray
    parts: list[np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value and of each part."""
        return self.value.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the value and of each part."""
        return self.value.dtype

    def assign_to(self, variable: keras.Variable, is_sum: bool) -> None:
        """Restore the value on each replica, even if their number has changed.

        On another number of replicas each gets an equal share of a sum of gradients. Keras does so
        for metrics. Other variables, such as the batch-norm statistics of a plain `keras.Model`,
        get the mean.

        Args:
            variable: The variable to assign.
            is_sum: If True, the variable is one of `gradient_sums_of` the model.
        """
        count = len(parts_of(variable))
        if len(self.parts) == count:
            assign_copies(variable, self.parts)
        elif is_sum:
            variable.assign((sum(self.parts) if self.parts else self.value) / count)
        elif self.parts and not _reads_as_sum(variable) and np.issubdtype(self.dtype, np.floating):
            variable.assign(np.mean(self.parts, axis=0, dtype="float64").astype(self.dtype))
        else:
            variable.assign(self.value)


def _reads_as_sum(variable: keras.Variable) -> bool:
    return variable.aggregation == "sum"


def restore_variables(
    arrays: Mapping[str, np.ndarray],
    variables: Mapping[str, keras.Variable],
    source: str,
    sums: Iterable[keras.Variable] = (),
) -> bool:
    """Assign saved values to all variables, or change nothing if they are from another model.

    Args:
        arrays: The result of `HostCopy.take`, in the same order.
        variables: `variables_of` the model.
        source: The path of the checkpoint, for the error message.
        sums: `gradient_sums_of` the model.

    Returns:
        True if the metrics were restored too. They are left unchanged if the model has different
        metrics than were saved.

    Raises:
        RestoreError: If the other variables are not those that were saved; it lists the
            differences.
    """
    saved_metrics, saved = _split_metrics(_by_variable(arrays))
    metrics, others = _split_metrics(variables)
    pairs = _paired(saved, others, source)
    has_same_metrics = not _differences(saved_metrics, metrics)
    if has_same_metrics:
        pairs += [(saved_metrics[key], variable) for key, variable in metrics.items()]
    summed = {id(v) for v in sums}
    for value, variable in pairs:
        value.assign_to(variable, id(variable) in summed)
    return has_same_metrics


def _by_variable(arrays: Mapping[str, np.ndarray]) -> dict[str, SavedVariable]:
    """Join the parts that `HostCopy.take` returned to their variables."""
    saved: dict[str, SavedVariable] = {}
    for key, value in arrays.items():
        part = re.fullmatch(r"(?s)(.*)\[replica (\d+)\]", key)
        if part is not None and part[1] in saved:
            saved[part[1]].parts.append(value)
        else:
            saved[key] = SavedVariable(value, [])
    return saved


def _split_metrics(named: Mapping[str, _Value]) -> tuple[dict[str, _Value], dict[str, _Value]]:
    metrics = {key: value for key, value in named.items() if key.startswith(_METRICS)}
    others = {key: value for key, value in named.items() if key not in metrics}
    return metrics, others


def _paired(
    saved: Mapping[str, SavedVariable], variables: Mapping[str, keras.Variable], source: str
) -> list[tuple[SavedVariable, keras.Variable]]:
    """Return each variable with its saved value, or raise if the two sides differ."""
    saved, variables = _without_unmatched_seeds(saved, variables)
    names, ours = (list(map(without_automatic, side)) for side in (saved, variables))
    if names == ours and saved.keys() != variables.keys():
        # Keras numbers the layers of a process: layers made a second time get higher numbers.
        saved = dict(zip(variables, saved.values(), strict=True))
    differences = _differences(saved, variables)
    if differences:
        raise RestoreError(
            f"Cannot resume from '{source}': it was saved from another model or optimizer.\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\n(! different shape or dtype, - only in the checkpoint, + only in the model.) Use "
            "another log directory; nothing was changed in this one."
        )
    return [(saved[key], variable) for key, variable in variables.items()]


def _without_unmatched_seeds(
    saved: Mapping[str, SavedVariable], variables: Mapping[str, keras.Variable]
) -> tuple[dict[str, SavedVariable], dict[str, keras.Variable]]:
    """Drop Keras's global seed if only one side has it: it exists once it has been used."""
    unmatched = {key for key in saved.keys() ^ variables.keys() if key.startswith(_RANDOM)}
    return (
        {key: value for key, value in saved.items() if key not in unmatched},
        {key: value for key, value in variables.items() if key not in unmatched},
    )


def _differences(
    saved: Mapping[str, SavedVariable], variables: Mapping[str, keras.Variable]
) -> list[str]:
    lines = []
    for key in sorted({*saved, *variables}):
        if key not in variables:
            lines.append(f"- {key}: {_signature(saved[key])}")
        elif key not in saved:
            lines.append(f"+ {key}: {_signature(variables[key])}")
        elif _signature(saved[key]) != _signature(variables[key]):
            ours, theirs = _signature(variables[key]), _signature(saved[key])
            lines.append(f"! {key}: {ours} in the model, {theirs} saved")
    return lines


def _signature(value: Any) -> str:
    shape: Sequence[int] = tuple(value.shape)
    return f"{keras.backend.standardize_dtype(value.dtype)} {shape}"
