"""A variational autoencoder (VAE) compresses digits to eight numbers, and draws new ones.

The noise that samples a code comes with the batch. `evaluate` computes the loss of held-out digits
with the mean code of each.

`python examples/custom_steps/vae.py` prints reconstruction errors and the distance of drawn
digits from held-out ones, and writes `examples/output/vae.png`.

References: Kingma and Welling 2014, "Auto-Encoding Variational Bayes".
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from common import Batches, digits, draw, frechet, mlp, options, with_equal_start
from keras import ops

import keras_trainops as kt

CODE, BATCH = 8, 64


class VAE(kt.TrainOpsMixin, keras.Model):
    """An encoder from digits to the mean and log variance of a code, and a decoder."""

    def __init__(self, variance: float = 0.06) -> None:
        super().__init__()
        self.variance = variance  # of pixels, given their code
        self.encoder = mlp(64, 128, 2 * CODE, activation="silu")
        self.decoder = mlp(CODE, 128, 64, activation="silu", last="sigmoid")

    def call(self, images: Any) -> Any:
        return self.decoder(self.encoder(images)[:, :CODE])

    def negative_bound(self, images: Any, noise: Any) -> tuple[Any, dict[str, Any]]:
        moments = self.encoder(images)
        mean, log_variance = moments[:, :CODE], moments[:, CODE:]
        decoded = self.decoder(mean + ops.exp(log_variance / 2) * noise)
        error = ops.mean(ops.sum(ops.square(decoded - images), axis=1)) / (2 * self.variance)
        divergence = ops.square(mean) + ops.exp(log_variance) - 1 - log_variance
        divergence = ops.mean(ops.sum(divergence, axis=1)) / 2
        return error + divergence, {"error": error, "divergence": divergence}

    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        (images, noise), *_ = step.unpack(data)
        loss, parts = step.minimize(lambda: self.negative_bound(images, noise), aux=True)
        return {"loss": loss, **parts}

    def evaluation_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        images, *_ = step.unpack(data)
        loss, parts = self.negative_bound(images, 0.0)
        return {"loss": loss, **parts}


def build() -> VAE:
    """Return a compiled model."""
    model = with_equal_start(VAE())
    model.compile(keras.optimizers.Adam(2e-3))
    return model


def batches(steps: int) -> Batches:
    """Return batches of digits, and noise for their codes."""
    (images, _), _ = digits()

    def batch(rng: np.random.Generator) -> tuple[Any]:
        chosen = images[rng.integers(len(images), size=BATCH)]
        return ((chosen, rng.normal(size=(BATCH, CODE)).astype("float32")),)

    return Batches(batch, steps)


def main() -> None:
    """Train, print the result, and draw it."""
    chosen = options(__doc__, steps=2000, picture="vae.png")
    (train, _), (held_out, _) = digits()
    model = build()
    before = model.evaluate(held_out, verbose=0, return_dict=True)
    model.fit(batches(chosen.steps), shuffle=False, verbose=2)
    after = model.evaluate(held_out, verbose=0, return_dict=True)
    print(f"loss on held-out digits: {before['loss']:.2f} before, {after['loss']:.2f} after")
    decoded = model.predict(held_out, verbose=0)
    error, of_mean = (np.square(x - held_out).mean() for x in (decoded, train.mean(0)))
    print(f"squared error: {error:.4f} reconstructed, {of_mean:.4f} with the mean digit")
    noise = np.random.default_rng(1).normal(size=(1000, CODE)).astype("float32")
    drawn = model.decoder.predict(noise, verbose=0)
    first = build().decoder.predict(noise, verbose=0)
    print(
        f"Fréchet distance to held-out digits: {frechet(first, held_out):.3f} before training, "
        f"{frechet(drawn, held_out):.3f} after, {frechet(train, held_out):.3f} of other real digits"
    )
    rows = {"held out": held_out[:16], "from 8 numbers": decoded[:16], "drawn": drawn[:16]}
    draw(rows, "VAE", chosen.output)


if __name__ == "__main__":
    main()
