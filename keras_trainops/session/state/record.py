"""The record of a run: all JSON files of a checkpoint are written and read here."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import keras

from keras_trainops.backends import backend
from keras_trainops.processes import Processes
from keras_trainops.session.state import randomness
from keras_trainops.session.state.packing import is_attribute, references

DOCUMENTS = ("session", "data", "variables")
_RANDOM = ("fit", "made", "used", "now")
_MAX_COUNT = 2**63
_WHAT = "to save the states of random generators"


@dataclass(frozen=True)
class Position:
    """The position of a run in its data.

    Attributes:
        epoch: The current epoch, or the next one between two epochs.
        batch: Number of batches of it that were trained.
        goes_on: If True, the next batch comes from the current pass over the data.
        passes: Number of passes that drew an order before that pass.
        taken: Number of batches that were taken from that pass.
    """

    epoch: int
    batch: int
    goes_on: bool
    passes: int
    taken: int


@dataclass(frozen=True)
class DataState:
    """The saved state of the data.

    Attributes:
        position: The position of the run.
        random: The states of random generators at four moments, as `randomness.to_document` makes
            them.
        batch_size: Number of samples in a batch, of all processes; None if Keras does not know it.
        others: The states of random generators of the other processes, from process 1 on, if they
            differ from those of process 0.
    """

    position: Position
    random: Mapping[str, Any]
    batch_size: int | None
    others: tuple[Mapping[str, Any], ...] = ()

    def of_process(self, processes: Processes) -> DataState:
        """Return the state with which this process resumes the data."""
        if not self.others or processes.is_first:
            return self
        same = len(self.others) == processes.count - 1
        return replace(self, random=self.others[processes.index - 1] if same else self.random)


@dataclass(frozen=True)
class Record:
    """The state of a run, apart from its arrays.

    Attributes:
        step: Number of batches that were trained in all.
        epoch: The current epoch, or the next one between two epochs.
        batch: Number of batches of that epoch that were trained.
        ended: The reason why the run does not continue when it is started again; empty if it does.
        batches: Number of batches per epoch, None if unknown.
        learning_rates: The learning rate before the first step, of each part of the optimizer.
        callbacks: The state of other callbacks.
        variables: The keys of the variables among the arrays, in the model's order.
        data: The state of the data, None if the session cannot follow them.
        processes: Number of processes that trained.
    """

    step: int
    epoch: int
    batch: int
    ended: str
    batches: int | None
    learning_rates: tuple[float, ...]
    callbacks: Mapping[str, Any]
    variables: tuple[str, ...]
    data: DataState | None
    processes: int = 1

    def documents(self) -> dict[str, Any]:
        """Return the contents of the JSON files, by name without suffix."""
        session = {
            **{name: getattr(self, name) for name in ("step", "epoch", "batch", "ended")},
            "batches": self.batches,
            "processes": self.processes,
            "learning_rates": list(self.learning_rates),
            "keras": keras.__version__,
            "backend": backend().name,
            "saved": time.strftime("%Y-%m-%d %H:%M:%S"),
            "callbacks": self.callbacks,
        }
        data: dict[str, Any] = {"position": None, "random": None}
        if self.data is not None:
            data = {
                "position": asdict(self.data.position),
                "random": dict(self.data.random),
                "batch_size": self.data.batch_size,
                **({"others": list(self.data.others)} if self.data.others else {}),
            }
        return {"session": session, "data": data, "variables": list(self.variables)}


def with_others(data: DataState, processes: Processes) -> DataState:
    """Return the state of the data with those of the random generators of all processes.

    They are left out if they are the same, as with the same seed and the same draws.
    """
    if not processes.several:
        return data
    everyone = processes.gather(_digests(data.random), _WHAT)
    # A library that only some have imported draws nothing for the data.
    common = set.intersection(*(set(digests) for digests in everyone))
    if all(digests[name] == everyone[0][name] for digests in everyone for name in common):
        return data
    return replace(data, others=tuple(processes.gather(dict(data.random), _WHAT)[1:]))


def _digests(random: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of the state of each generator at each moment."""
    return {
        f"{moment}/{library}": hashlib.sha256(json.dumps(state).encode()).hexdigest()
        for moment, states in random.items()
        for library, state in states.items()
    }


def parse(texts: Mapping[str, bytes], arrays: Mapping[str, Any]) -> Record:
    """Read the JSON files of a checkpoint.

    Args:
        texts: Their contents, by name without suffix.
        arrays: The checkpoint's arrays, by key.

    Returns:
        The record.

    Raises:
        ValueError: If a file is not one that a session writes; the message names file and fault.
    """
    session = _Fields("session.json", _loaded("session", texts["session"]))
    step, epoch, batch = (session.count(name) for name in ("step", "epoch", "batch"))
    callbacks = _checked_callbacks(session.value("callbacks"), arrays)
    variables = _checked_variables(_loaded("variables", texts["variables"]), arrays)
    unlisted = arrays.keys() - set(variables) - set(references(callbacks))
    if unlisted:
        raise ValueError(f"variables.json omits {min(unlisted)!r}")
    data = _parsed_data(_loaded("data", texts["data"]))
    if data is not None and (data.position.epoch, data.position.batch) != (epoch, batch):
        raise ValueError("data.json and session.json disagree on the epoch or batch")
    return Record(
        step,
        epoch,
        batch,
        session.text("ended"),
        session.count("batches", optional=True),
        session.numbers("learning_rates"),
        callbacks,
        variables,
        data,
        session.count("processes", optional=True) or 1,
    )


def _loaded(name: str, text: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("an object has a key twice")
        return found

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError(f"{name}.json is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{name}.json: {error}") from error


class _Fields:
    """The fields of a JSON object, each checked as it is read.

    Args:
        source: The name of the file or of the part of it, for error messages.
        document: The parsed JSON.

    Raises:
        ValueError: If `document` is not an object; the methods raise it for a missing or wrong
            field.
    """

    def __init__(self, source: str, document: Any) -> None:
        if not isinstance(document, dict):
            raise ValueError(f"{source} is not a JSON object")
        self._source, self._document = source, document

    def value(self, name: str, *, optional: bool = False) -> Any:
        """Return a field, or None if it is missing and `optional`."""
        if name not in self._document and not optional:
            raise ValueError(f"{self._source} has no {name!r}")
        return self._document.get(name)

    def _error(self, name: str, expected: str) -> ValueError:
        value = repr(self._document[name])
        shown = value if len(value) <= 50 else f"{value[:50]}…"
        return ValueError(f"{self._source}: {name!r} must be {expected}. Received: {shown}")

    def count(self, name: str, *, optional: bool = False) -> Any:
        """Return a non-negative integer, or None if it is missing and `optional`."""
        value = self.value(name, optional=optional)
        if value is None and optional:
            return None
        if type(value) is not int or not 0 <= value < _MAX_COUNT:
            raise self._error(name, "a whole number")
        return value

    def flag(self, name: str) -> bool:
        value = self.value(name)
        if not isinstance(value, bool):
            raise self._error(name, "true or false")
        return value

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str):
            raise self._error(name, "a string")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a list of numbers, empty if it is missing: older versions did not write it."""
        value = self.value(name, optional=True)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(type(n) in (int, float) for n in value):
            raise self._error(name, "a list of numbers")
        return tuple(float(n) for n in value)


def _parsed_data(document: Any) -> DataState | None:
    fields = _Fields("data.json", document)
    if fields.value("position") is None:
        return None
    at = _Fields("data.json, position", fields.value("position"))
    epoch, batch, passes, taken = (at.count(n) for n in ("epoch", "batch", "passes", "taken"))
    random = _checked_random(fields.value("random"))
    others = fields.value("others", optional=True) or []
    if not isinstance(others, list):
        raise ValueError("data.json: 'others' must be a list")
    return DataState(
        Position(epoch, batch, at.flag("goes_on"), passes, taken),
        random,
        fields.count("batch_size", optional=True),
        tuple(map(_checked_random, others)),
    )


def _checked_random(document: Any) -> Mapping[str, Any]:
    states = _Fields("data.json, random", document)
    random = {name: states.value(name) for name in _RANDOM}
    for name, state in random.items():
        try:
            randomness.check(state)
        except Exception as error:  # each generator raises its own kinds
            raise ValueError(
                f"data.json: {name!r} is not a state of random generators ({error})"
            ) from error
    return random


def _checked_variables(keys: Any, arrays: Mapping[str, Any]) -> tuple[str, ...]:
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("variables.json is not a list of keys")
    if len(set(keys)) < len(keys) or not set(keys) <= arrays.keys():
        raise ValueError("variables.json lists a key twice, or one without an array")
    return tuple(keys)


def _checked_callbacks(document: Any, arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check that the state of callbacks names only plain attributes and arrays that exist."""
    states = _Fields("session.json, callbacks", document)
    for name in document:
        state = states.value(name)
        if not isinstance(state, dict) or not all(map(is_attribute, state)):
            raise ValueError(f"session.json: {name!r} is not the state of a callback")
    missing = set(references(document)) - arrays.keys()
    if missing:
        raise ValueError(f"session.json names the array {min(missing)!r}, which does not exist")
    checked: Mapping[str, Any] = document
    return checked
