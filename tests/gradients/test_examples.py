"""Clips of examples against optax."""

from __future__ import annotations

from typing import Any

import jax
import keras
import numpy as np
import optax
import pytest

import keras_trainops as kt
from tests.gradients import by_jax, nets
from tests.gradients.nets import W, X, Y
from tests.helpers import value

G, L = kt.gradients, keras.layers
SIZES = [None, 1, 3, 8, 100]


@jax.jit
def each_gradient(weights: Any, x: Any, y: Any, w: Any) -> Any:
    def one(x: Any, y: Any, w: Any) -> Any:
        return jax.grad(lambda weights: w * by_jax.loss(weights, x[None], y[None]))(weights)

    return jax.vmap(one)(x, y, w)


def by_optax(norm: float, epochs: int, sample_weight: np.ndarray) -> nets.Weights:
    weights: Any = nets.start()
    private = optax.contrib.differentially_private_aggregate(norm, 0.0, key=0)
    chain = optax.chain(private, optax.sgd(0.5))
    state, step = chain.init(weights), by_jax.stepping(chain)
    for x, y, w in nets.batches(X, Y, sample_weight) * epochs:
        weights, state = step(each_gradient(weights, x, y, w), state, weights)
    return weights


@pytest.mark.parametrize("microbatch", SIZES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_equals_optax(microbatch: int | None, weighted: bool) -> None:
    model = nets.net()
    source = G.PerExampleClip(0.4, microbatch=microbatch)
    model.compile(keras.optimizers.SGD(0.5), "mse", metrics=["mae"], gradients=source)
    history = nets.fit(model, sample_weight=W if weighted else None)
    nets.close(nets.value_of(model), by_optax(0.4, 2, W if weighted else np.ones_like(W)))
    assert nets.moved(nets.value_of(model)) > 0.05
    assert history["loss"][1] < history["loss"][0]


@pytest.mark.parametrize("microbatch", [None, 3])
def test_a_large_norm_gives_the_usual_training(microbatch: int | None) -> None:
    """With penalties on weights, several outputs, their metrics and weights."""

    def run(**options: Any) -> tuple[nets.Weights, dict[str, list[float]]]:
        model = nets.net(("head", "second"), kernel_regularizer="l2")
        model.compile(
            keras.optimizers.Adam(0.01),
            ["mse", "mae"],
            loss_weights=[1.0, 0.5],
            metrics=[["mae"], ["mse"]],
            **options,
        )
        # Keras's means over unequal batches have other weights on TensorFlow.
        history = nets.fit(model, [Y, Y + 1], epochs=3, batch_size=10)
        return nets.value_of(model), history

    usual, wanted = run()
    clipped, found = run(gradients=G.PerExampleClip(1e6, microbatch=microbatch))
    nets.close(clipped, usual, 1e-5)
    assert found.keys() == wanted.keys()
    for name in found:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5)


@pytest.mark.parametrize("microbatch", [None, 3])
def test_random_layers_advance_once_for_each_group(microbatch: int | None) -> None:
    inputs = keras.Input((6,))
    x = L.Dropout(0.5, seed=1, name="drop")(L.Dense(5, name="trunk")(inputs))
    model = kt.TrainOpsModel(inputs, L.Dense(2, name="head")(x))
    model.compile("sgd", "mse", gradients=G.PerExampleClip(1.0, microbatch=microbatch))
    seed = model.get_layer("drop").seed_generator.state
    before = value(seed)
    nets.fit(model, epochs=1)
    groups = 3 if microbatch is None else 3 + 3 + 2
    assert value(seed)[1] - before[1] == groups


@pytest.mark.parametrize("microbatch", [None, 2])
def test_batch_norm_is_an_error(microbatch: int | None) -> None:
    inputs = keras.Input((6,))
    x = L.BatchNormalization(name="norm")(inputs)
    model = kt.TrainOpsModel(inputs, L.Dense(2, name="head")(x))
    model.compile("sgd", "mse", gradients=G.PerExampleClip(1.0, microbatch=microbatch))
    with pytest.raises(ValueError, match=r"Layers assign norm/moving_mean, .*for each example"):
        nets.fit(model)


def test_with_noise_it_is_private_training() -> None:
    """The noise alone, as the gradient is clipped to almost nothing."""
    model = nets.net()
    model.compile(
        keras.optimizers.SGD(1.0),
        "mse",
        gradients=G.PerExampleClip(1e-6),
        gradient_transforms=kt.transforms.Noise((2.0 / 8) ** 2, decay=0, seed=1),
    )
    before = nets.value_of(model)
    model.train_on_batch(X[:8], Y[:8])
    after = nets.value_of(model)
    change = np.concatenate([(after[path] - before[path]).ravel() for path in after])
    assert 0.15 < change.std() < 0.35


def test_mixed_precision_equals_single() -> None:
    def run(policy: str) -> nets.Weights:
        model = nets.net(dtype=policy)
        model.dtype_policy = policy
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5), 2.0**10)
        model.compile(optimizer, "mse", gradients=G.PerExampleClip(0.4, 3))
        nets.fit(model)
        return nets.value_of(model)

    half = run("mixed_float16")
    nets.close(half, run("float32"), 5e-3)


def test_mixed_precision_scales_the_loss() -> None:
    """Gradients of 1e-8 are 0 in float16 without a scale."""
    model = nets.net(dtype="mixed_float16")
    model.dtype_policy = "mixed_float16"
    optimizer = keras.optimizers.SGD(1e5)
    model.compile(optimizer, "mse", loss_weights=[1e-7], gradients=G.PerExampleClip(1.0))
    nets.fit(model)
    assert nets.moved(nets.value_of(model)) > 1e-4


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize("microbatch", [None, 3])
def test_two_replicas_equal_one_device(microbatch: int | None) -> None:
    from tests.helpers import two_replicas

    def run() -> nets.Weights:
        model = nets.net()
        source = G.PerExampleClip(0.4, microbatch)
        model.compile(keras.optimizers.SGD(0.5), "mse", metrics=["mae"], gradients=source)
        model.fit(X[:16], Y[:16], batch_size=8, epochs=2, shuffle=False, verbose=0)
        return nets.value_of(model)

    with two_replicas().scope():
        two = run()
    nets.close(two, run())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: G.PerExampleClip(0), "`norm` must be > 0. Received: norm=0"),
        (lambda: G.PerExampleClip(1, 0), "`microbatch` must be an integer >= 1, or None"),
        (lambda: G.PerExampleClip(1, 2.5), "`microbatch` must be an integer >= 1, or None"),
    ],
)
def test_rejects_invalid_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
