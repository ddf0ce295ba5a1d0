"""Where a run stood: the JSON files of a checkpoint, written and read in this one place."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import keras

from keras_trainops.backends import backend
from keras_trainops.session import randomness

DOCUMENTS = ("session", "data", "variables")
_RANDOM = ("fit", "made", "used", "now")
_DEPTH = 200  # of lists and mappings in the state of callbacks
_LARGE = 2**63
_ARRAYS = "callbacks/"  # what the keys of callbacks' arrays begin with


@dataclass(frozen=True)
class Position:
    """Where a run stands in its data.

    Attributes:
        epoch: The epoch that goes on, or the one that comes next.
        batch: How many batches of it were trained on.
        goes_on: Whether the next batch comes from the pass over the data that there is.
        passes: How many passes drew an order before that one.
        taken: How many batches were taken from it.
    """

    epoch: int
    batch: int
    goes_on: bool
    passes: int
    taken: int


@dataclass(frozen=True)
class DataState:
    """What is saved of the data.

    Attributes:
        position: Where the run stands in them.
        random: The states of random generators at four moments, as documents.
        batch_size: The size of a batch, None where Keras does not know it.
    """

    position: Position
    random: Mapping[str, Any]
    batch_size: int | None


@dataclass(frozen=True)
class Record:
    """Where a run stands.

    Attributes:
        step: The batches it trained on, in all.
        epoch: The epoch that goes on, or the one that comes next.
        batch: How many batches of that epoch it trained on.
        ended: Why it does not go on when it is run again; empty where it does.
        batches: How many batches an epoch has, None where that is not known.
        learning_rates: What the optimizer, or each part of it, began with, before the first step.
        callbacks: The state of other callbacks.
        variables: The keys of the variables among the arrays, in the model's order.
        data: What is saved of the data, None where they cannot be followed.
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

    def documents(self) -> dict[str, Any]:
        """What the JSON files hold."""
        session = {
            **{name: getattr(self, name) for name in ("step", "epoch", "batch", "ended")},
            "batches": self.batches,
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
            }
        return {"session": session, "data": data, "variables": list(self.variables)}


def parse(texts: Mapping[str, bytes], arrays: Mapping[str, Any]) -> Record:
    """Reads the JSON files of a checkpoint.

    Args:
        texts: Their contents, by name without the ending.
        arrays: The checkpoint's arrays, by key.

    Raises:
        ValueError: If one does not hold what a session writes; the message says which, and what.
    """
    session = _Fields("session.json", _loaded("session", texts["session"]))
    step, epoch, batch = (session.whole(name) for name in ("step", "epoch", "batch"))
    callbacks = _checked_callbacks(session.value("callbacks"), arrays)
    variables = _loaded("variables", texts["variables"])
    if not isinstance(variables, list) or not all(isinstance(key, str) for key in variables):
        raise ValueError("variables.json is no list of keys")
    if len(set(variables)) < len(variables) or not set(variables) <= arrays.keys():
        raise ValueError("variables.json does not list keys of the arrays that there are")
    left = arrays.keys() - set(variables) - set(_references(callbacks))
    if left:
        raise ValueError(f"variables.json leaves out {min(left)!r}")
    data = _parsed_data(_loaded("data", texts["data"]))
    if data is not None and (data.position.epoch, data.position.batch) != (epoch, batch):
        raise ValueError("data.json and session.json are of different moments")
    return Record(
        step,
        epoch,
        batch,
        session.text("ended"),
        session.whole("batches", optional=True),
        session.numbers("learning_rates"),
        callbacks,
        tuple(variables),
        data,
    )


def _loaded(name: str, text: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands there twice")
        return found

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError(f"{name}.json is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{name}.json: {error}") from error


class _Fields:
    """The fields of a JSON object, each checked as it is read."""

    def __init__(self, where: str, document: Any) -> None:
        if not isinstance(document, dict):
            raise ValueError(f"{where} is no JSON object")
        self._where, self._document = where, document

    def value(self, name: str, *, optional: bool = False) -> Any:
        if name not in self._document and not optional:
            raise ValueError(f"{self._where} has no {name!r}")
        return self._document.get(name)

    def _refuse(self, name: str, must: str) -> ValueError:
        value = repr(self._document[name])
        shown = value if len(value) <= 50 else f"{value[:50]}…"
        return ValueError(f"{self._where}: {name!r} must be {must}. Received: {shown}")

    def whole(self, name: str, *, optional: bool = False) -> Any:
        value = self.value(name, optional=optional)
        if value is None and optional:
            return None
        if type(value) is not int or not 0 <= value < _LARGE:
            raise self._refuse(name, "a whole number")
        return value

    def flag(self, name: str) -> bool:
        value = self.value(name)
        if not isinstance(value, bool):
            raise self._refuse(name, "true or false")
        return value

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str):
            raise self._refuse(name, "a string")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """None where there are none: earlier versions did not write them."""
        value = self.value(name, optional=True)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(type(n) in (int, float) for n in value):
            raise self._refuse(name, "a list of numbers")
        return tuple(float(n) for n in value)


def _parsed_data(document: Any) -> DataState | None:
    fields = _Fields("data.json", document)
    if fields.value("position") is None:
        return None
    at = _Fields("data.json, position", fields.value("position"))
    epoch, batch, passes, taken = (at.whole(n) for n in ("epoch", "batch", "passes", "taken"))
    states = _Fields("data.json, random", fields.value("random"))
    random = {name: states.value(name) for name in _RANDOM}
    for name, state in random.items():
        try:
            randomness.check(state)
        except Exception as error:  # whatever the generators make of it
            raise ValueError(
                f"data.json: {name!r} is no state of random generators ({error})"
            ) from error
    size = fields.whole("batch_size", optional=True)
    return DataState(Position(epoch, batch, at.flag("goes_on"), passes, taken), random, size)


def _checked_callbacks(document: Any, arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state of callbacks: attributes of each that a callback may have, and arrays there are."""
    states = _Fields("session.json, callbacks", document)
    for name in document:
        state = states.value(name)
        if not isinstance(state, dict) or not all(map(_is_attribute, state)):
            raise ValueError(f"session.json: {name!r} is no state of a callback")
    missing = set(_references(document)) - arrays.keys()
    if missing:
        raise ValueError(f"session.json names the array {min(missing)!r}, which there is not")
    checked: Mapping[str, Any] = document
    return checked


def _is_attribute(name: str) -> bool:
    return (
        name.isidentifier()
        and not name.startswith("_")
        and not hasattr(keras.callbacks.Callback, name)
    )


def _references(value: Any, depth: int = 0) -> Iterator[str]:
    """The keys of the arrays that the state of callbacks refers to."""
    if depth > _DEPTH:
        raise ValueError("session.json is nested too deeply")
    if isinstance(value, dict):
        key = value.get("array")
        if set(value) == {"array"} and isinstance(key, str) and key.startswith(_ARRAYS):
            yield key
        for one in value.values():
            yield from _references(one, depth + 1)
    elif isinstance(value, list):
        for one in value:
            yield from _references(one, depth + 1)
