from __future__ import annotations

from typing import Any

import jax
import keras
import numpy as np
import optax
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, differ, two_layers, value, values, weights

U = kt.updates
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")


def net(lookahead: Any, optimizer: Any = None, **options: Any) -> Any:
    model = kt.with_train_ops(two_layers())
    chosen = optimizer or keras.optimizers.SGD(0.05)
    model.compile(chosen, "mse", updates=[U.LayerUpdates(), lookahead], **options)
    return model


def fit(model: Any, **options: Any) -> Any:
    given = {"x": X, "y": Y, "batch_size": 2, "shuffle": False, "verbose": 0, **options}
    model.fit(**given)
    return model


def by_optax(model: keras.Model, steps: int, optimizer: Any, **options: Any) -> Any:
    """The fast and the slow weights of the two layers after each step."""
    lookahead = optax.lookahead(optimizer, **options)
    params = optax.LookaheadParams.init_synced([jax.numpy.asarray(value(v)) for v in model.weights])
    state, found = lookahead.init(params), []

    def loss(p: Any, x: Any, y: Any) -> Any:
        return jax.numpy.mean(((x @ p[0] + p[1]) @ p[2] + p[3] - y) ** 2)

    for i in range(steps):
        at = slice(2 * i % 24, 2 * i % 24 + 2)
        gradients = jax.grad(loss)(params.fast, X[at], Y[at])
        change, state = lookahead.update(gradients, state, params)
        params = optax.apply_updates(params, change)
        found.append([[np.asarray(w) for w in tree] for tree in params])
    return found


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("period", "size"), [(1, 0.5), (5, 0.5), (7, 0.8), (3, 1.0)])
def test_equals_optax_step_by_step(period: int, size: float, momentum: float) -> None:
    lookahead = U.Lookahead(period, size)
    model = net(lookahead, keras.optimizers.SGD(0.01, momentum=momentum))
    theirs = by_optax(
        model,
        24,
        optax.sgd(0.01, momentum=momentum),
        sync_period=period,
        slow_step_size=size,
    )
    for i, (fast, slow) in enumerate(theirs):
        at = slice(2 * i % 24, 2 * i % 24 + 2)
        model.train_on_batch(X[at], Y[at])
        assert differ(weights(model), fast) <= 2e-6
        assert differ([array for _, array in lookahead.averages()], slow) <= 2e-6


def test_weights_are_the_slow_ones_after_a_synchronisation() -> None:
    lookahead = U.Lookahead(4)
    model = fit(net(lookahead))
    assert_same(weights(model), [array for _, array in lookahead.averages()])
    model.train_on_batch(X[:2], Y[:2])
    assert differ(weights(model), [array for _, array in lookahead.averages()]) > 1e-4


def test_starts_from_warm_started_weights() -> None:
    lookahead = U.Lookahead(1000)
    model = net(lookahead)
    arrays = {v.path: np.full(v.shape, 2.0) for v in model.weights}
    fit(model, callbacks=[kt.WarmStart(arrays, verbose=0)])
    assert all((array == 2).all() for _, array in lookahead.averages())
    fit(model)  # starts once
    assert all((array == 2).all() for _, array in lookahead.averages())


def test_continues_after_another_compile() -> None:
    lookahead = U.Lookahead(1000)
    model = fit(net(lookahead))
    before = [array for _, array in lookahead.averages()]
    model.compile(model.optimizer, "mse", updates=[U.LayerUpdates(), lookahead])
    fit(model)
    assert_same([array for _, array in lookahead.averages()], before)


def test_saved_state_is_resumed_exactly() -> None:
    whole = fit(fit(net(U.Lookahead(5, 0.8))))
    fit(net(U.Lookahead(5, 0.8))).save("half.keras")  # 2 updates after the last synchronisation
    again = keras.saving.load_model("half.keras")
    assert_same(values(fit(again)), values(whole))
    assert again.train_ops.policy.after_weights[0].get_config() == {
        "sync_period": 5,
        "slow_step_size": 0.8,
        "patterns": None,
    }


def test_a_session_resumes_it() -> None:
    whole = fit(net(U.Lookahead(5)), epochs=3)
    half = net(U.Lookahead(5))
    fit(half, epochs=1, callbacks=[kt.TrainingSession("log")])
    again = net(U.Lookahead(5))
    fit(again, epochs=3, callbacks=[kt.TrainingSession("log")])
    assert_same(weights(again), weights(whole))


def test_skipped_and_accumulated_batches_do_not_count() -> None:
    model = net(
        U.Lookahead(3),
        keras.optimizers.SGD(0.05, gradient_accumulation_steps=2),
        gradient_transforms=kt.transforms.SkipNonFinite(),
    )
    bad = Y.copy()
    bad[4:8] = np.nan  # the second weight update is skipped
    fit(model, y=bad)
    expected = two_layers()
    stock = keras.optimizers.SGD(0.05)
    expected.compile(stock, "mse")
    slow = weights(expected)
    for taken, i in enumerate((0, 8, 12, 16, 20), start=1):
        expected.train_on_batch(X[i : i + 4], Y[i : i + 4])
        if taken == 3:
            slow = [(s + w) / 2 for s, w in zip(slow, weights(expected), strict=True)]
            expected.set_weights(slow)
    assert differ(weights(model), weights(expected)) <= 1e-6


def test_patterns_choose_the_weights() -> None:
    lookahead = U.Lookahead(5, patterns="head")
    fit(net(lookahead))
    assert [v.path for v, _ in lookahead.averages()] == ["head/kernel", "head/bias"]


def test_half_precision_weights_have_float32_slow_ones() -> None:
    inputs = keras.Input((4,))
    dense = keras.layers.Dense(2, name="head", dtype="bfloat16")
    model = kt.TrainOpsModel(inputs, dense(inputs))
    lookahead = U.Lookahead(2)
    model.compile(keras.optimizers.SGD(0.01), "mse", updates=[U.LayerUpdates(), lookahead])
    fit(model)
    assert {v.dtype for v in lookahead.variables if v.name.startswith("average")} == {"float32"}
    assert_same(weights(model), [array for _, array in lookahead.averages()])


def test_validation_uses_the_slow_weights() -> None:
    lookahead = U.Lookahead(5)
    model = net(lookahead)
    data = {"validation_data": (X, Y), "callbacks": [kt.UseAverage()]}
    history = model.fit(X, Y, batch_size=2, shuffle=False, verbose=0, **data).history
    with lookahead.swapped():
        loss = model.evaluate(X, Y, batch_size=24, verbose=0)
    assert history["val_loss"][0] == pytest.approx(loss, rel=1e-5)
    assert abs(model.evaluate(X, Y, batch_size=24, verbose=0) - loss) > 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sync_period": 0}, r"`sync_period` must be an integer >= 1. Received: sync_period=0"),
        ({"slow_step_size": 0}, r"`slow_step_size` must be above 0 and at most 1"),
        ({"slow_step_size": 1.5}, r"`slow_step_size` must be above 0 and at most 1"),
    ],
)
def test_rejects_invalid_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        U.Lookahead(**arguments)
