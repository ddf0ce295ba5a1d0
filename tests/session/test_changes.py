from __future__ import annotations

from pathlib import Path

import keras
import pytest

import keras_trainops as kt
from tests.helpers import refused, two_layers
from tests.session.small_runs import log, model, run


@pytest.mark.parametrize("at", [5, 7])
def test_refuses_an_epoch_with_too_few_batches(at: int) -> None:
    run(model(), stop_at_step=at)
    before = {p: p.read_bytes() for p in Path("run/checkpoints").rglob("*") if p.is_file()}
    for _ in range(2):
        fewer = model()
        message = (
            rf"Cannot resume from '.*/step-000000000{at}': {at} batches of 10 of epoch 1 were "
            r"trained, but an epoch now has 5\. Call `fit` with the original data and batch size.*"
            r"`WarmStart\('.*/state\.safetensors'\)`"
        )
        fewer.optimizer.build(fewer.trainable_variables)
        with refused(fewer, message):
            run(fewer, batch_size=8)
        assert {p: p.read_bytes() for p in before} == before
    # It does not matter if nothing is left to train.
    run(model(), batch_size=8, stop_at_step=at)
    source = Path(f"run/checkpoints/step-000000000{at}/state.safetensors")
    other = kt.with_train_ops(two_layers(5, name="small"))
    assert len(kt.restore(other, str(source), verbose=0).restored) == 4
    assert int(run(model()).optimizer.iterations) == 20


def test_logs_another_batch_size() -> None:
    run(model(), stop_at_step=3)
    run(model(), stop_at_step=4)
    said = "the data differ from the resumed run's: 8 samples per batch instead of"
    assert said not in log("run")
    run(model(), batch_size=8)
    assert log("run").count(f"{said} 4, 5 batches per epoch instead of 10") == 1


def test_logs_an_overridden_learning_rate() -> None:
    def lower(epoch: int, rate: float) -> float:
        return rate / 2

    run(model(), keras.callbacks.LearningRateScheduler(lower), stop_at_step=3)
    run(model(), stop_at_step=5)  # a callback changed it, not the program
    assert "the optimizer was compiled" not in log("run")
    for stop in (7, 9):  # each time
        resumed = run(model(0.5), stop_at_step=stop)
        assert float(resumed.optimizer.learning_rate) == pytest.approx(0.005)
        said = (
            "the optimizer was compiled with learning rate 0.5, and with 0.01 when the run began: "
            "the checkpoint's, 0.005, is used. To change it, set it in a callback"
        )
        assert said in log("run")
    assert log("run").count(said) == 2
    run(model(0.005), stop_at_step=11)
    assert log("run").count("the optimizer was compiled") == 2


def test_accepts_another_learning_rate_schedule() -> None:
    schedules = keras.optimizers.schedules
    run(model(schedules.ExponentialDecay(0.1, 10, 0.5)), stop_at_step=3)
    run(model(schedules.ExponentialDecay(0.2, 10, 0.5)), stop_at_step=5)
    assert "the optimizer was compiled" not in log("run")
