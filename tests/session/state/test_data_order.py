from __future__ import annotations

from typing import Any

import keras
import pytest

import keras_trainops as kt
from tests.helpers import two_layers
from tests.session.runs import X, Y, train
from tests.session.small_runs import SMALL_X, SMALL_Y, log


@pytest.mark.parametrize(
    ("make", "warning"),
    [
        (lambda: {"x": X, "y": Y, "shuffle": False}, None),
        (lambda: {"x": (pair for pair in [(X, Y)] * 99)}, "a generator must yield the same"),
    ],
    ids=["arrays", "generator"],
)
def test_warns_of_data_whose_order_may_differ(make: Any, warning: str | None) -> None:
    data = {"shuffle": False, "steps_per_epoch": 2, **make()}
    train("run", data=data, epochs=1, beside=[])
    assert ("may not see the same batches" in log("run")) == (warning is not None)
    assert (warning or "started in") in log("run")


@pytest.mark.backends("tensorflow")
def test_warns_of_a_dataset_shuffled_without_seed() -> None:
    import tensorflow as tf

    def run(name: str, seed: int | None) -> None:
        model = kt.with_train_ops(two_layers(1))
        model.compile("sgd", "mse")
        keras.src.backend.common.global_state.set_global_attribute("global_random_seed", None)
        tf.random.set_seed(None)
        data = tf.data.Dataset.from_tensor_slices((SMALL_X, SMALL_Y)).shuffle(40, seed=seed)
        session = kt.TrainingSession(name, summary_steps=None, verbose=0)
        model.fit(data.batch(4), verbose=0, shuffle=False, callbacks=[session])

    run("seeded", 1)
    assert "may not see the same batches" not in log("seeded")
    run("not", None)
    assert "may not see the same batches: the dataset is shuffled without a seed" in log("not")
