from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import value
from tests.training.small_models import TRACED, X, Y, net

T = kt.transforms


class Norms(T.GradientTransform):
    """Keeps the joint norm of each update, as an oracle."""

    def __init__(self, count: int) -> None:
        self.count = count

    def build(self, variables: Any) -> None:
        self.norms = self.add_variable("norms", (self.count,))
        self.at = self.add_variable("at", dtype="int32")

    def __call__(self, gradients: Any, variables: Any) -> Any:
        squares = [keras.ops.sum(keras.ops.square(g)) for g in gradients]
        norm = keras.ops.sqrt(keras.ops.sum(keras.ops.stack(squares)))
        here = keras.ops.equal(keras.ops.arange(self.count), self.at)
        self.norms.assign(keras.ops.where(here, norm, self.norms.value))
        self.at.assign(self.at + 1)
        return gradients


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="default"),
        pytest.param({"run_eagerly": True}, id="eager"),
        pytest.param({"steps_per_execution": 3}, id="steps", marks=TRACED),
        pytest.param({"jit_compile": True}, id="xla", marks=TRACED),
        pytest.param({"updates": [kt.updates.LayerUpdates()]}, id="policy"),
    ],
)
@pytest.mark.parametrize("count", [None, 2], ids=["plain", "accumulation"])
def test_logs_the_mean_norm_of_an_epochs_updates(
    options: dict[str, Any], count: int | None
) -> None:
    updates = 8 // (count or 1)
    model, norms = net(), Norms(updates)
    chain = [T.Monitor({"h": "head"}, name="raw"), norms, T.ClipByGlobalNorm(0.5), T.Monitor()]
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=count)
    model.compile(optimizer, "mse", metrics=["mae"], gradient_transforms=chain, **options)
    history = model.fit(
        X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, validation_data=(X, Y)
    ).history
    assert set(history) == {
        *("loss", "mae", "val_loss", "val_mae"),
        *("raw", "raw/h", "gradient_norm"),
    }
    np.testing.assert_allclose(history["gradient_norm"], [0.5, 0.5], rtol=1e-5)
    expected = value(norms.norms).reshape(2, -1).mean(1)
    np.testing.assert_allclose(history["raw"], expected, rtol=1e-5)
    assert all(0 < h < r for h, r in zip(history["raw/h"], history["raw"], strict=True))
    evaluated = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert set(evaluated) == {"loss", "mae"}
    assert set(model.train_on_batch(X, Y, return_dict=True)) == set(history) - {
        "val_loss",
        "val_mae",
    }


def test_monitors_leave_the_weights_alone() -> None:
    results = []
    for chain in ([T.ClipByNorm(0.5)], [T.Monitor(histogram=True), T.ClipByNorm(0.5)]):
        model = net()
        model.compile(keras.optimizers.Adam(0.01), "mse", gradient_transforms=chain)
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-7)  # XLA fuses them in different ways


def test_refuses_two_monitors_of_one_name() -> None:
    with pytest.raises(ValueError, match=r"log under the same name: gradient_norm. Give each"):
        net().compile("sgd", "mse", gradient_transforms=[T.Monitor(), T.Monitor()])


def test_norms_are_not_among_the_models_metrics() -> None:
    model = net()
    model.compile("sgd", "mse", gradient_transforms=T.Monitor())
    assert "gradient_norm" not in [m.name for m in model.metrics]
    assert model.fit(X, Y, verbose=0).history["gradient_norm"][0] > 0
