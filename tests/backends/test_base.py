from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.backends import Backend, backend
from tests.helpers import assert_same, value, weights
from tests.training.optimizers.kinds import net

OTHER = Backend("other")


def test_the_running_backend_is_one_object() -> None:
    assert backend() is backend()
    assert backend().name == keras.backend.backend()
    backend().require_training()


def test_another_backend_refuses_to_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras_trainops.training.mixin.backend", lambda: OTHER)
    model = net()
    with pytest.raises(NotImplementedError, match=r"TensorFlow, JAX and PyTorch; this is 'other'"):
        model.compile("sgd", "mse")
    assert not model.compiled
    for refused in (
        lambda: OTHER.trace(lambda: None),
        lambda: OTHER.differentiate(lambda *_: (0, None), [], nested=False, several=False),
        lambda: OTHER.conditionally(True, print, print, [], changes=[]),
    ):
        with pytest.raises(NotImplementedError, match="Restoring works on every backend"):
            refused()


def test_another_backend_restores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras_trainops.restoring.loading.tensors.backend", lambda: OTHER)
    model = net()
    kernel = np.full((3, 2), 5.0)
    kt.restore(model, {"head/kernel": kernel}, include="head/kernel", verbose=0)
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), kernel)


def test_defaults_hold_without_replicas_and_tracing() -> None:
    one, two = keras.Variable(np.zeros(2)), keras.Variable(np.ones(2))
    gradients = [keras.ops.ones(2), None]
    optimizer = keras.optimizers.SGD(0.1)
    assert OTHER.mean_over_replicas(gradients) is gradients
    assert OTHER.any_over_replicas(gradients[0]) is gradients[0]
    assert OTHER.prepare_gradients(tuple(gradients), [], optimizer) == gradients
    assert OTHER.empty_tensor((2,), np.dtype("float32")) is None
    assert OTHER.overwritten_memory([one, two]) == []
    np.testing.assert_array_equal(OTHER.host_view(two), [1, 1])
    OTHER.assign_weights([one, two], [np.full(2, 3.0), np.full(2, 4.0)])
    np.testing.assert_array_equal([value(one), value(two)], [[3, 3], [4, 4]])


def test_defaults_leave_step_and_chain_alone() -> None:
    model = net()
    before = weights(model)
    assert OTHER.run_step(lambda *args: {"args": args}, model, "data") == {"args": (model, "data")}
    assert OTHER.train_function(print, model, None) is print
    assert OTHER.build_model(model, None, None) == ""
    gradients = [keras.ops.ones(2)]

    class Double:
        row_sparse = False

        def __call__(self, gradients: Any, variables: Any) -> Any:
            return [2 * gradient for gradient in gradients]

    (doubled,) = OTHER.reduce_and_transform(gradients, [None], Double())
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(doubled), [2, 2])
    assert_same(weights(model), before)
