"""The variables that are the state of a training run: named, copied to the host, put back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_trainops import _keras
from keras_trainops.readers.base import RestoreError
from keras_trainops.training.steps import backend_steps

_METRICS = "metrics/"


def variables_of(model: Any) -> dict[str, keras.Variable]:
    """All variables that one step hands to the next, by a name that is the same in every run.

    Weights and the seeds of layers are named by their path; the optimizer's, with what transforms
    keep there, those of updates and those of metrics have a word before it.
    """
    updates = getattr(model, "train_ops", None)
    groups: list[tuple[str, Iterable[keras.Variable]]] = [
        ("", model.variables),
        ("optimizer/", model.optimizer.variables if model.optimizer is not None else []),
        ("updates/", updates.policy.variables if updates is not None else []),
        (_METRICS, model.metrics_variables),
    ]
    seed = _keras.global_seed()
    if seed is not None:
        groups.append(("random/", [seed]))
    named: dict[str, keras.Variable] = {}
    seen: set[int] = set()
    for start, variables in groups:
        for variable in variables:
            if id(variable) not in seen:
                seen.add(id(variable))
                named[_unique(f"{start}{variable.path}", named)] = variable
    return named


def _unique(key: str, taken: Mapping[str, Any]) -> str:
    """`key`, or with a number where another variable has the same path."""
    count, unique = 1, key
    while unique in taken:
        count += 1
        unique = f"{key}#{count}"
    return unique


class HostCopy:
    """Copies of variables in memory of its own, which is used again: fresh memory costs most."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def reserve(self, variables: Mapping[str, keras.Variable]) -> None:
        """Gets the memory, so that the first copy is as fast as the others."""
        self._arrays = {key: _room_for(v) for key, v in variables.items()}

    def take(self, variables: Mapping[str, keras.Variable]) -> dict[str, np.ndarray]:
        """The values of variables now; the arrays are overwritten by the next call."""
        view, arrays = backend_steps().host_view, {}
        for key, variable in variables.items():
            value = view(variable)
            room = self._arrays.get(key)
            if room is None or room.shape != value.shape or room.dtype != value.dtype:
                room = np.empty(value.shape, value.dtype)
            np.copyto(room, value)
            arrays[key] = room
        self._arrays = arrays
        return dict(arrays)


def _room_for(variable: keras.Variable) -> np.ndarray:
    # A dtype that NumPy does not know is met when it is first copied.
    name = variable.dtype if variable.dtype in np.sctypeDict else "float32"
    room = np.empty(tuple(variable.shape), name)
    room.fill(0)
    return room


def put_back(
    arrays: Mapping[str, np.ndarray], variables: Mapping[str, keras.Variable], whence: str
) -> bool:
    """Assigns what was saved, or nothing where it is of another model.

    Args:
        arrays: What was saved, in the order it had.
        variables: `variables_of` the model.
        whence: What they were read from, for the message.

    Returns:
        Whether the metrics had their values back too: they may be others than they were.

    Raises:
        RestoreError: If the other variables are not those that were saved; it lists what differs.
    """
    metrics = {k: v for k, v in variables.items() if k.startswith(_METRICS)}
    saved_metrics = {k: v for k, v in arrays.items() if k.startswith(_METRICS)}
    ours = {k: v for k, v in variables.items() if k not in metrics}
    saved = {k: v for k, v in arrays.items() if k not in saved_metrics}
    pairs = _matched(saved, ours, whence)
    same = not _differences(saved_metrics, metrics)
    if same:
        pairs += [(arrays[key], variable) for key, variable in metrics.items()]
    for value, variable in pairs:
        variable.assign(value)
    return same


def _matched(
    saved: Mapping[str, np.ndarray], ours: Mapping[str, keras.Variable], whence: str
) -> list[tuple[np.ndarray, keras.Variable]]:
    only = {key for key in {*saved, *ours} if key.startswith("random/")} - (saved.keys() & ours)
    saved = {key: value for key, value in saved.items() if key not in only}
    ours = {key: value for key, value in ours.items() if key not in only}
    if _unnumbered(saved) == _unnumbered(ours) and saved.keys() != ours.keys():
        # Keras numbers the layers of a process: the second time they are made they count on.
        saved = dict(zip(ours, saved.values(), strict=True))
    differences = _differences(saved, ours)
    if differences:
        raise RestoreError(
            f"Cannot resume from '{whence}': it is of another model or optimizer.\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\n! another shape or dtype, - only in the checkpoint, + only in the model. Use "
            "another log directory; nothing was changed in this one."
        )
    return [(saved[key], variable) for key, variable in ours.items()]


def _unnumbered(keys: Iterable[str]) -> list[str]:
    return [re.sub(r"_\d+(?=[/_]|$)", "", key) for key in keys]


def _differences(saved: Mapping[str, np.ndarray], ours: Mapping[str, keras.Variable]) -> list[str]:
    lines = []
    for key in sorted({*saved, *ours}):
        if key not in ours:
            lines.append(f"- {key}: {_form(saved[key])}")
        elif key not in saved:
            lines.append(f"+ {key}: {_form(ours[key])}")
        elif _form(saved[key]) != _form(ours[key]):
            lines.append(f"! {key}: {_form(ours[key])} in the model, {_form(saved[key])} saved")
    return lines


def _form(value: Any) -> str:
    shape: Sequence[int] = tuple(value.shape)
    return f"{keras.backend.standardize_dtype(value.dtype)} {shape}"
