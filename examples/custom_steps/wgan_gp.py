"""A Wasserstein GAN with a gradient penalty (WGAN-GP) draws digits.

Each batch trains the critic several times and then the generator, with an optimizer for each. The
penalty keeps the gradient of the critic by its input near the norm 1, so the critic is
differentiated twice.

`python examples/custom_steps/wgan_gp.py` prints the distance of drawn digits from held-out ones,
and writes `examples/output/wgan_gp.png`.

References: Gulrajani et al. 2017, "Improved Training of Wasserstein GANs".
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from common import Batches, digits, draw, frechet, mlp, options, with_equal_start
from keras import ops

import keras_trainops as kt

LATENT, CRITIC_STEPS, BATCH = 16, 3, 64


class WGAN(kt.TrainOpsMixin, keras.Model):
    """A generator of digits from noise, and a critic that rates them and real ones.

    The critic's last layer has no bias: it would have no effect and a gradient of 0.
    """

    def __init__(self, penalty: float = 10.0) -> None:
        super().__init__()
        self.penalty = penalty
        self.generator = mlp(LATENT, 128, 128, 64, last="sigmoid")
        self.critic = mlp(64, 128, 128, 1, activation="silu", last_bias=False)

    def call(self, noise: Any) -> Any:
        return self.generator(noise)

    def critic_loss(self, step: kt.Step, real: Any, fake: Any, share: Any) -> Any:
        def total(mixed: Any) -> Any:
            return ops.sum(self.critic(mixed))

        _, slope = step.gradients(total, share * real + (1 - share) * fake)
        norm = ops.sqrt(ops.sum(ops.square(slope), axis=1) + 1e-12)
        penalty = self.penalty * ops.mean(ops.square(norm - 1))
        return ops.mean(self.critic(fake)) - ops.mean(self.critic(real)) + penalty

    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        (reals, noises, shares), *_ = step.unpack(data)
        logs: dict[str, Any] = {}
        for i in range(CRITIC_STEPS):
            batch = reals[:, i], self.generator(noises[:, i]), shares[:, i]
            logs["critic_loss"] = step.minimize(
                lambda batch=batch: self.critic_loss(step, *batch),
                self.critic.trainable_variables,
                again=i > 0,
            )
        logs["generator_loss"] = step.minimize(
            lambda: -ops.mean(self.critic(self.generator(noises[:, -1], training=True))),
            self.generator.trainable_variables,
        )
        return logs


def build() -> WGAN:
    """Return a compiled model."""
    model = with_equal_start(WGAN())
    model.compile(
        optimizers={
            name: keras.optimizers.Adam(1e-3, 0.5, 0.9) for name in ("critic", "generator")
        },
        variables_to_train={"critic": model.critic, "generator": model.generator},
    )
    return model


def batches(steps: int) -> Batches:
    """Return batches of real digits, noise, and shares of real in mixtures with drawn ones."""
    (images, _), _ = digits()

    def batch(rng: np.random.Generator) -> tuple[Any]:
        real = images[rng.integers(len(images), size=(BATCH, CRITIC_STEPS))]
        noise = rng.normal(size=(BATCH, CRITIC_STEPS + 1, LATENT)).astype("float32")
        share = rng.uniform(size=(BATCH, CRITIC_STEPS, 1)).astype("float32")
        return ((real, noise, share),)

    return Batches(batch, steps)


def main() -> None:
    """Train, print the result, and draw it."""
    chosen = options(__doc__, steps=1000, picture="wgan_gp.png")
    (train, _), (held_out, _) = digits()
    noise = np.random.default_rng(1).normal(size=(1000, LATENT)).astype("float32")
    model = build()
    before = model.predict(noise, verbose=0)
    model.fit(batches(chosen.steps), shuffle=False, verbose=2)
    after = model.predict(noise, verbose=0)
    print(
        f"Fréchet distance to held-out digits: {frechet(before, held_out):.3f} before training, "
        f"{frechet(after, held_out):.3f} after, {frechet(train, held_out):.3f} of other real digits"
    )
    rows = {"before training": before[:16], "drawn": after[:16], "real": held_out[:16]}
    draw(rows, "WGAN-GP", chosen.output)


if __name__ == "__main__":
    main()
