"""A run whose program, data or directory changes."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.session import store
from tests.helpers import assert_same, refused, two_layers
from tests.session.runs import X, Y
from tests.session.test_session import fit, log, steps

SMALL_X, SMALL_Y = X[:, :4], Y


def model(rate: Any = 0.01, kind: Any = kt.with_train_ops) -> Any:
    keras.backend.clear_session()
    made = kind(two_layers(1, name="small"))
    made.compile(keras.optimizers.Adam(rate), "mse")
    return made


def run(made: Any, *more: Any, epochs: int = 2, batch_size: int = 4, **options: Any) -> Any:
    defaults = {"save_seconds": None, "summary_steps": None, "verbose": 0}
    session = kt.TrainingSession("run", **{**defaults, **options})
    data = {"x": SMALL_X, "y": SMALL_Y, "shuffle": False, "batch_size": batch_size}
    made.fit(**data, epochs=epochs, verbose=0, callbacks=[session, *more])
    return made


class At(keras.callbacks.Callback):
    """Does something before some batch."""

    def __init__(self, batch: int, act: Any) -> None:
        super().__init__()
        self._batch, self._act = batch, act

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == self._batch:
            self._act()


def test_a_relative_directory_is_where_the_program_stood() -> None:
    Path("elsewhere").mkdir()
    start = Path.cwd()
    run(model(), At(4, lambda: os.chdir(start / "elsewhere")), save_steps=3, keep=99)
    os.chdir(start)
    assert not list(Path("elsewhere").iterdir())
    assert steps("run")[-1] == 20


def test_a_directory_in_the_home_and_none_of_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd() / "home"))
    fit("~/run", epochs=1)
    assert steps("home/run") == [10]
    with pytest.raises(ValueError, match=r"`logdir` must be a directory of this machine\. .*gs://"):
        kt.TrainingSession("gs://bucket/run")


@pytest.mark.parametrize("during", ["between", "while writing"])
def test_a_directory_that_is_deleted_meanwhile_is_told(
    monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    def vanish() -> None:
        Path("run").rename("gone")  # at once, so that nothing is written where it is removed
        shutil.rmtree("gone")

    def delete() -> None:
        while not steps("run"):
            time.sleep(0.01)
        if during == "between":
            vanish()
        else:  # the checksums of the next checkpoint find its files gone
            checksum = store._sha256

            def late(path: Path) -> str:
                if Path("run").exists():
                    vanish()
                return checksum(path)

            monkeypatch.setattr(store, "_sha256", late)

    message = r"the log directory '.*/run' was deleted, moved or replaced while the run trained"
    with (
        pytest.warns(UserWarning, match=rf"training goes on: {message} \(there is no checkpoint\)"),
        pytest.raises(OSError, match=rf"The final checkpoint, at step 10, could not .*{message}"),
    ):
        run(model(), At(6, delete), save_steps=2, epochs=1)
    assert not Path("run").exists()


def test_a_directory_that_another_run_took_is_left_to_it() -> None:
    def replace() -> None:
        Path("run").rename("moved")
        Path("run").mkdir()
        Path("run/session.lock").write_text("another's", encoding="utf-8")

    with pytest.raises(OSError, match=r"The final checkpoint.*deleted, moved or replaced"):
        run(model(), At(6, replace), epochs=1)
    assert not Path("run/checkpoints").exists()
    assert Path("run/session.lock").read_text(encoding="utf-8") == "another's"


@pytest.mark.parametrize("at", [5, 7])
def test_fewer_batches_than_the_epoch_had_seen_are_refused(at: int) -> None:
    run(model(), stop_at_step=at)
    before = {p: p.read_bytes() for p in Path("run/checkpoints").rglob("*") if p.is_file()}
    for _ in range(2):
        fewer = model()
        message = (
            rf"Cannot resume from '.*/step-000000000{at}': {at} batches of 10 of epoch 1 were "
            r"trained, and now an epoch has 5\. Give `fit` the data and the batch size it had.*"
            r"`WarmStart\('.*/state\.safetensors'\)`"
        )
        fewer.optimizer.build(fewer.trainable_variables)
        with refused(fewer, message):
            run(fewer, batch_size=8)
        assert {p: p.read_bytes() for p in before} == before
    # Where nothing is left to do it does not matter.
    run(model(), batch_size=8, stop_at_step=at)
    source = Path(f"run/checkpoints/step-000000000{at}/state.safetensors")
    other = kt.with_train_ops(two_layers(5, name="small"))
    assert len(kt.restore(other, str(source), verbose=0).restored) == 4
    assert int(run(model()).optimizer.iterations) == 20


def test_fewer_batches_that_nobody_counted_are_refused() -> None:
    def data(batches: int) -> Any:
        return ((SMALL_X[4 * i : 4 * i + 4], SMALL_Y[4 * i : 4 * i + 4]) for i in range(batches))

    def train(batches: int, **options: Any) -> None:
        session = kt.TrainingSession("run", summary_steps=None, verbose=0, **options)
        model().fit(data(batches), shuffle=False, verbose=0, callbacks=[session])

    train(9, stop_at_step=7)
    with pytest.raises(ValueError, match=r"fewer batches than the run that is resumed had seen"):
        train(5)
    assert steps("run") == [7]


def test_another_batch_size_is_said() -> None:
    run(model(), stop_at_step=3)
    run(model(), stop_at_step=4)
    said = "the data are others than in the run that is resumed: 8 samples a batch where there"
    assert said not in log("run")
    run(model(), batch_size=8)
    assert log("run").count(f"{said} were 4, 5 batches an epoch where there were 10") == 1


def test_another_learning_rate_is_said_with_the_one_that_is_used() -> None:
    def lower(epoch: int, rate: float) -> float:
        return rate / 2

    run(model(), keras.callbacks.LearningRateScheduler(lower), stop_at_step=3)
    run(model(), stop_at_step=5)  # a callback changed it, not the program
    assert "the optimizer was given" not in log("run")
    for stop in (7, 9):  # as long as it is another
        resumed = run(model(0.5), stop_at_step=stop)
        assert float(resumed.optimizer.learning_rate) == pytest.approx(0.005)
        said = (
            "the optimizer was given the learning rate 0.5, and 0.01 when the run began: the "
            "checkpoint's, 0.005, is used. To change it, set it in a callback"
        )
        assert said in log("run")
    assert log("run").count(said) == 2
    run(model(0.005), stop_at_step=11)
    assert log("run").count("the optimizer was given") == 2


def test_a_schedule_is_the_program_s() -> None:
    schedules = keras.optimizers.schedules
    run(model(schedules.ExponentialDecay(0.1, 10, 0.5)), stop_at_step=3)
    run(model(schedules.ExponentialDecay(0.2, 10, 0.5)), stop_at_step=5)
    assert "the optimizer was given" not in log("run")


def test_a_plain_model_s_epoch_starts_over_in_one_with_the_mixin_too() -> None:
    run(model(kind=lambda plain: plain), stop_at_step=4)
    resumed = run(model())
    said = "epoch 1 starts over, with weights that have seen 4 of its batches: the checkpoint is of"
    assert said in log("run")
    assert steps("run")[-1] == 24
    assert int(resumed.optimizer.iterations) == 24


@pytest.mark.parametrize("name", ["session.json", "data.json", "variables.json"])
def test_wrong_documents_fall_back_to_the_checkpoint_before(name: str) -> None:
    from tests.session.test_store import rewrite

    whole = run(model(), stop_at_step=14, keep=9)
    shutil.move("run", "whole")
    run(model(), stop_at_step=6)
    run(model(), stop_at_step=9)
    newest = Path("run/checkpoints/step-0000000009")
    rewrite(newest, name, "[]" if name == "session.json" else '{"position": 1}')
    with pytest.warns(UserWarning, match=rf"is damaged: {name}.*The one before it is used"):
        resumed = run(model(), stop_at_step=14)
    assert_same(resumed.get_weights(), whole.get_weights())
    assert f"is damaged: {name}" in log("run")
    np.testing.assert_equal(steps("run"), [6, 9, 14])
