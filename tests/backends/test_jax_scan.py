"""Several steps of JAX in one call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.backends import jax_scan
from tests.helpers import value

pytestmark = pytest.mark.backends("jax")
RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=(88, n)).astype("float32") for n in (6, 2))


class Counting(kt.TrainOpsModel):
    """Counts how often its step is traced."""

    traces = 0

    def train_step(self, *args: Any) -> Any:
        self.traces += 1
        return super().train_step(*args)


def dense(count: int, **options: Any) -> Any:
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(5, activation="relu")(x))
    outputs = keras.layers.Dense(2)(keras.layers.Dropout(0.5)(x))
    model = Counting(inputs, outputs)
    options = {"gradient_transforms": kt.transforms.ClipByGlobalNorm(1.0), **options}
    model.compile("adam", "mse", metrics=["mae"], steps_per_execution=count, **options)
    return model


def refuse(*args: Any) -> Any:
    raise AssertionError("Keras's loop was called")


def fitted(model: Any, **options: Any) -> tuple[Any, list[np.ndarray]]:
    history = model.fit(X, Y, batch_size=8, epochs=2, verbose=0, **options).history
    return history, [value(v) for v in [*model.weights, *model.optimizer.variables]]


def test_epochs_are_those_of_single_steps() -> None:
    # 11 batches of 8: 2 calls of 4 steps, and 3 single steps
    history, values = fitted(model := dense(4), shuffle=False)
    expected, expected_values = fitted(dense(1), shuffle=False)
    assert model.traces == 1  # for the scan, and for the rest
    for name in expected:
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-6)
    for ours, theirs in zip(values, expected_values, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def state_of(model: Any, x: np.ndarray = X[:8]) -> Any:
    model.fit(x, Y[:8], batch_size=8, verbose=0)  # builds it
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    return tuple([variable.value for variable in group] for group in groups)


def batches(*counts: int) -> Iterator[Any]:
    return iter([(X[:count], Y[:count], None) for count in counts])


def test_full_calls_take_just_their_batches_from_the_iterator() -> None:
    run = jax_scan.in_one_call(refuse, model := dense(2))
    state, data = state_of(model), batches(8, 8, 8)
    logs, _ = run(state, data)
    assert set(logs) == {"loss", "mae"}
    assert np.shape(logs["loss"]) == ()
    assert len(list(data)) == 1


def test_an_iterator_without_batches_ends_the_epoch() -> None:
    run = jax_scan.in_one_call(refuse, model := dense(2))
    with pytest.raises(StopIteration):
        run(state_of(model), batches())


@pytest.mark.parametrize("counts", [(8, 7), (8,)], ids=["last is smaller", "last is missing"])
def test_other_batches_go_to_kerass_loop(counts: tuple[int, ...]) -> None:
    called: list[list[int]] = []

    def loop(state: Any, iterator: Iterator[Any]) -> Any:
        called.append([len(x) for x, *_ in iterator])
        return {}, state

    run = jax_scan.in_one_call(loop, model := dense(2))
    run(state_of(model), batches(*counts))
    assert called == [list(counts)]


def test_numbers_in_batches_go_to_kerass_loop() -> None:
    run = jax_scan.in_one_call(refuse, model := dense(2))
    batch = X[:8], Y[:8], 0.5
    with pytest.raises(AssertionError, match="loop"):
        run(state_of(model), iter([batch, batch]))


def test_large_batches_are_read_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_scan, "_MOST", 0)
    data = batches(8, 8)

    def loop(state: Any, iterator: Iterator[Any]) -> Any:
        next(iterator)
        assert len(list(data)) == 1
        return {}, state

    jax_scan.in_one_call(loop, model := dense(2))(state_of(model), data)


def test_large_batches_go_to_kerass_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_scan, "_MOST", 2 * 8 * 8 * 4)
    run = jax_scan.in_one_call(refuse, model := dense(2))
    state = state_of(model)
    with pytest.raises(AssertionError, match="loop"):
        run(state, batches(9, 9))
    run(state, batches(8, 8))


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"jit_compile": False}])
def test_steps_that_are_not_compiled_stay_with_keras(options: dict[str, Any]) -> None:
    assert jax_scan.in_one_call(refuse, dense(2, **options)) is refuse


def test_single_steps_and_divided_batches_stay_with_keras() -> None:
    assert jax_scan.in_one_call(refuse, dense(1)) is refuse
    with keras.distribution.DataParallel(auto_shard_dataset=False).scope():
        assert jax_scan.in_one_call(refuse, dense(2)) is refuse


class Conv(Counting):
    """A convolution inside of a jitted function of the user's."""

    def call(self, x: Any) -> Any:
        import jax

        return jax.jit(super().call)(x)


def test_convolutions_stay_out_of_a_scan_on_a_cpu() -> None:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 1))
    outputs = keras.layers.Flatten()(keras.layers.Conv1D(2, 3)(inputs))
    model = Conv(inputs, keras.layers.Dense(2)(outputs))
    model.compile("sgd", "mse", steps_per_execution=2)
    run = jax_scan.in_one_call(refuse, model)
    state, batch = state_of(model, X[:8, :, None]), (X[:8, :, None], Y[:8], None)
    with pytest.raises(AssertionError, match="loop"):
        run(state, iter([batch, batch]))


class Promoting(keras.layers.Layer):
    """Has a state in half precision, to which it assigns values of full precision."""

    def build(self, shape: Any) -> None:
        self.count = self.add_weight(
            shape=(), dtype="float16", initializer="zeros", trainable=False, autocast=False
        )

    def call(self, x: Any) -> Any:
        return x


def test_a_state_that_changes_its_dtype_goes_to_kerass_loop() -> None:
    class Step(Counting):
        def train_step(self, state: Any, data: Any) -> Any:
            logs, (trainable, others, *rest) = super().train_step(state, data)
            return logs, (trainable, [v.astype("float32") + 1 for v in others], *rest)

    def model(count: int) -> Any:
        keras.utils.set_random_seed(1)
        inputs = keras.Input((6,))
        built = Step(inputs, keras.layers.Dense(2)(Promoting()(inputs)))
        built.compile("sgd", "mse", steps_per_execution=count)
        return built

    (_, values), (_, expected) = fitted(model(4)), fitted(model(1))
    for ours, theirs in zip(values, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
