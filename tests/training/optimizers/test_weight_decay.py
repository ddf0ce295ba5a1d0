from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, assert_same_arithmetic, two_layers, value, weights
from tests.training.optimizers.kinds import X, Y, fit, net

T = kt.transforms
O = keras.optimizers  # noqa: E741


def decay_alone(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.sum(y_pred, axis=-1) * 0.0


def test_excludes_variables_in_the_inner_optimizer() -> None:
    found = []
    for transforms in (None, T.Scale(1.0)):
        model = kt.with_train_ops(two_layers())
        optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
        model.compile(optimizer, "mse", gradient_transforms=transforms)
        model.optimizer.exclude_from_weight_decay(var_names=["kernel"])
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
        found.append(weights(model))
    assert_same_arithmetic(*found)


@pytest.mark.parametrize("kind", ["plain", "loss scale", "multi", "transformed"])
def test_exclusions_survive_a_change_of_variables(kind: str) -> None:
    optimizer: Any = O.SGD(0.1, weight_decay=0.1)
    model = net()
    head, trunk = model.get_layer("head"), model.get_layer("trunk")
    optimizer.exclude_from_weight_decay(var_list=[trunk.kernel], var_names=["bias"])
    if kind == "multi":
        optimizer = O.MultiOptimizer(O.OptimizerMap(optimizer))
    if kind == "loss scale":
        optimizer = O.LossScaleOptimizer(optimizer, initial_scale=8.0)
    transforms = T.Scale(1.0) if kind == "transformed" else None
    model.compile(
        optimizer, decay_alone, variables_to_train=["head"], gradient_transforms=transforms
    )
    fit(model)
    model.compile(model.optimizer, decay_alone)
    before = {v.path: value(v) for v in model.weights}
    fit(model, 5)
    after = {v.path: value(v) for v in model.weights}
    for variable in (trunk.kernel, head.bias, trunk.bias):
        assert_same([after[variable.path]], [before[variable.path]])
    kernel = before[head.kernel.path]
    np.testing.assert_allclose(after[head.kernel.path], kernel * 0.99**15, rtol=1e-5)


def ends(model: Any) -> tuple[Any, Any]:
    return model.inputs, model.outputs


@pytest.mark.parametrize("kind", ["plain", "loss scale", "multi", "transformed", "a plain model"])
def test_exclusions_survive_saving(kind: str) -> None:
    optimizer: Any = O.SGD(0.1, weight_decay=0.1)
    model = two_layers() if kind == "a plain model" else kt.TrainOpsModel(*ends(two_layers()))
    kernel = model.get_layer("head").kernel
    optimizer.exclude_from_weight_decay(var_list=[kernel], var_names=["bias"])
    if kind == "multi":
        optimizer = O.MultiOptimizer(O.OptimizerMap(optimizer))
    if kind == "loss scale":
        optimizer = O.LossScaleOptimizer(optimizer, initial_scale=8.0)
    if kind in ("transformed", "a plain model"):
        optimizer = kt.TransformedOptimizer(optimizer, T.Scale(1.0))
    model.compile(optimizer, "mse")
    fit(model)
    for i in range(2):  # saved again without training, too
        model.save(f"{i}.keras")
        model = keras.saving.load_model(f"{i}.keras")
    model.compile(model.optimizer, decay_alone)
    before = {v.path: value(v) for v in model.weights}
    fit(model)
    for variable in model.weights:
        moves = variable is model.get_layer("trunk").kernel
        factor = 0.99**3 if moves else 1.0
        np.testing.assert_allclose(value(variable), before[variable.path] * factor, rtol=1e-6)


def test_warns_about_exclusions_that_files_lose() -> None:
    model, optimizer = kt.TrainOpsModel(*ends(two_layers())), O.SGD(0.1, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_list=[model.get_layer("head").kernel])
    model.compile(optimizer, "mse")
    with pytest.warns(UserWarning, match="because it is not built. The file does not store these"):
        model.save("unbuilt.keras")
