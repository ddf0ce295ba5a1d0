"""The variables that are the state of a training run: named, copied to the host, put back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.errors import RestoreError
from keras_trainops.values import assign_copies, copy_of, parts_of

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
    seed = keras_private.global_seed()
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


def gradient_sums_of(model: Any) -> list[keras.Variable]:
    """Those of the variables whose replicas hold parts of a sum."""
    return keras_private.gradient_sums(model.optimizer)


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

    def take(
        self, variables: Mapping[str, keras.Variable], sums: Iterable[keras.Variable] = ()
    ) -> dict[str, np.ndarray]:
        """The values of variables now; the arrays are overwritten by the next call.

        Under a strategy there are, besides what a variable reads as, the values on each replica,
        where those are others.

        Args:
            variables: `variables_of` the model.
            sums: Those whose replicas hold parts of a sum. Each part is kept, also where all are
                the same: for how many there are.
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
        room = self._arrays.get(key)
        if room is None or room.shape != value.shape or room.dtype != value.dtype:
            room = np.empty(value.shape, value.dtype)
        np.copyto(room, value)
        return room


def _differ(variable: keras.Variable, parts: Sequence[Any]) -> bool:
    """Whether some replica holds another value than the variable reads as."""
    value = ops.convert_to_tensor(variable)
    return not all(bool(ops.all(ops.equal(ops.convert_to_tensor(p), value))) for p in parts)


def _room_for(variable: keras.Variable) -> np.ndarray:
    # A dtype that NumPy does not know is met when it is first copied.
    name = variable.dtype if variable.dtype in np.sctypeDict else "float32"
    room = np.empty(tuple(variable.shape), name)
    room.fill(0)
    return room


class Saved(NamedTuple):
    """What was saved of a variable.

    Attributes:
        value: What it read as.
        parts: What it was on each replica; empty where it was `value` on all.
    """

    value: np.ndarray
    parts: list[np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of each."""
        return self.value.shape

    @property
    def dtype(self) -> Any:
        """The dtype of each."""
        return self.value.dtype

    def assign_to(self, variable: keras.Variable, is_sum: bool) -> None:
        """Gives each replica its value back or, where there are as many no more, what is fair.

        Of a sum of gradients each replica then has the same share; of metrics, Keras does that. For
        others, such as the batch-norm statistics of a plain `keras.Model`, it is the mean.
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


def _gathered(arrays: Mapping[str, np.ndarray]) -> dict[str, Saved]:
    """What `HostCopy.take` gave, by variable."""
    saved: dict[str, Saved] = {}
    for key, value in arrays.items():
        found = re.fullmatch(r"(?s)(.*)\[replica (\d+)\]", key)
        if found is not None and found[1] in saved:
            saved[found[1]].parts.append(value)
        else:
            saved[key] = Saved(value, [])
    return saved


def put_back(
    arrays: Mapping[str, np.ndarray],
    variables: Mapping[str, keras.Variable],
    whence: str,
    sums: Iterable[keras.Variable] = (),
) -> bool:
    """Assigns what was saved, or nothing where it is of another model.

    Args:
        arrays: What was saved, in the order it had.
        variables: `variables_of` the model.
        whence: What they were read from, for the message.
        sums: Those of the variables whose replicas hold parts of a sum.

    Returns:
        Whether the metrics had their values back too: they may be others than they were.

    Raises:
        RestoreError: If the other variables are not those that were saved; it lists what differs.
    """
    everything = _gathered(arrays)
    metrics = {k: v for k, v in variables.items() if k.startswith(_METRICS)}
    saved_metrics = {k: v for k, v in everything.items() if k.startswith(_METRICS)}
    ours = {k: v for k, v in variables.items() if k not in metrics}
    saved = {k: v for k, v in everything.items() if k not in saved_metrics}
    pairs = _matched(saved, ours, whence)
    same = not _differences(saved_metrics, metrics)
    if same:
        pairs += [(everything[key], variable) for key, variable in metrics.items()]
    summed = {id(v) for v in sums}
    for value, variable in pairs:
        value.assign_to(variable, id(variable) in summed)
    return same


def _matched(
    saved: Mapping[str, Saved], ours: Mapping[str, keras.Variable], whence: str
) -> list[tuple[Saved, keras.Variable]]:
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


def _differences(saved: Mapping[str, Saved], ours: Mapping[str, keras.Variable]) -> list[str]:
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
