"""Asynchronous exceptions during assignments, for example from signal handlers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.restoring.loading import assign as assigning
from tests.helpers import assert_same, run, two_layers, value, weights


def arrays() -> dict[str, np.ndarray]:
    return {v.path: value(v) for v in two_layers(5).weights}


class AlarmError(Exception):
    """The exception of a user's handler."""


def ring(number: int, frame: FrameType | None) -> None:
    raise AlarmError(signal.Signals(number).name)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt; it is ignored in jobs started with `&`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def alarms() -> Iterator[list[signal.Signals]]:
    """Install handlers that raise, and return their signals."""
    numbers = [signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1]
    before = [signal.signal(number, ring) for number in numbers]
    yield numbers
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def signals_at_each_assignment(
    monkeypatch: pytest.MonkeyPatch, numbers: list[signal.Signals]
) -> None:
    original = keras.Variable.assign

    def assign(self: keras.Variable, new: Any) -> Any:
        for number in numbers:
            signal.raise_signal(number)
        return original(self, new)

    monkeypatch.setattr(keras.Variable, "assign", assign)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("memory", ["once", "bounded"])
def test_an_interrupt_waits_for_all_assignments(
    monkeypatch: pytest.MonkeyPatch, memory: Any
) -> None:
    model, source = two_layers(), arrays()
    signals_at_each_assignment(monkeypatch, [signal.SIGINT])
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        kt.restore(model, source, memory=memory)
    assert_same(weights(model), list(source.values()))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_exceptions_of_all_handlers_are_raised_later(
    monkeypatch: pytest.MonkeyPatch, alarms: list[signal.Signals]
) -> None:
    model, source = two_layers(), arrays()
    heard = []

    def note(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        ring(number, frame)

    signal.signal(signal.SIGALRM, note)
    signals_at_each_assignment(monkeypatch, alarms)
    with pytest.raises(AlarmError, match="SIGUSR1") as error:
        kt.restore(model, source)
    assert heard == [signal.SIGALRM]  # once, although the signal came several times
    assert str(error.value.__context__) == "SIGALRM"
    assert str(error.value.__context__.__context__) == "SIGTERM"
    assert_same(weights(model), list(source.values()))
    handlers = [signal.getsignal(number) for number in alarms]
    assert handlers == [ring, note, ring]


def test_a_signal_waits_for_the_rollback(
    monkeypatch: pytest.MonkeyPatch, alarms: list[signal.Signals]
) -> None:
    model, source = two_layers(), arrays()
    before, last, original = weights(model), model.get_layer("head").bias, keras.Variable.assign
    failed = []

    def assign(self: keras.Variable, new: Any) -> Any:
        signal.raise_signal(alarms[0])
        if self is last and not failed:
            failed.append(self)
            raise MemoryError("no room")
        return original(self, new)

    monkeypatch.setattr(keras.Variable, "assign", assign)
    with pytest.raises(AlarmError, match="SIGTERM") as error:
        kt.restore(model, source)
    assert isinstance(error.value.__context__, MemoryError)
    assert_same(weights(model), before)


def test_handlers_set_meanwhile_are_kept(
    monkeypatch: pytest.MonkeyPatch, alarms: list[signal.Signals]
) -> None:
    model, source, heard = two_layers(), arrays(), []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    original = keras.Variable.assign

    def assign(self: keras.Variable, new: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGALRM)
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        assert heard == []
        return original(self, new)

    monkeypatch.setattr(keras.Variable, "assign", assign)
    assert len(kt.restore(model, source).restored) == 4
    assert heard == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_another_thread_leaves_handlers_alone(
    monkeypatch: pytest.MonkeyPatch, alarms: list[signal.Signals]
) -> None:
    """Python runs handlers only in the main thread; here another thread assigns."""
    model, source, original = two_layers(), arrays(), keras.Variable.assign

    def assign(self: keras.Variable, new: Any) -> Any:
        assert [signal.getsignal(number) for number in alarms] == [ring] * 3
        return original(self, new)

    monkeypatch.setattr(keras.Variable, "assign", assign)
    with ThreadPoolExecutor(1) as thread:
        assert len(thread.submit(kt.restore, model, source).result().restored) == 4
    assert_same(weights(model), list(source.values()))


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("at", [0, 3])
def test_an_interrupt_while_tensors_are_read_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    model, source, seen = two_layers(), arrays(), list[str]()
    before = weights(model)

    def adapter(tensor: np.ndarray) -> np.ndarray:
        seen.append("read")
        if len(seen) > at:
            signal.raise_signal(signal.SIGINT)
        return tensor

    with pytest.raises(KeyboardInterrupt):
        kt.restore(model, source, adapt={".*": adapter}, memory="once")
    assert len(seen) == at + 1
    assert_same(weights(model), before)
    assert len(kt.restore(model, source, memory="once").restored) == 4


@pytest.mark.parametrize("when", ["before", "after"])
def test_exceptions_during_an_assignment_are_counted(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Exceptions set by another thread cannot be delayed."""
    model, source, original = two_layers(), arrays(), keras.Variable.assign
    largest, before = model.get_layer("trunk").kernel, weights(model)

    def assign(self: keras.Variable, new: Any) -> Any:
        if when == "before" and self is largest:
            raise AlarmError("now")
        result = original(self, new)
        if self is largest:
            raise AlarmError("now")
        return result

    monkeypatch.setattr(keras.Variable, "assign", assign)
    monkeypatch.setattr(assigning, "UNDO_BYTES", 24)
    with pytest.raises(AlarmError, match="now") as error:
        kt.restore(model, source, memory="bounded")
    changed = [not np.array_equal(*pair) for pair in zip(weights(model), before, strict=True)]
    notes = getattr(error.value, "__notes__", [])
    if when == "before":
        assert (changed, notes) == ([False] * 4, [])
    else:
        assert changed == [True, False, False, False]
        assert len(notes) == 1
        assert "half-loaded: 1 variables keep their new values" in notes[0]


def test_exceptions_during_the_rollback_are_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, source, original = two_layers(), arrays(), keras.Variable.assign
    last, before, failures = model.get_layer("head").bias, weights(model), []

    def assign(self: keras.Variable, new: Any) -> Any:
        if self is last or len(failures) == 1:  # the second fails during the rollback
            failures.append(self)
            raise MemoryError("no room")
        return original(self, new)

    monkeypatch.setattr(keras.Variable, "assign", assign)
    with pytest.raises(MemoryError, match="no room") as error:
        kt.restore(model, source)
    assert len(failures) == 4
    assert_same(weights(model), before)
    assert (
        "half-loaded: 1 variables" in error.value.__notes__[0]
    )  # the state of the last one is unknown


INTERRUPTED_BY_ANOTHER_THREAD = """
import ctypes, threading
import keras, numpy as np
import keras_trainops as kt
class Stop(BaseException):
    pass
inputs = x = keras.Input((1024,))
for i in range(24):  # 4 MB each
    x = keras.layers.Dense(1024, use_bias=False, kernel_initializer="zeros", name=f"d{i}")(x)
model = keras.Model(inputs, x)
arrays = {f"d{i}/kernel": np.ones((1024, 1024), "f4") for i in range(24)}
main, done = threading.main_thread().ident, [0, 0]
for round in range(12):
    for variable in model.weights:
        variable.assign(np.zeros((1024, 1024), "f4"))
    reached, original = threading.Event(), type(model.weights[0]).assign
    def assign(self, new):
        if self is model.weights[round]:
            reached.set()
        return original(self, new)
    def stop():
        reached.wait()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main), ctypes.py_object(Stop))
    thread = threading.Thread(target=stop)
    type(model.weights[0]).assign = assign
    thread.start()
    error = None
    try:
        kt.restore(model, arrays, memory="bounded")
    except Stop as stopped:
        error = stopped
    try:
        thread.join()
        for _ in range(1000): pass
    except Stop:
        pass
    type(model.weights[0]).assign = original
    new = [bool(keras.ops.convert_to_numpy(v).any()) for v in model.weights]
    if error is not None and any(new) and not all(new):
        done[0] += 1
        assert "half-loaded" in error.__notes__[0], new
    done[1] += error is not None
assert done[1] > 0
print("as it should be", done)
"""


def test_a_half_loaded_model_is_always_noted() -> None:
    run(INTERRUPTED_BY_ANOTHER_THREAD)


IN_THE_BACKGROUND = """
import os, signal
import keras, numpy as np
import keras_trainops as kt
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")])
original = type(model.weights[0]).assign
def assign(self, new):
    os.kill(os.getpid(), signal.SIGINT)
    return original(self, new)
type(model.weights[0]).assign = assign
kt.restore(model, {"head/kernel": np.ones((3, 2)), "head/bias": np.ones(2)})
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
print("as it should be")
"""


def test_an_ignored_interrupt_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited by child processes
    try:
        run(IN_THE_BACKGROUND)
    finally:
        signal.signal(signal.SIGINT, before)
