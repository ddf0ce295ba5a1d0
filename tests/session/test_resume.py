"""Interrupted and run again, a run ends bit for bit as the uninterrupted one."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from helpers import assert_same
from runs import BATCHES, EPOCHS, Interrupt, Interrupted, InterruptEpoch, X, Y, net, state, train

import keras_trainops as kt

TRACED = pytest.mark.backends("tensorflow", "jax")  # PyTorch has no such option in Keras


def assert_same_run(resumed: Any, whole: Any) -> None:
    assert_same(state(resumed), state(whole))
    assert resumed.history.history == whole.history.history
    assert resumed.history.epoch == whole.history.epoch == list(range(EPOCHS))


@pytest.mark.parametrize("at", [3, 10, 25])
def test_within_an_epoch_and_at_its_beginning(at: int) -> None:
    whole = train("whole")
    with pytest.raises(Interrupted):
        train("run", Interrupt(at))
    assert_same_run(train("run"), whole)
