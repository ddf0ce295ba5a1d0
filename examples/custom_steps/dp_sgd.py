"""Differentially private training (DP-SGD), with the privacy that it spends.

Each example's gradient is clipped to a norm, and noise is added to their sum, so that the weights
tell little about any one digit. Each digit is in a batch with the same small probability; batches
are padded to one size with examples that do not count. An accountant computes the ε of
(ε, δ)-differential privacy.

`python examples/custom_steps/dp_sgd.py` prints the accuracy on held-out digits and ε, beside
training without clipping and noise.

References: Abadi et al. 2016, "Deep Learning with Differential Privacy"; Mironov et al. 2019,
"Rényi Differential Privacy of the Sampled Gaussian Mechanism".
"""

from __future__ import annotations

from typing import Any

import dp_accounting
import keras
import numpy as np
from common import Batches, accuracy, digits, mlp, options, with_equal_start
from keras import ops

import keras_trainops as kt

EXAMPLES, BATCH, PADDED = 1200, 100, 180
DELTA = 1e-4


class Private(kt.TrainOpsMixin, keras.Model):
    """A classifier that trains on clipped gradients with noise.

    Args:
        clip: The largest norm of an example's gradient.
        noise: The standard deviation of the noise, in units of `clip`.
    """

    def __init__(self, clip: float = 1.0, noise: float = 2.0) -> None:
        super().__init__()
        self.clip, self.noise = clip, noise
        self.network = mlp(64, 32, 10, activation="tanh")

    def call(self, images: Any) -> Any:
        return self.network(images)

    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        (images, normal), labels, counts = step.unpack(data)
        variables = self.trainable_variables

        def loss(example: Any) -> tuple[Any, Any]:
            image, label = example
            logits = self(image, training=True)
            return step.loss(image, label, logits), logits[0]

        (losses, logits), gradients = step.per_example_gradients(
            loss, variables, (images, labels), aux=True
        )
        flat = [ops.reshape(each, (PADDED, -1)) for each in gradients]
        norms = ops.sqrt(sum(ops.sum(ops.square(each), axis=1) for each in flat))
        factors = counts * ops.minimum(1.0, self.clip / ops.maximum(norms, 1e-12))
        total = ops.matmul(factors, ops.concatenate(flat, axis=1))
        total = (total + self.noise * self.clip * normal[0]) / BATCH
        ends = np.cumsum([int(np.prod(variable.shape)) for variable in variables])
        parts = ops.split(total, ends[:-1].tolist())
        pairs = zip(parts, variables, strict=True)
        step.apply([ops.reshape(part, variable.shape) for part, variable in pairs], variables)
        step.update_metrics(labels, logits, counts)
        return {"loss": ops.sum(losses * counts) / ops.maximum(ops.sum(counts), 1.0)}


def build(clip: float = 1.0, noise: float = 2.0) -> Private:
    """Return a compiled model."""
    model = with_equal_start(Private(clip, noise))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(1.0, momentum=0.5)
    model.compile(optimizer, loss, weighted_metrics=["accuracy"])
    return model


def batches(steps: int) -> Batches:
    """Return batches of digits, noise for the gradients, labels, and which examples count."""
    (images, labels), _ = digits()
    parameters = 64 * 32 + 32 + 32 * 10 + 10

    def batch(rng: np.random.Generator) -> tuple[Any, Any, Any]:
        chosen = np.flatnonzero(rng.uniform(size=EXAMPLES) < BATCH / EXAMPLES)[:PADDED]
        padded = np.pad(chosen, (0, PADDED - len(chosen)))
        counts = (np.arange(PADDED) < len(chosen)).astype("float32")
        normal = rng.normal(size=(1, parameters)).astype("float32")
        return (images[padded], normal), labels[padded], counts

    return Batches(batch, steps)


def spent(steps: int, noise: float, rate: float = BATCH / EXAMPLES, delta: float = DELTA) -> float:
    """Return the ε that training spends.

    Args:
        steps: The number of training steps.
        noise: The standard deviation of the noise, in units of the largest norm.
        rate: The probability that an example is in a batch.
        delta: The δ of (ε, δ)-differential privacy.
    """
    accountant = dp_accounting.rdp.RdpAccountant()
    gaussian = dp_accounting.GaussianDpEvent(noise)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, gaussian), steps)
    return accountant.get_epsilon(delta)


def main() -> None:
    """Train with and without privacy, and print the results."""
    chosen = options(__doc__, steps=300)
    _, held_out = digits()
    for clip, noise, name in ((1.0, 2.0, "private"), (1e9, 0.0, "without clipping and noise")):
        model = build(clip, noise)
        model.fit(batches(chosen.steps), shuffle=False, verbose=2)
        print(f"accuracy on held-out digits: {accuracy(model, held_out):.3f}, {name}")
        if noise:
            print(f"spent: ε = {spent(chosen.steps, noise):.2f} at δ = {DELTA}")


if __name__ == "__main__":
    main()
