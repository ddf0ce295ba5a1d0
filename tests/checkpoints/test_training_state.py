from __future__ import annotations

import pytest

import keras_trainops as kt
from keras_trainops.checkpoints.training_state import by_name
from tests.checkpoints.writers import WRITERS, plain_model

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    "name",
    [
        "global_step",
        "scope/global_step",
        "beta1_power_1",
        "conv/w/Adam",
        "conv/w/Adam_1",
        "conv/w/Momentum",
        "conv/w/ExponentialMovingAverage",
        "conv/w/adam_m",
        "seed_generator/seed_generator_state",
        "layer1.0.num_batches_tracked",
        "optimizer/state/0/exp_avg",
        "optimizer_state_dict/state/0/step",
        "opt_state/0/mu/w",
        "training/Adam/conv/w/m",
    ],
)
def test_recognises_training_state_by_name(name: str) -> None:
    weights = {"conv/w", "conv/b", "conv/w/scale", "Adam", "optimizer_head/w", "global_step_head"}
    names = weights | {name, "training/Adam/iter"}
    assert by_name(names) == {name, "training/Adam/iter"}


@pytest.mark.parametrize("form", ["TF1", "TF2", "weights.h5", "keras", "legacy h5"])
def test_recognises_training_state_of_each_format(form: str) -> None:
    source = plain_model(1)
    source.compile("adam", "mse")
    source.optimizer.build(source.trainable_variables)
    report = kt.restore(plain_model(2), WRITERS[form](source))
    assert len(report.slots) >= 2 * len(source.trainable_variables)
    assert report.unexpected == ()
