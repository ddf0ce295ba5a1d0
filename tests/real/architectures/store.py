"""A case on disk: its file, the right value of each variable, and where each value is from."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from tests.real.architectures.case import (
    Case,
    Example,
    difference,
    is_float,
    load_example,
    mark,
    neutralise,
    values,
)
from tests.real.architectures.sources import read

DONE = "case.json"
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Prepared:
    """What scoring needs.

    Attributes:
        directory: Of the file.
        path: The file.
        right: The right value of each of `model.weights`; None if the file does not have it.
        origins: The key whose tensor has the middle number of each value; "" where none has.
        example: What the source computes, if it was recorded.
    """

    directory: Path
    path: Path
    right: list[np.ndarray | None]
    origins: list[str]
    example: Example | None


def prepare(case: Case, directory: Path) -> Prepared:
    """Write a case into a directory, or read what is there."""
    if not (directory / DONE).exists():
        _write(case, directory)
    told = json.loads((directory / DONE).read_text(encoding="utf-8"))
    with np.load(directory / "oracle.npz") as stored:
        known = dict(stored)
    right = [known.get(str(i)) for i in range(told["variables"])]
    example = load_example(directory / "source")
    return Prepared(directory / "source", directory / told["path"], right, told["origins"], example)


def _write(case: Case, directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "source").mkdir(parents=True)
    path = case.source(directory / "source")
    model = build(case, directory / "source")
    initial = values(model)
    right = right_values(case, directory / "source", model)
    neutralise(model, right, initial)
    check(model, load_example(directory / "source"))
    known = {str(i): value for i, value in enumerate(right) if value is not None}
    np.savez(directory / "oracle.npz", **known)
    told = {
        "path": str(path.relative_to(directory)),
        "variables": len(right),
        "origins": _origins(right, read(path)),
    }
    (directory / DONE).write_text(json.dumps(told, indent=1), encoding="utf-8")


def build(case: Case, directory: Path) -> keras.Model:
    """A new target, with the automatic names of a new process; keras_hub may warn of its own."""
    keras.backend.clear_session()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return case.target(directory)


def right_values(case: Case, directory: Path, model: keras.Model) -> list[np.ndarray | None]:
    before = mark(model)
    case.oracle(directory, model)
    after = values(model)
    right = [
        None if np.array_equal(old, new) else new for old, new in zip(before, after, strict=True)
    ]
    for variable, value in zip(model.weights, right, strict=True):
        lacking = not is_float(variable) or re.search(case.lacks, variable.path)
        assert (value is None) == bool(lacking), f"{variable.path}: {value}"
    return right


def check(model: keras.Model, example: Example | None) -> None:
    """The right values compute what the source does: the oracle is right."""
    if example:
        apart = difference(model, example)
        assert apart <= TOLERANCE, f"outputs differ by {apart:.1e}"


def _origins(right: list[np.ndarray | None], arrays: dict[str, np.ndarray]) -> list[str]:
    """The key that has the middle number of each value."""
    floats = {k: a.ravel() for k, a in arrays.items() if a.dtype == np.float32 and a.size}
    keys, numbers = list(floats), np.concatenate(list(floats.values()))
    ends = np.cumsum([a.size for a in floats.values()])
    order = np.argsort(numbers, kind="stable")
    found = []
    for value in right:
        middle = None if value is None or not value.size else value.ravel()[value.size // 2]
        place = 0 if middle is None else np.searchsorted(numbers, middle, sorter=order)
        hit = middle is not None and place < len(order) and numbers[order[place]] == middle
        found.append(keys[np.searchsorted(ends, order[place], "right")] if hit else "")
    return found
