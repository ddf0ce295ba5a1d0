"""A plan as a file: which tensors lead to which variables, and what the source looks like."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from keras_trainops.adapt.axes import whole_numbers
from keras_trainops.adapt.base import Adapter
from keras_trainops.adapt.serialization import as_config, from_config
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.open import open_checkpoint
from keras_trainops.checkpoints.storage.files import MOST_METADATA, load_json, read_file
from keras_trainops.checkpoints.storage.limits import refuse_unsafe_names
from keras_trainops.checkpoints.storage.writing import written_aside
from keras_trainops.errors import RestoreError
from keras_trainops.restoring.naming.table import counted_paths
from keras_trainops.restoring.naming.target import Target

_KIND = "keras_trainops restore plan"
_VERSION = 1
_HEAD = 200  # bytes


class Lead(NamedTuple):
    """A variable and the keys that lead to it.

    Attributes:
        path: The path of the variable.
        keys: As in an `Assignment`.
        adapter: As in an `Assignment`.
        copies: As in an `Assignment`.
        counted: The path with layers counted in their owner (`dense#2/kernel`), as automatic
            numbers depend on what was created before.
    """

    path: str
    keys: tuple[str, ...]
    adapter: Adapter | None = None
    copies: tuple[str, ...] = ()
    counted: str = ""


class Tensor(NamedTuple):
    """What a plan knows of a tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype
    is_training_state: bool = False


class SavedPlan(NamedTuple):
    """Everything that a restore, or the way back, needs to know besides the values.

    Attributes:
        model: The name of the model.
        source: The source of the plan, as text.
        writer: The name of the source's `Format`; empty if it is not from a file.
        leads: The variables, in the order of the model.
        tensors: The tensors of the source by key, in its order.
        structure: What else the source contains; see `Checkpoint.structure`.
    """

    model: str
    source: str
    writer: str
    leads: tuple[Lead, ...]
    tensors: Mapping[str, Tensor]
    structure: Mapping[str, Any]

    @classmethod
    def of(
        cls, model: str, checkpoint: Checkpoint, writer: str, leads: Sequence[Lead]
    ) -> SavedPlan:
        """Return the plan of a restore from an open checkpoint."""
        tensors, structure = tensors_of(checkpoint), checkpoint.structure()
        return cls(model, checkpoint.location, writer, tuple(leads), tensors, structure)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a file, as JSON with one line per variable and tensor.

        Raises:
            ValueError: If an adapter cannot be stored.
            OSError: If the file cannot be written.
        """
        text = _lines(
            {
                "kind": _KIND,
                "version": _VERSION,
                "model": self.model,
                "source": self.source,
                "format": self.writer,
                "variables": {lead.path: _stored(lead) for lead in self.leads},
                "tensors": {
                    key: {"shape": tensor.shape, "dtype": str(tensor.dtype)}
                    | ({"training_state": True} if tensor.is_training_state else {})
                    for key, tensor in self.tensors.items()
                },
                "structure": self.structure,
            }
        )
        with written_aside(Path(path)) as aside:
            aside.write_text(text, encoding="utf-8")


def tensors_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the shapes and dtypes of all tensors of a checkpoint."""
    state = checkpoint.training_state
    return {
        key: Tensor(checkpoint.shape(key), checkpoint.dtype(key), key in state)
        for key in checkpoint
    }


def is_plan(path: str) -> bool:
    """Return True if a file looks like a plan."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        head = file.read(_HEAD).lstrip()
    return head.startswith(b"{") and _KIND.encode() in head


def load_plan(path: str | os.PathLike[str]) -> SavedPlan:
    """Read a plan that `SavedPlan.save` wrote.

    Raises:
        RestoreError: If the file is missing, damaged or not a plan, is of another version, or has
            an adapter that is not known.
    """
    location = os.fspath(path)
    try:
        content = load_json(read_file(location, MOST_METADATA), location)
    except RestoreError:
        raise
    except (OSError, ValueError) as error:
        raise RestoreError(f"Cannot read the plan {location!r}: {error}") from error
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise RestoreError(f"{location!r} is not a plan that `report.save` wrote.")
    if content.get("version") != _VERSION:
        raise RestoreError(
            f"The plan {location!r} has version {content.get('version')!r}, but this version of "
            f"keras_trainops reads version {_VERSION}. Save it again."
        )
    try:
        plan = _parsed(content)
    except Exception as error:  # a file may contain anything
        raise RestoreError(f"The plan {location!r} is damaged: {error}") from error
    refuse_unsafe_names(plan.tensors, location)
    return plan


def _parsed(content: Mapping[str, Any]) -> SavedPlan:
    tensors = {
        key: Tensor(
            _shape(entry["shape"]),
            _dtype(entry["dtype"]),
            bool(entry.get("training_state", False)),
        )
        for key, entry in content["tensors"].items()
    }
    leads = tuple(_lead(path, entry, tensors) for path, entry in content["variables"].items())
    structure = dict(content["structure"])
    model, source, writer = (str(content[name]) for name in ("model", "source", "format"))
    return SavedPlan(model, source, writer, leads, tensors, structure)


def _stored(lead: Lead) -> dict[str, Any]:
    entry: dict[str, Any] = {"keys": lead.keys, "counted": lead.counted}
    if lead.copies:
        entry["copies"] = lead.copies
    if lead.adapter is not None:
        try:
            entry["adapt"] = as_config(lead.adapter)
        except ValueError as error:
            raise ValueError(f"The plan cannot be saved: {lead.path}: {error}.") from None
    return entry


def _lead(path: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Lead:
    keys, copies = tuple(map(str, entry["keys"])), tuple(map(str, entry.get("copies", ())))
    unknown = [key for key in (*keys, *copies) if key not in tensors]
    if unknown or not keys:
        raise ValueError(f"{path!r} gets {unknown or 'no tensor'}, which it does not list")
    adapter = from_config(entry["adapt"]) if "adapt" in entry else None
    return Lead(path, keys, adapter, copies, str(entry.get("counted", "")))


def _shape(lengths: Sequence[Any]) -> tuple[int, ...]:
    shape = whole_numbers("shape", lengths)
    if any(length < 0 for length in shape):
        raise ValueError(f"a shape cannot be {list(shape)}")
    return shape


def _dtype(name: str) -> np.dtype:
    """Return a dtype of numbers by its name.

    Raises:
        ValueError: If it is not one.
    """
    extension = getattr(ml_dtypes, name, None) if name.isidentifier() else None
    dtype = np.dtype(extension if isinstance(extension, type) else name)
    if dtype.hasobject or dtype.names or dtype.shape:
        raise ValueError(f"{name!r} is not a dtype of numbers")
    return dtype


def _lines(content: Mapping[str, Any]) -> str:
    """Return JSON with one line per entry of each object at the top level."""
    parts = []
    for name, value in content.items():
        text = json.dumps(value, ensure_ascii=False, default=int)  # numbers of NumPy
        if name in ("variables", "tensors") and value:
            text = "{\n" + ",\n".join(_entries(value)) + "\n}"
        parts.append(f"{json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _entries(value: Mapping[str, Any]) -> Iterator[str]:
    for key, entry in value.items():
        yield " " + ": ".join(json.dumps(x, ensure_ascii=False, default=int) for x in (key, entry))


class PlannedCheckpoint(Checkpoint):
    """The tensors that a plan lists, without their values."""

    format = "plan"

    def __init__(self, location: str, plan: SavedPlan) -> None:
        super().__init__(location, [location])
        self._plan = plan
        tensors = plan.tensors.items()
        self.training_state = frozenset(key for key, found in tensors if found.is_training_state)

    def _keys(self) -> Mapping[str, Tensor]:
        return self._plan.tensors

    def _shape(self, key: str) -> tuple[int, ...]:
        return self._plan.tensors[key].shape

    def _dtype(self, key: str) -> np.dtype:
        return self._plan.tensors[key].dtype

    def _read(self, key: str) -> np.ndarray:
        raise RestoreError(f"The plan {self.location!r} lists {key!r}, but has no values.")

    def _structure(self) -> Mapping[str, Any]:
        return self._plan.structure


class Origin(NamedTuple):
    """What a report remembers of its plan; the source is opened again when the plan is needed.

    Attributes:
        model: The name of the model.
        leads: The variables, in the order of the model.
        source: The path of the source, or, of arrays in memory, their shapes and dtypes.
        names: All variables of the model: path, and path without the model's name.
    """

    model: str
    leads: tuple[Lead, ...]
    source: str | Mapping[str, Tensor]
    names: tuple[tuple[str, str], ...]

    def leads_alone(self) -> SavedPlan:
        """Return the plan without the tensors of the source, which need not be there any more."""
        return SavedPlan(self.model, "", "", self._counted(), {}, {})

    def plan(self) -> SavedPlan:
        """Return the whole plan.

        Raises:
            RestoreError: If the source cannot be opened any more, or has changed.
        """
        leads = self._counted()
        if not isinstance(self.source, str):
            return SavedPlan(self.model, "arrays in memory", "", leads, self.source, {})
        with open_checkpoint(self.source) as checkpoint:
            writer = checkpoint.opened_as.name
            keys = {key for lead in self.leads for key in (*lead.keys, *lead.copies)}
            gone = [key for key in keys if key not in checkpoint]
            if gone:
                raise RestoreError(
                    f"{self.source!r} has changed since it was restored: it lacks {min(gone)!r}."
                )
            return SavedPlan.of(self.model, checkpoint, writer, leads)

    def _counted(self) -> tuple[Lead, ...]:
        counted = counted_paths({short: path for path, short in self.names})
        names = {path: name for name, path in counted.items()}
        return tuple(lead._replace(counted=names.get(lead.path, "")) for lead in self.leads)


def origin_of(
    model: str, checkpoint: Checkpoint, leads: Sequence[Lead], targets: Sequence[Target]
) -> Origin:
    """Return what a report needs to make the plan again."""
    in_memory = checkpoint.opened_as is None
    source = tensors_of(checkpoint) if in_memory else checkpoint.location
    names = tuple((target.path, target.short_path) for target in targets)
    return Origin(model, tuple(leads), source, names)
