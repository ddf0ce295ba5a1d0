"""Adversarial training: a network learns from digits that were changed to mislead it.

An attack moves the pixels along the sign of the loss's gradient by the image, several times, and
within a small distance (projected gradient descent, PGD). `evaluate` attacks held-out digits in the
same way. The same network is also trained on the unchanged digits.

`python examples/custom_steps/adversarial.py` prints the accuracies of both, with and without an
attack.

References: Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks".
"""

from __future__ import annotations

from typing import Any

import keras
from common import Batches, digits, drawn, mlp, options, with_equal_start
from keras import ops

import keras_trainops as kt

BATCH = 64


class Robust(kt.TrainOpsMixin, keras.Model):
    """A classifier that trains on attacked images.

    Args:
        radius: The largest change of a pixel.
        attacks: The number of attacks on each image in training; 0: ordinary training.
    """

    def __init__(self, radius: float = 0.15, attacks: int = 4) -> None:
        super().__init__()
        self.radius, self.attacks = radius, attacks
        self.network = mlp(64, 128, 128, 10, activation="silu")

    def call(self, images: Any) -> Any:
        return self.network(images)

    def attacked(self, step: kt.Step, images: Any, labels: Any, attacks: int) -> Any:
        def loss(changed: Any) -> Any:
            return step.loss(changed, labels, self(changed, training=False))

        changed = images
        for _ in range(attacks):
            _, slope = step.gradients(loss, changed)
            changed = changed + 2 * self.radius / attacks * ops.sign(slope)
            changed = images + ops.clip(changed - images, -self.radius, self.radius)
            changed = ops.clip(changed, 0.0, 1.0)
        return changed

    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        images, labels, _ = step.unpack(data)
        changed = self.attacked(step, images, labels, self.attacks)

        def loss() -> tuple[Any, Any]:
            logits = self(changed, training=True)
            return step.loss(changed, labels, logits), logits

        value, logits = step.minimize(loss, aux=True)
        step.update_metrics(labels, logits)
        return {"loss": value}

    def evaluation_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        images, labels, _ = step.unpack(data)
        logits = step.forward(images)
        changed = self.attacked(step, images, labels, attacks=10)
        step.update_metrics(labels, logits)
        hit = keras.metrics.sparse_categorical_accuracy(labels, self(changed, training=False))
        return {"loss": step.loss(images, labels, logits), "attacked_accuracy": ops.mean(hit)}


def build(attacks: int = 4) -> Robust:
    """Return a compiled model."""
    model = with_equal_start(Robust(attacks=attacks))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    return model


def batches(steps: int) -> Batches:
    """Return batches of digits and labels."""
    (images, labels), _ = digits()
    return drawn(steps, BATCH, images, labels)


def main() -> None:
    """Train with and without attacks, and print the results."""
    chosen = options(__doc__, steps=600)
    _, held_out = digits()
    for attacks, name in ((4, "trained on attacked digits"), (0, "trained on plain digits")):
        model = build(attacks)
        model.fit(batches(chosen.steps), shuffle=False, verbose=2)
        found = model.evaluate(*held_out, verbose=0, return_dict=True)
        print(
            f"accuracy on held-out digits: {found['accuracy']:.3f}, attacked: "
            f"{found['attacked_accuracy']:.3f}, {name}"
        )


if __name__ == "__main__":
    main()
