"""SAM and ASAM against optax and their formulas."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import optax
import pytest

import keras_trainops as kt
from tests.gradients import by_jax, nets
from tests.gradients.nets import X, Y
from tests.helpers import value

G = kt.gradients


def test_equals_optax_over_20_steps() -> None:
    model = nets.net()
    model.compile(keras.optimizers.SGD(0.1, 0.9), "mse", gradients=G.SharpnessAware(0.2))
    nets.fit(model, epochs=7)
    weights: Any = nets.start()
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.2))
    sam = optax.contrib.sam(optax.sgd(0.1, 0.9), adversary, sync_period=2, opaque_mode=True)
    state = sam.init(weights)
    for x, y in nets.batches(X, Y) * 7:
        slope = by_jax.gradient(weights, x, y)
        changes, state = sam.update(
            slope, state, weights, grad_fn=lambda w, _, x=x, y=y: by_jax.gradient(w, x, y)
        )
        weights = optax.apply_updates(weights, changes)
    nets.close(nets.value_of(model), weights, 1e-5)
    assert nets.moved(nets.value_of(model)) > 0.1


def test_adaptive_equals_its_formula() -> None:
    model = nets.net()
    model.compile(keras.optimizers.SGD(0.1), "mse", gradients=G.SharpnessAware(0.5, adaptive=True))
    nets.fit(model)
    weights: Any = nets.start()
    for x, y in nets.batches(X, Y) * 2:
        slope = by_jax.gradient(weights, x, y)
        scaled = {path: weights[path] * np.asarray(g) for path, g in slope.items()}
        norm = np.sqrt(sum(float((s**2).sum()) for s in scaled.values()))
        worst = {p: w + 0.5 * w**2 * np.asarray(slope[p]) / norm for p, w in weights.items()}
        slope = by_jax.gradient(worst, x, y)
        weights = {path: w - 0.1 * np.asarray(slope[path]) for path, w in weights.items()}
    nets.close(nets.value_of(model), weights)


@pytest.mark.parametrize("check", [False, True], ids=["direct", "collected"])
def test_statistics_and_losses_are_those_of_the_first_pass(check: bool) -> None:
    """With a learning rate of 0, Keras's step has the same."""

    def run(model_class: Any, **options: Any) -> tuple[Any, Any, Any]:
        inputs = keras.Input((6,))
        x = keras.layers.BatchNormalization(name="norm", momentum=0.5)(inputs)
        x = keras.layers.Dense(5, activation="tanh", name="trunk", kernel_regularizer="l2")(x)
        heads = [keras.layers.Dense(2, name=name)(x) for name in ("head", "second")]
        model = model_class(inputs, heads)
        for variable in model.trainable_variables:
            if variable.path in nets.START:
                variable.assign(nets.START[variable.path])
        model.compile(keras.optimizers.SGD(0.0), ["mse", "mae"], **options)
        history = nets.fit(model, [Y, Y + 1])
        norm = model.get_layer("norm")
        return value(norm.moving_mean), value(norm.moving_variance), history

    ours = run(kt.TrainOpsModel, gradients=G.SharpnessAware(0.5), check_numerics=check)
    kerass = run(keras.Model)
    for mine, theirs in zip(ours[:2], kerass[:2], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    assert ours[2].keys() == kerass[2].keys()
    for name in ours[2]:
        np.testing.assert_allclose(ours[2][name], kerass[2][name], rtol=1e-5)


def test_updates_get_the_loss_of_the_first_pass() -> None:
    model = nets.net()
    seen = keras.Variable(0.0, trainable=False, name="seen")
    update = kt.updates.Function(lambda model, loss: seen.assign(loss), [seen])
    model.add_update(update)
    model.compile("sgd", "mse", gradients=G.SharpnessAware(1.0))
    loss = model.train_on_batch(X, Y)
    np.testing.assert_allclose(value(seen), loss, rtol=1e-6)


def test_a_gradient_of_zero_moves_nothing() -> None:
    model = nets.net()
    for variable in model.get_layer("head").weights:
        variable.assign(np.zeros(variable.shape))
    before = nets.value_of(model)
    model.compile("sgd", "mse", gradients=G.SharpnessAware())
    model.fit(X, np.zeros_like(Y), verbose=0)
    nets.close(nets.value_of(model), before, 0)


@pytest.mark.backends("tensorflow")
def test_two_replicas_equal_one_device() -> None:
    from tests.helpers import two_replicas

    def run() -> nets.Weights:
        model = nets.net()
        model.compile(keras.optimizers.SGD(0.1), "mse", gradients=G.SharpnessAware(0.5))
        model.fit(X[:16], Y[:16], batch_size=8, epochs=2, shuffle=False, verbose=0)
        return nets.value_of(model)

    with two_replicas().scope():
        two = run()
    nets.close(two, run())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: G.SharpnessAware(0), "`rho` must be > 0. Received: rho=0"),
        (lambda: G.SharpnessAware(0.1, adaptive=1), "`adaptive` must be True or False"),
    ],
)
def test_rejects_invalid_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
