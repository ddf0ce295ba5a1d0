"""A small network learns from the outputs of a larger one.

A teacher has learned from 1,200 labels. The student has 100 of these labels, and for all images the
teacher's probabilities, softened by a temperature. Images without a label have a sample weight of
0. The same student without the teacher is trained as long.

`python examples/custom_steps/distillation.py` prints accuracies on held-out digits.

References: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network".
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from common import Batches, accuracy, digits, drawn, mlp, options, with_equal_start
from keras import ops

import keras_trainops as kt

LABELS, BATCH = 100, 64


class Distiller(kt.TrainOpsMixin, keras.Model):
    """A student, and the teacher whose outputs it learns.

    Args:
        teacher: A trained network.
        share: The share of the teacher's outputs in the loss.
        temperature: Divides the logits of both.
    """

    def __init__(self, teacher: Any, share: float = 0.9, temperature: float = 3.0) -> None:
        super().__init__()
        self.student, self.teacher = mlp(64, 24, 10), teacher
        self.teacher.trainable = False
        self.share, self.temperature = share, temperature

    def call(self, images: Any) -> Any:
        return self.student(images)

    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        images, labels, weights = step.unpack(data)
        taught = ops.softmax(self.teacher(images, training=False) / self.temperature)

        def loss() -> tuple[Any, Any]:
            logits = self.student(images, training=True)
            alike = ops.softmax(logits / self.temperature)
            soft = ops.mean(keras.losses.kl_divergence(taught, alike)) * self.temperature**2
            hard = step.loss(images, labels, logits, weights)
            return self.share * soft + (1 - self.share) * hard, logits

        value, logits = step.minimize(loss, self.student.trainable_variables, aux=True)
        step.update_metrics(labels, logits, weights)
        return {"loss": value}


def trained_teacher(steps: int) -> Any:
    """Return a network that has learned from all labels."""
    (images, labels), _ = digits()
    teacher = with_equal_start(mlp(64, 128, 128, 10), seed=1)
    compile_for_labels(teacher)
    teacher.fit(drawn(steps, BATCH, images, labels), shuffle=False, verbose=0)
    return teacher


def compile_for_labels(model: Any) -> None:
    """Compile for logits and labels."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, weighted_metrics=["accuracy"])


def build(teacher: Any = None, share: float = 0.9) -> Distiller:
    """Return a compiled model; its teacher has random weights unless one is given."""
    model = Distiller(teacher or mlp(64, 128, 128, 10), share)
    with_equal_start(model if teacher is None else model.student)
    compile_for_labels(model)
    return model


def batches(steps: int) -> Batches:
    """Return batches of digits, labels and sample weights; a missing label has weight 0."""
    (images, labels), _ = digits()
    weights = (np.arange(len(images)) < LABELS).astype("float32") * len(images) / LABELS
    return drawn(steps, BATCH, images, labels, weights)


def main() -> None:
    """Train with and without the teacher, and print the results."""
    chosen = options(__doc__, steps=1500)
    _, held_out = digits()
    teacher = trained_teacher(chosen.steps)
    print(f"accuracy on held-out digits: {accuracy(teacher, held_out):.3f} teacher")
    for share, name in ((0.9, "student with the teacher"), (0.0, "student without it")):
        model = build(teacher, share)
        model.fit(batches(chosen.steps), shuffle=False, verbose=2)
        print(f"accuracy on held-out digits: {accuracy(model, held_out):.3f} {name}")


if __name__ == "__main__":
    main()
