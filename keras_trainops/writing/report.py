"""The report of `write_back`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from keras_trainops.restoring.planning.table import (
    Row,
    Table,
    rows_of_keys,
    rows_of_pairs,
    rows_of_variables,
)

_MOST_LEFT_OUT = 3  # rows for keys that nobody is likely to miss


@dataclass(frozen=True, repr=False)
class WriteReport(Table):
    """The result of `write_back` or `to_torch`. `print` it for a table.

    Attributes:
        model: The model's name.
        like: The source whose keys, shapes and dtypes were written, and its format.
        out: The path of what was written, or a description of a module.
        written: Key -> variable path; several that share a tensor are joined by a plus sign.
        adapted: Key -> the adapter whose inverse made the tensor.
        reshaped: Key -> the new shape of a tensor, if it is that of the model.
        copied: Keys whose tensors were copied from the source.
        left_out: Keys of the source that were not written: slots, counters, seeds.
        missing: Paths of selected variables that no key leads to; their values were not written.
        excluded: Paths of variables that are not selected, or not in the plan; nor were theirs.
        notes: Lines about what the tensors or the files do not contain.
        seconds: Wall time in seconds.
        bytes: Bytes of the tensors.
    """

    model: str
    like: str
    out: str = ""
    written: Mapping[str, str] = field(default_factory=dict)
    adapted: Mapping[str, str] = field(default_factory=dict)
    reshaped: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    copied: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("written", "adapted", "reshaped"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as lists, dicts, strings and numbers, ready for JSON."""
        plain = {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in vars(self).items()
        }
        plain["reshaped"] = {key: list(shape) for key, shape in self.reshaped.items()}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in plain.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> WriteReport:
        """Create the report from what `to_dict` returned."""
        fields: dict[str, Any] = {
            n: tuple(v) if isinstance(v, list) else v for n, v in plain.items()
        }
        fields["reshaped"] = {key: tuple(shape) for key, shape in plain["reshaped"].items()}
        return cls(**dict[str, Any](fields))

    def _summary(self) -> str:
        written, copied = len(self.written), len(self.copied)
        return (
            f"{self.model!r} to {self.out!r} like {self.like}: wrote {written} of "
            f"{written + copied} tensors, copied {copied} ({self.bytes / 1e6:.1f} MB) in "
            f"{self.seconds:.2f} s"
        )

    def _rows(self) -> Iterable[Row]:
        yield from rows_of_pairs("written", {path: key for key, path in self.written.items()})
        for adapter in dict.fromkeys(self.adapted.values()):
            keys = [key for key, other in self.adapted.items() if other == adapter]
            yield from (row._replace(variables=adapter) for row in rows_of_keys("inverse", keys))
        for key, shape in self.reshaped.items():
            yield Row("reshaped", 1, str(shape), key)
        yield from rows_of_variables("not written", [*self.missing, *self.excluded])
        yield from rows_of_keys("copied", self.copied)
        yield from rows_of_keys("left out", self.left_out, _MOST_LEFT_OUT)

    def _lines(self) -> Iterable[str]:
        return self.notes
