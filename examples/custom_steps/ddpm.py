"""A denoising diffusion model (DDPM) draws digits.

The network learns to predict the noise in a noisy digit; noise and its levels come with the batch.
With the moving average of the weights it then draws digits: starting from noise alone, it removes a
level at a time.

`python examples/custom_steps/ddpm.py` prints the distance of drawn digits from held-out ones, and
writes `examples/output/ddpm.png`.

References: Ho et al. 2020, "Denoising Diffusion Probabilistic Models".
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from common import Batches, digits, draw, frechet, mlp, options, with_equal_start
from keras import ops

import keras_trainops as kt

LEVELS, BATCH = 100, 128
BETA = np.linspace(1e-3, 0.1, LEVELS)  # the variance of the noise that each level adds
KEPT = np.cumprod(1 - BETA)  # the share of the digit's variance that is left at each level


class DDPM(kt.TrainOpsMixin, keras.Model):
    """Predicts the noise from a noisy digit and its noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.network = mlp(64 + 32, 256, 256, 256, 64, activation="silu")

    def call(self, inputs: Any) -> Any:
        noisy, level = inputs
        angles = ops.cast(level, "float32") * (10.0 ** np.linspace(-2, 0, 16)).astype("float32")
        return self.network(ops.concatenate([noisy, ops.sin(angles), ops.cos(angles)], axis=1))

    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        (images, noise, level), *_ = step.unpack(data)
        kept = ops.take(ops.convert_to_tensor(KEPT, "float32"), level)
        noisy = ops.sqrt(kept) * images + ops.sqrt(1 - kept) * noise

        def loss() -> Any:
            return ops.mean(ops.square(self((noisy, level), training=True) - noise))

        return {"loss": step.minimize(loss)}


def build() -> DDPM:
    """Return a compiled model, whose weights are averaged."""
    model = with_equal_start(DDPM())
    updates = [kt.updates.LayerUpdates(), kt.updates.MovingAverage(0.99)]
    model.compile(keras.optimizers.Adam(2e-3), updates=updates)
    return model


def batches(steps: int) -> Batches:
    """Return batches of digits in [-1, 1], noise, and noise levels."""
    (images, _), _ = digits()

    def batch(rng: np.random.Generator) -> tuple[Any]:
        chosen = 2 * images[rng.integers(len(images), size=BATCH)] - 1
        noise = rng.normal(size=(BATCH, 64)).astype("float32")
        return ((chosen, noise, rng.integers(LEVELS, size=(BATCH, 1)).astype("int32")),)

    return Batches(batch, steps)


def drawn(model: DDPM, count: int) -> np.ndarray:
    """Return digits (count, 64) in [0, 1], drawn from noise."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, 64))
    for level in reversed(range(LEVELS)):
        levels = np.full((count, 1), level, "int32")
        noise = ops.convert_to_numpy(model((x.astype("float32"), levels), training=False))
        x = (x - BETA[level] / np.sqrt(1 - KEPT[level]) * noise) / np.sqrt(1 - BETA[level])
        if level:
            x += np.sqrt(BETA[level]) * rng.normal(size=x.shape)
    return np.clip((x + 1) / 2, 0, 1)


def main() -> None:
    """Train, print the result, and draw it."""
    chosen = options(__doc__, steps=2000, picture="ddpm.png")
    (train, _), (held_out, _) = digits()
    model = build()
    before = drawn(model, 500)
    use = kt.UseAverage(finalize=True)
    model.fit(batches(chosen.steps), shuffle=False, verbose=2, callbacks=[use])
    after = drawn(model, 500)
    print(
        f"Fréchet distance to held-out digits: {frechet(before, held_out):.3f} before training, "
        f"{frechet(after, held_out):.3f} after, {frechet(train, held_out):.3f} of other real digits"
    )
    rows = {"before training": before[:16], "drawn": after[:16], "real": held_out[:16]}
    draw(rows, "DDPM", chosen.output)


if __name__ == "__main__":
    main()
