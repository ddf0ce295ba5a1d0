"""The saved variables of a training run, given back to a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import keras
import numpy as np

from keras_trainops.backends import backend
from keras_trainops.errors import RestoreError
from keras_trainops.numbering import without_automatic
from keras_trainops.processes import Processes
from keras_trainops.session.state.snapshot import METRICS, RANDOM, is_float, summed_among
from keras_trainops.session.storage.shards import ShardedArray
from keras_trainops.values import Copies, assign_copies, copies_of, parts_of

_Value = TypeVar("_Value")


class SavedVariable(NamedTuple):
    """The saved value of a variable.

    Attributes:
        value: The value that the variable read as.
        parts: The value on each replica of each process; empty if all were `value`.
    """

    value: np.ndarray | ShardedArray
    parts: list[np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value and of each part."""
        return self.value.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the value and of each part."""
        return self.value.dtype

    def for_process(
        self, variable: keras.Variable, is_sum: bool, processes: Processes
    ) -> list[np.ndarray]:
        """Return what this process restores, even if the number of replicas has changed.

        On another number of replicas each gets an equal share of a sum, such as that of a metric.
        Other variables, such as the batch-norm statistics of a plain `keras.Model`, get the mean.

        Args:
            variable: The variable to restore.
            is_sum: If True, the parts add up to the value, as those of metrics do.
            processes: The processes of the run.

        Returns:
            Arrays for `_assign`: of each part that the process holds, or each replica on it.
        """
        held, value = backend().parts_here(variable), self.value
        if isinstance(value, ShardedArray):
            return [value.part(index) for index in held or [(slice(None),) * len(value.shape)]]
        here = len(parts_of(variable))
        count = here * (1 if backend().processes_share_arrays else processes.count)
        if self.parts and len(self.parts) == count:
            first = here * processes.index if count > here else 0
            values = self.parts[first : first + here]
        elif is_sum and (count > 1 or self.parts):
            total = np.sum(self.parts, axis=0, dtype=value.dtype) if self.parts else value
            values = _shares(total, here, count, processes.is_first)
        elif self.parts and is_float(value.dtype):
            values = [np.mean(self.parts, axis=0, dtype="float64").astype(value.dtype)] * here
        else:
            values = [value] * here
        # Copies, as steps of JAX overwrite the memory of a variable.
        return values if held is None else [np.array(values[0][index]) for index in held]


def _shares(total: np.ndarray, here: int, count: int, is_first: bool) -> list[np.ndarray]:
    """Return the shares of a sum on the replicas of a process, of `count`; integers stay whole."""
    if is_float(total.dtype):
        return [np.asarray(total / total.dtype.type(count))] * here
    shares = [np.asarray(total // count)] * here
    if is_first:
        shares[0] = np.asarray(shares[0] + total % count)
    return shares


def _assign(variable: keras.Variable, arrays: Sequence[np.ndarray]) -> None:
    """Assign the result of `SavedVariable.for_process`."""
    if backend().parts_here(variable) is None:
        assign_copies(variable, arrays)
    else:
        variable.assign(backend().from_parts(variable, arrays))


def _assign_again(before: Sequence[tuple[keras.Variable, Copies]], cause: BaseException) -> None:
    """Assign previous values; add a note to `cause` if that fails too."""
    lost = 0
    for variable, copies in before:
        try:
            assign_copies(variable, copies)
        except Exception:
            lost += 1
    if lost:
        cause.add_note(f"The model is half-resumed: {lost} variables keep their new values.")


def restore_variables(
    arrays: Mapping[str, np.ndarray],
    variables: Mapping[str, keras.Variable],
    source: str,
    sums: Iterable[keras.Variable],
    processes: Processes,
) -> bool:
    """Assign saved values to all variables, or change nothing if they are from another model.

    Args:
        arrays: The result of `HostCopy.take`, in the same order.
        variables: `variables_of` the model.
        source: The path of the checkpoint, for the error message.
        sums: `gradient_sums_of` the model.
        processes: The processes of the run.

    Returns:
        True if the metrics were restored too. They are left unchanged if the model has different
        metrics than were saved.

    Raises:
        RestoreError: If the other variables are not those that were saved; it lists the
            differences. All processes raise it if one does.
    """
    summed = summed_among(variables.values(), sums)
    with processes.agreed("to read the state of the model"):
        pairs, has_same_metrics = _matched(arrays, variables, source)
        found = [(v, value.for_process(v, id(v) in summed, processes)) for value, v in pairs]
    before: list[tuple[keras.Variable, Copies]] = []
    try:
        with processes.agreed("to assign the state of the model"):
            for variable, copies in found:
                if processes.several:  # another one may fail
                    before.append((variable, copies_of(variable)))
                _assign(variable, copies)
    except BaseException as error:
        _assign_again(before, error)
        raise
    return has_same_metrics


def _matched(
    arrays: Mapping[str, np.ndarray], variables: Mapping[str, keras.Variable], source: str
) -> tuple[list[tuple[SavedVariable, keras.Variable]], bool]:
    """Return each variable with its saved value, and whether those of metrics fit."""
    saved_metrics, saved = _split_metrics(_by_variable(arrays))
    metrics, others = _split_metrics(variables)
    pairs = _paired(saved, others, source)
    has_same_metrics = not _differences(saved_metrics, metrics)
    if has_same_metrics:
        pairs += [(saved_metrics[key], variable) for key, variable in metrics.items()]
    return pairs, has_same_metrics


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
    metrics = {key: value for key, value in named.items() if key.startswith(METRICS)}
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
    unmatched = {key for key in saved.keys() ^ variables.keys() if key.startswith(RANDOM)}
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
