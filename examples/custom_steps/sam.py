"""Sharpness-aware minimisation (SAM), with labels of which three in ten are wrong.

The gradient is computed at other values of the weights: where, to first order, the loss is largest
within a small distance. The same network is also trained by plain SGD, which memorises more of the
wrong labels.

`python examples/custom_steps/sam.py` prints the accuracies of both on held-out digits, and their
sharpness: by how much the loss rises within that distance of the weights.

References: Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving
Generalization".
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from common import Batches, digits, drawn, mlp, options, with_equal_start
from keras import ops

import keras_trainops as kt

BATCH = 64


class SAM(kt.TrainOpsMixin, keras.Model):
    """A classifier that trains on the gradients of the worst weights nearby.

    Args:
        distance: How far away these are; 0: plain SGD.
    """

    def __init__(self, distance: float = 0.2) -> None:
        super().__init__()
        self.distance = distance
        self.network = mlp(64, 128, 128, 10, norm=True)

    def call(self, images: Any) -> Any:
        return self.network(images)

    def worst(self, gradients: list[Any], distance: float) -> list[Any]:
        norm = ops.sqrt(sum(ops.sum(ops.square(each)) for each in gradients) + 1e-12)
        pairs = zip(self.trainable_variables, gradients, strict=True)
        return [variable + distance / norm * gradient for variable, gradient in pairs]

    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        images, labels, _ = step.unpack(data)
        variables = self.trainable_variables

        def loss() -> tuple[Any, Any]:
            logits = step.forward(images)
            return step.loss(images, labels, logits), logits

        (value, logits), gradients = step.gradients(loss, variables, aux=True)
        # Batch-norm statistics are those of the first pass.
        with step.values(variables, self.worst(gradients, self.distance), keep_updates=False):
            _, gradients = step.gradients(loss, variables, aux=True)
        step.apply(gradients, variables)
        step.update_metrics(labels, logits)
        return {"loss": value}

    def evaluation_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        images, labels, _ = step.unpack(data)
        variables = self.trainable_variables

        def loss() -> tuple[Any, Any]:
            logits = step.forward(images)
            return step.loss(images, labels, logits), logits

        (value, logits), gradients = step.gradients(loss, variables, aux=True)
        with step.values(variables, self.worst(gradients, 0.2)):
            sharpness = loss()[0] - value
        step.update_metrics(labels, logits)
        return {"loss": value, "sharpness": sharpness}


def build(distance: float = 0.2) -> SAM:
    """Return a compiled model."""
    model = with_equal_start(SAM(distance))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
    return model


def noisy_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return digits and labels, of which three in ten are wrong."""
    (images, labels), _ = digits()
    rng = np.random.default_rng(2)
    wrong = (labels + rng.integers(1, 10, size=len(labels))) % 10
    return images, np.where(rng.uniform(size=len(labels)) < 0.3, wrong, labels).astype("int32")


def batches(steps: int) -> Batches:
    """Return batches of digits and labels."""
    images, labels = noisy_digits()
    return drawn(steps, BATCH, images, labels)


def main() -> None:
    """Train in both ways, and print the results."""
    chosen = options(__doc__, steps=1000)
    _, held_out = digits()
    for distance, name in ((0.2, "SAM"), (0.0, "SGD")):
        model = build(distance)
        model.fit(batches(chosen.steps), shuffle=False, verbose=2)
        found = model.evaluate(*held_out, verbose=0, return_dict=True)
        sharpness = model.evaluate(*noisy_digits(), batch_size=1200, verbose=0, return_dict=True)
        print(
            f"accuracy on held-out digits: {found['accuracy']:.3f}, sharpness: "
            f"{sharpness['sharpness']:.3f}, {name}"
        )


if __name__ == "__main__":
    main()
