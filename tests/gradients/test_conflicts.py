"""PCGrad against the paper's algorithm in NumPy."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.gradients import by_jax, nets
from tests.gradients.nets import X, Y

G = kt.gradients
HEADS = ("head", "second", "third")
TARGETS = {"head": Y, "second": -Y + 0.5, "third": Y[:, ::-1].copy()}
SHARES = {"head": 1.0, "second": 0.5, "third": 2.0}


def flat(gradient: Any) -> np.ndarray:
    return np.concatenate([np.asarray(gradient[path]).ravel() for path in sorted(gradient)])


def projected(gradients: list[np.ndarray], updates: int) -> tuple[np.ndarray, int]:
    """Algorithm 1 of Yu et al., in our order; and how many projections there were."""
    count, total, conflicts = len(gradients), np.zeros_like(gradients[0], "float64"), 0
    for i, gradient in enumerate(gradients):
        own = gradient.astype("float64")
        others = [(i + 1 + k) % count for k in range(count - 1)]
        start = updates % (count - 1)
        for j in [*others[start:], *others[:start]]:
            product = own @ gradients[j]
            if product < 0:
                own = own - product / (gradients[j] @ gradients[j]) * gradients[j]
                conflicts += 1
        total += own
    return total, conflicts


def by_numpy(heads: tuple[str, ...], epochs: int, penalty: float = 0.0) -> nets.Weights:
    weights, made, conflicts = nets.start(heads), 0, 0
    for x, *ys in nets.batches(X, *(TARGETS[head] for head in heads)) * epochs:
        rows = []
        for head, y in zip(heads, ys, strict=True):
            slope = by_jax.gradient(weights, x, y, head=head)
            rows.append(SHARES[head] * flat(slope))
        total, found = projected(rows, made)
        made, conflicts = made + 1, conflicts + found
        for path in sorted(weights):
            size = weights[path].size
            step, total = total[:size].reshape(weights[path].shape), total[size:]
            if path == "trunk/kernel":
                step = step + 2 * penalty * weights[path]
            weights[path] = (weights[path] - 0.1 * step).astype("float32")
    assert conflicts >= epochs
    return weights


@pytest.mark.parametrize("heads", [HEADS[:2], HEADS], ids=["two", "three"])
def test_several_outputs_equal_the_paper(heads: tuple[str, ...]) -> None:
    """With weights of the losses, and a penalty, which is not projected."""
    model = nets.net(heads, kernel_regularizer=keras.regularizers.L2(0.05))
    model.compile(
        keras.optimizers.SGD(0.1),
        ["mse"] * len(heads),
        loss_weights=[SHARES[head] for head in heads],
        gradients=G.ProjectConflicts(),
    )
    nets.fit(model, [TARGETS[head] for head in heads], epochs=3)
    nets.close(nets.value_of(model), by_numpy(heads, 3, penalty=0.05), 1e-5)


class ByHand(kt.TrainOpsModel):
    """Returns the losses of its outputs by name."""

    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        x, y, _ = step.unpack(data)

        def losses(batch: Any) -> dict[str, Any]:
            x, y = batch
            predicted = zip(HEADS, self(x, training=True), y, strict=True)
            return {
                head: SHARES[head] * keras.ops.mean(keras.ops.square(p - t))
                for head, p, t in predicted
            }

        return {"loss": step.minimize(losses, data=(x, y))}


def test_losses_of_a_step_equal_the_paper() -> None:
    model = nets.net(HEADS, ByHand)
    model.compile(keras.optimizers.SGD(0.1), gradients=G.ProjectConflicts())
    history = nets.fit(model, [TARGETS[head] for head in HEADS], epochs=3)
    nets.close(nets.value_of(model), by_numpy(HEADS, 3), 1e-5)
    assert history["loss"][-1] < history["loss"][0]


def test_without_a_source_losses_are_added_up() -> None:
    found = []
    for source in (None, G.SharpnessAware(1e-9)):
        model = nets.net(HEADS, ByHand)
        model.compile(keras.optimizers.SGD(0.1), gradients=source)
        nets.fit(model, [TARGETS[head] for head in HEADS])
        found.append(nets.value_of(model))
    nets.close(found[0], found[1], 1e-5)
    usual = nets.net(HEADS)
    usual.compile(keras.optimizers.SGD(0.1), ["mse"] * 3, loss_weights=[*SHARES.values()])
    nets.fit(usual, [TARGETS[head] for head in HEADS])
    nets.close(found[0], nets.value_of(usual))


def test_logs_are_those_of_usual_training() -> None:
    """Each loss is counted once."""

    def run(**options: Any) -> dict[str, list[float]]:
        model = nets.net(HEADS, kernel_regularizer="l2")
        losses = {"head": "mse", "second": "mae", "third": "mse"}
        model.compile(keras.optimizers.SGD(0.0), losses, metrics=[["mae"]] * 3, **options)
        return nets.fit(model, TARGETS)

    usual, ours = run(), run(gradients=G.ProjectConflicts())
    assert ours.keys() == usual.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], usual[name], rtol=1e-5)


def test_masked_losses_stay_masked() -> None:
    """Two equal outputs are never in conflict: the gradient is the usual one."""

    def run(**options: Any) -> nets.Weights:
        inputs = keras.Input((3, 6))
        x = keras.layers.Masking()(inputs)
        outputs = [keras.layers.Dense(2, name=name)(x) for name in HEADS[:2]]
        model = kt.TrainOpsModel(inputs, outputs)
        for variable in model.weights:
            variable.assign(np.full(variable.shape, 0.5))
        model.compile(keras.optimizers.SGD(0.1), "mse", **options)
        x = np.stack([nets.X, 0 * nets.X, nets.X], axis=1)
        y = np.stack([Y, Y, Y], axis=1)
        model.fit(x, [y, y], batch_size=8, shuffle=False, verbose=0)
        return nets.value_of(model)

    nets.close(run(gradients=G.ProjectConflicts()), run(), 1e-6)


@pytest.mark.backends("tensorflow")
def test_two_replicas_equal_one_device() -> None:
    from tests.helpers import two_replicas

    def run() -> nets.Weights:
        model = nets.net(HEADS)
        model.compile(keras.optimizers.SGD(0.1), "mse", gradients=G.ProjectConflicts())
        y = [TARGETS[head][:16] for head in HEADS]
        model.fit(X[:16], y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return nets.value_of(model)

    with two_replicas().scope():
        two = run()
    nets.close(two, run())


def test_one_loss_is_an_error() -> None:
    model = nets.net()
    model.compile("sgd", "mse", gradients=G.ProjectConflicts())
    with pytest.raises(ValueError, match="`ProjectConflicts` needs several losses"):
        nets.fit(model)
