"""The report of a restore, as a table and as plain data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from keras_trainops.restoring.planning.saved_plan import Origin
from keras_trainops.restoring.planning.table import (
    Row,
    Table,
    fold,
    rows_of_keys,
    rows_of_pairs,
    rows_of_variables,
)

_MAPPINGS = ("restored", "adapted", "optimizer")  # fields that are read-only mappings
_MOST_LEFT_OUT = 3  # rows for keys that nobody is likely to miss


class Mismatch(NamedTuple):
    """A variable whose shape differs from the tensor under its key.

    Attributes:
        path: The variable's path.
        key: The key; several keys that an adapter combines are joined by ` + `.
        model_shape: The variable's shape.
        checkpoint_shape: The tensor's shape, after its adapter if there is one.
        suggestion: An entry of `adapt` that would fit, or the adapter to append to the present
            one; empty if nothing is likely.
    """

    path: str
    key: str
    model_shape: tuple[int, ...]
    checkpoint_shape: tuple[int, ...]
    suggestion: str = ""


@dataclass(frozen=True, repr=False)
class RestoreReport(Table):
    """The result of a restore or, from `plan_restore`, its plan. `print` it for a table.

    Attributes:
        model: The model's name.
        source: The source of the values, and its format.
        applied: True if the variables were assigned; False from `plan_restore`.
        restored: Variable path -> checkpoint key.
        adapted: Variable path -> the adapter that made its tensor fit.
        optimizer: Path of an optimizer variable -> checkpoint key.
        missing: Paths of selected variables that no key leads to.
        unexpected: Keys that lead to no variable.
        mismatched: Variables whose shape differs from their tensor's.
        excluded: Paths that `include` and `exclude` do not select.
        ignored: Keys that a rename rule leaves out (`None`).
        slots: Unused keys of training state: optimizer slots, counters, seeds.
        unbuilt: Layers without variables yet, into which nothing could be restored.
        problems: Reasons why `restore` would raise; empty if it would not.
        seconds: Wall time of planning, reading and assigning, in seconds.
        bytes: Bytes of the tensors read or, from `plan_restore`, to be read.
        origin: What `save` and `write_back` need of the plan.
    """

    model: str
    source: str
    applied: bool = False
    restored: Mapping[str, str] = field(default_factory=dict)
    adapted: Mapping[str, str] = field(default_factory=dict)
    optimizer: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    excluded: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()
    unbuilt: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    seconds: float = 0.0
    bytes: int = 0
    origin: Origin | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in _MAPPINGS:
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields but `origin` as lists, dicts, strings and numbers, ready for JSON."""
        plain = {name: value for name, value in vars(self).items() if name != "origin"}
        plain |= {name: dict(plain[name]) for name in _MAPPINGS}
        plain["mismatched"] = [_with_lists(entry._asdict()) for entry in self.mismatched]
        return _with_lists(plain)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> RestoreReport:
        """Return the report of which `to_dict` returned the fields, without `origin`."""
        found = _with_tuples(fields)
        found["mismatched"] = tuple(Mismatch(**_with_tuples(m)) for m in found["mismatched"])
        return cls(**found)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the plan, without values, for `restore(plan=)` and `write_back`.

        The file is JSON: the keys and the adapter of each variable; key, shape and dtype of each
        tensor of the source; and what else the source contains, such as its metadata.

        Args:
            path: The file to write; an existing one is replaced.

        Raises:
            ValueError: If an adapter cannot be stored, such as a callable, or nothing was restored.
            RestoreError: If the source was changed or deleted since it was restored, or the file
                cannot be written.

        Example:
            >>> import keras, keras_trainops as kt
            >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")])
            >>> model.save_weights("trained.weights.h5")
            >>> kt.restore(model, "trained.weights.h5").save("plan.json")
            >>> report = kt.restore(model, "trained.weights.h5", plan="plan.json")
        """
        if self.origin is None:
            raise ValueError("This report is not of a restore, so there is no plan to save.")
        self.origin.plan().save(path)

    def _summary(self) -> str:
        verb = "restored" if self.applied else "would restore"
        total = len(self.restored) + len(self.missing) + len(self.mismatched)
        text = (
            f"{self.model!r} from {self.source}: {verb} {len(self.restored)} of {total} variables"
        )
        text += f" ({self.bytes / 1e6:.1f} MB) in {self.seconds:.2f} s"
        rest = [f"{kind}: {count}" for kind, count in self.counts().items() if count]
        return "; ".join([text, *rest])

    def counts(self) -> dict[str, int]:
        """Return the number of entries of each kind other than `restored`."""
        return {
            "optimizer variables": len(self.optimizer),
            "adapted": len(self.adapted),
            "missing": len(self.missing),
            "unexpected": len(self.unexpected),
            "mismatched": len(self.mismatched),
            "excluded": len(self.excluded),
            "left out": len(self.ignored),
            "training state": len(self.slots),
            "unbuilt": len(self.unbuilt),
        }

    def _rows(self) -> Iterable[Row]:
        yield from rows_of_pairs("restored", self.restored)
        yield from rows_of_pairs("optimizer", self.optimizer)
        for adapter in dict.fromkeys(self.adapted.values()):
            paths = [path for path, other in self.adapted.items() if other == adapter]
            yield from (Row("adapted", len(names), text, adapter) for text, names in fold(paths))
        for entry in self.mismatched:
            variable = f"{entry.path} {entry.model_shape}"
            yield Row("mismatched", 1, variable, f"{entry.key} {entry.checkpoint_shape}")
        yield from rows_of_variables("missing", self.missing)
        yield from rows_of_variables("excluded", self.excluded)
        yield from (Row("unbuilt", 1, layer, "") for layer in self.unbuilt)
        yield from rows_of_keys("unexpected", self.unexpected)
        yield from rows_of_keys("left out", self.ignored, _MOST_LEFT_OUT)
        yield from rows_of_keys("training state", self.slots, _MOST_LEFT_OUT)

    def _lines(self) -> Iterable[str]:
        return self.problems


def _with_lists(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
