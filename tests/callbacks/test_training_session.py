from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import keras_trainops as kt
from tests.session.runs import X, Y, net
from tests.session.small_runs import SMALL_X, SMALL_Y, At, fit, model, run, steps


def test_refuses_two_sessions() -> None:
    sessions = [kt.TrainingSession("a"), kt.TrainingSession("b")]
    with pytest.raises(ValueError, match="only one of these: TrainingSession and TrainingSession"):
        net().fit(X, Y, callbacks=sessions, verbose=0)
    assert not Path("a").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_seconds": 0}, r"`save_seconds` must be > 0, or None\. Received: save_seconds=0"),
        ({"save_seconds": True}, r"`save_seconds` must be > 0, or None\. Received: save_seconds=T"),
        (
            {"save_seconds": "9"},
            r"`save_seconds` must be > 0, or None\. Received: save_seconds='9'",
        ),
        ({"save_seconds": float("nan")}, r"`save_seconds` must be > 0, or None"),
        ({"save_steps": True}, r"`save_steps` must be an integer >= 1, or None"),
        ({"summary_steps": True}, r"`summary_steps` must be an integer >= 1, or None"),
        ({"keep": True}, r"`keep` must be an integer >= 1\. Received: keep=True"),
        ({"keep": "5"}, r"`keep` must be an integer >= 1\. Received: keep='5'"),
        ({"verbose": "yes"}, r"`verbose` must be 0 or 1\. Received: verbose='yes'"),
        ({"save_steps": 0}, r"`save_steps` must be an integer >= 1, or None\. Received: save_st"),
        ({"summary_steps": 1.5}, r"`summary_steps` must be an integer >= 1, or None"),
        ({"keep": None}, r"`keep` must be an integer >= 1\. Received: keep=None"),
        ({"stop_at_step": True}, r"`stop_at_step` must be an integer >= 1, or None"),
    ],
)
def test_rejects_invalid_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kt.TrainingSession("run", **options)


def test_resolves_a_relative_directory_at_once() -> None:
    Path("elsewhere").mkdir()
    start = Path.cwd()
    run(model(), At(4, lambda: os.chdir(start / "elsewhere")), save_steps=3, keep=99)
    os.chdir(start)
    assert not list(Path("elsewhere").iterdir())
    assert steps("run")[-1] == 20


def test_expands_the_home_directory_and_rejects_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd() / "home"))
    fit("~/run", epochs=1)
    assert steps("home/run") == [10]
    with pytest.raises(ValueError, match=r"`logdir` must be a directory on this machine\. .*gs://"):
        kt.TrainingSession("gs://bucket/run")


def test_evaluate_outside_fit_leaves_the_session_alone() -> None:
    session = kt.TrainingSession("run", summary_steps=None, verbose=0)
    trained = model()
    evaluate = {"batch_size": 4, "verbose": 0, "callbacks": [session]}
    trained.evaluate(SMALL_X, SMALL_Y, **evaluate)
    assert not Path("run").exists()
    trained.fit(SMALL_X, SMALL_Y, batch_size=4, verbose=0, callbacks=[session])
    trained.evaluate(SMALL_X, SMALL_Y, **evaluate)
    assert session.step == 10
