"""Bootstrap your own latent (BYOL): an encoder learns from digits without labels.

From one view of a digit, the online network predicts the output of the target network for another
view. The target follows the online network by `TargetNetwork`, without gradients. The views, which
are turned, scaled and shifted, come with the batch.

`python examples/custom_steps/byol.py` prints the accuracy of a linear classifier of the encoder's
outputs that has ten labels of each class, before and after the encoder is trained.

References: Grill et al. 2020, "Bootstrap Your Own Latent".
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from common import Batches, digits, mlp, options, with_equal_start
from keras import ops
from sklearn.linear_model import LogisticRegression

import keras_trainops as kt

WIDTH, BATCH = 64, 128


def network() -> keras.Sequential:
    """Return an encoder, and a projector that is used in training only."""
    encoder = mlp(64, 128, 128, WIDTH, norm=True, last_bias=False)
    projector = mlp(WIDTH, 64, 32, norm=True, last_bias=False)
    return keras.Sequential([encoder, projector])


class BYOL(kt.TrainOpsMixin, keras.Model):
    """An online network with a predictor, and a target network."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.target, self.predictor = network(), network(), mlp(32, 64, 32, norm=True)
        self.target.trainable = False

    def call(self, images: Any) -> Any:
        return self.online.layers[0](images)

    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        (first, second), *_ = step.unpack(data)
        goals = [self.target(view, training=True) for view in (second, first)]

        def loss() -> Any:
            total = 0.0
            for view, goal in zip((first, second), goals, strict=True):
                found = self.predictor(self.online(view, training=True), training=True)
                total += ops.mean(keras.losses.cosine_similarity(goal, found))
            return total

        variables = self.online.trainable_variables + self.predictor.trainable_variables
        return {"loss": step.minimize(loss, variables)}


def build() -> BYOL:
    """Return a compiled model."""
    model = with_equal_start(BYOL())
    follow = kt.updates.TargetNetwork(model.online, model.target, tau=0.05)
    model.compile(keras.optimizers.Adam(4e-3), updates=[kt.updates.LayerUpdates(), follow])
    return model


def views(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn, scale and shift each image (n, 64), by bilinear interpolation."""
    count = len(images)
    angle, size = rng.uniform(-0.35, 0.35, count), rng.uniform(0.8, 1.25, count)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * size
    grid = np.indices((8, 8)).reshape(2, 64) - 3.5
    shift = rng.uniform(-1, 1, size=(2, count, 1))
    row, column = np.einsum("ijn,jp->inp", turn, grid) + shift + 3.5
    padded = np.pad(images.reshape(-1, 8, 8), ((0, 0), (4, 4), (4, 4)))
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    result = np.zeros((count, 64))
    for i in (0, 1):
        for j in (0, 1):
            share = (1 - abs(row - top - i)) * (1 - abs(column - left - j))
            at = np.clip(top + i + 4, 0, 15), np.clip(left + j + 4, 0, 15)
            result += share * padded[np.arange(count)[:, None], *at]
    return result.astype("float32")


def batches(steps: int) -> Batches:
    """Return batches of two views of each digit."""
    (images, _), _ = digits()

    def batch(rng: np.random.Generator) -> tuple[Any]:
        chosen = images[rng.integers(len(images), size=BATCH)]
        return ((views(chosen, rng), views(chosen, rng)),)

    return Batches(batch, steps)


def probe(model: BYOL, per_class: int = 10) -> float:
    """Return the accuracy of a linear classifier on held-out digits, from a few labels."""
    (images, labels), (held_out, answers) = digits()
    few = np.concatenate([np.flatnonzero(labels == i)[:per_class] for i in range(10)])
    known, unknown = (model.predict(x, verbose=0) for x in (images[few], held_out))
    mean, scale = known.mean(0), known.std(0) + 1e-6
    classifier = LogisticRegression(max_iter=1000).fit((known - mean) / scale, labels[few])
    return float(classifier.score((unknown - mean) / scale, answers))


def main() -> None:
    """Train, and print the result."""
    chosen = options(__doc__, steps=1000)
    model = build()
    before = probe(model)
    model.fit(batches(chosen.steps), shuffle=False, verbose=2)
    print(
        f"accuracy of a linear classifier on held-out digits: {before:.3f} on a random encoder, "
        f"{probe(model):.3f} on the trained one"
    )


if __name__ == "__main__":
    main()
