from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops import keras_private
from keras_trainops.backends import backend
from tests.helpers import value
from tests.processes.launch import free_ports

pytestmark = pytest.mark.backends("jax")


def variables(*values: float) -> list[Any]:
    return [keras.Variable(np.full(2, each), name=f"v{i}") for i, each in enumerate(values)]


def test_unshared_variables_have_values_of_their_own() -> None:
    first, second, third = variables(1.0, 2.0, 3.0)
    second.assign(first.value)
    assert second.value is first.value
    kept = first.value, third.value
    backend().unshare_values([first, second, third])
    assert second.value is not first.value
    assert (first.value, third.value) == (pytest.approx(kept[0]), pytest.approx(kept[1]))
    np.testing.assert_array_equal(value(second), [1, 1])


def test_conditions_select_the_values_that_one_function_assigns() -> None:
    import jax

    count, other = variables(0.0, 5.0)

    def step(flag: Any, values: Any) -> Any:
        with keras.StatelessScope(list(zip([count, other], values, strict=True))) as scope:
            backend().conditionally(
                flag,
                lambda by: count.assign(count + by),
                lambda by: other.assign(other - by),
                [2.0],
                changes=[count, other],
            )
        return [scope.get_current_value(v)[0] for v in (count, other)]

    values = [count.value, other.value]
    assert [float(v) for v in jax.jit(step)(True, values)] == [2, 5]
    assert [float(v) for v in jax.jit(step)(False, values)] == [0, 3]


def test_differentiates_within_a_stateless_scope() -> None:
    weight, factor = variables(1.0, 0.0)

    def squared(values: Any, tensors: Any) -> Any:
        with keras_private.ValueScope(values):
            loss = keras.ops.sum(factor * weight * weight * tensors[0])
        return loss, tensors[0]

    with keras.StatelessScope([(factor, factor.value + 3)]):
        (by_weight, by_tensor), rest = backend().differentiate(
            squared, [weight, np.float32([2, 2])], nested=False, several=False
        )
    np.testing.assert_allclose(by_weight, [12, 12])
    np.testing.assert_allclose(by_tensor, [3, 3])
    np.testing.assert_allclose(rest, [2, 2])


def test_tracing_assigns_nothing() -> None:
    (count,) = variables(0.0)
    seen = []

    def function() -> None:
        with keras.StatelessScope():
            count.assign(count + 1)
            seen.append(count.value.shape)

    backend().trace(function)
    assert seen == [(2,)]
    np.testing.assert_array_equal(value(count), [0, 0])


def test_the_coordination_service_keeps_what_processes_send(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from jax._src import distributed
    from jax._src.lib import _jax

    from keras_trainops.backends import jax_processes

    assert jax_processes._service() is None  # without `jax.distributed.initialize`
    (port,) = free_ports(1)
    service = _jax.get_distributed_runtime_service(f"[::]:{port}", 1)
    client = _jax.get_distributed_runtime_client(f"127.0.0.1:{port}", 0, init_timeout=60)
    client.connect()
    try:
        monkeypatch.setattr(distributed.global_state, "client", client)
        for number in range(3):
            frame = np.full(4, number, "uint8")
            np.testing.assert_array_equal(jax_processes.gather(frame), frame[None])
    finally:
        client.shutdown()
        service.shutdown()


def test_keras_does_not_look_through_the_state_after_every_step() -> None:
    kinds: dict[bool, set[str]] = {}

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            parts = self.model._jax_state.values()
            kinds.setdefault(hasattr(self.model, "train_ops"), set()).update(
                type(part).__name__ for part in parts
            )

    for extended in (False, True):
        inputs = keras.Input((2,))
        model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
        model = kt.with_train_ops(model) if extended else model
        model.compile("sgd", "mse")
        model.fit(np.ones((4, 2)), np.ones((4, 1)), batch_size=1, verbose=0, callbacks=[Look()])
    assert kinds == {False: {"TrackedList"}, True: {"_Untracked"}}
