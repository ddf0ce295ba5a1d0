from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, two_layers
from tests.session.runs import state
from tests.session.small_runs import SMALL_X, SMALL_Y, fit, log, steps


def test_stops_at_a_step_and_continues_from_there() -> None:
    whole = fit("whole", epochs=3)
    for stop in (7, 7, 10, 23):
        model = fit("run", epochs=3, stop_at_step=stop)
        assert int(model.optimizer.iterations) == stop
        assert f"stopped at step {stop}: stop_at_step={stop} is reached" in log("run")
    assert_same(state(fit("run", epochs=3)), state(whole))


def test_a_nan_loss_keeps_the_last_checkpoint() -> None:
    model = kt.with_train_ops(two_layers(1, name="small"))
    model.compile(keras.optimizers.Adam(0.01), "mse", check_numerics=True)
    bad = SMALL_Y.copy()
    bad[30] = np.nan
    session = kt.TrainingSession("run", save_steps=3, summary_steps=None, verbose=0)
    with pytest.raises(kt.NonFiniteLossError, match="at step 7"):
        model.fit(*(SMALL_X, bad), batch_size=4, shuffle=False, verbose=0, callbacks=[session])
    assert steps("run")[-1] <= 7
    assert "stopped because of NonFiniteLossError: The loss became NaN" in log("run")
    assert f"(the last is '{Path.cwd()}/run/checkpoints/step-" in log("run")
