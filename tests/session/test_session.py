from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import keras_trainops as kt
from keras_trainops.session.session import Session, announce, run_on, withdraw
from keras_trainops.session.settings import Settings
from tests.helpers import assert_same
from tests.session.runs import Interrupt, Interrupted, X, Y, net, state


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_a_resumed_run_skips_warm_start(first: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def run(name: str, *more: Any) -> Any:
        start = kt.WarmStart({"head/bias": [5.0, 6.0]})
        session = kt.TrainingSession(name, save_steps=1, summary_steps=None, verbose=0)
        model = net()
        callbacks = [start, session] if first else [session, start]
        model.fit(X, Y, batch_size=4, verbose=0, shuffle=False, callbacks=[*callbacks, *more])
        return model

    uninterrupted = run("whole")
    with pytest.raises(Interrupted, match="before batch"):
        run("run", Interrupt(4))
    assert "restored 1 of" in capsys.readouterr().out
    assert_same(state(run("run")), state(uninterrupted))
    assert "WarmStart skipped: the session resumes from step" in capsys.readouterr().out
    assert "WarmStart skipped" in Path("run/session.log").read_text(encoding="utf-8")


def settings() -> Settings:
    return Settings(Path("run"), None, None, None, 5, None, 0)


def test_opens_the_directory_once_and_closes_it() -> None:
    session = Session(settings())
    assert not session.is_over
    session.close()  # nothing to close yet
    directory = session.open()
    assert session.open() is directory
    assert (session.step, session.is_running, session.is_over) == (0, False, False)
    session.close()
    assert session.is_over
    Session(settings()).open().close()


def test_begins_one_run() -> None:
    model, session = net(), Session(settings())
    params = {"epochs": 1, "steps": 10}
    run = session.begin(lambda: model, params)
    assert session.begin(lambda: model, params) is run
    assert session.is_running
    announce(model, lambda: run)
    assert run_on(model) is run
    withdraw(model)
    assert run_on(model) is None
    session.close()
    assert not session.is_running
