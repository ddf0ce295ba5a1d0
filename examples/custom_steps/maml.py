"""Model-agnostic meta-learning (MAML): weights that adapt to a new sine in a few steps.

Each task is a sine of another amplitude and phase. The training step adapts the weights to some
points of each task by two gradient steps, as other values of the same variables, and differentiates
the loss on further points through these steps. `evaluate` adapts to new tasks. The same network is
also trained on all tasks without adaptation.

`python examples/custom_steps/maml.py` prints the losses of both on new tasks, before and after
adaptation.

References: Finn et al. 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks".
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from common import Batches, mlp, options, with_equal_start
from keras import ops

import keras_trainops as kt

TASKS, POINTS = 4, 10


class MAML(kt.TrainOpsMixin, keras.Model):
    """A network that adapts to a task by gradient steps.

    Args:
        adaptations: The number of these steps in training; 0: ordinary training.
        rate: Their learning rate.
    """

    def __init__(self, adaptations: int = 2, rate: float = 0.02) -> None:
        super().__init__()
        self.adaptations, self.rate = adaptations, rate
        self.network = mlp(1, 40, 40, 1, activation="tanh")

    def call(self, x: Any) -> Any:
        return self.network(x)

    def error(self, x: Any, y: Any) -> Any:
        return ops.mean(ops.square(self(x) - y))

    def adapted(self, step: kt.Step, x: Any, y: Any, steps: int) -> list[Any]:
        variables = self.trainable_variables
        values = [ops.convert_to_tensor(variable) for variable in variables]
        for _ in range(steps):
            with step.values(variables, values):
                _, gradients = step.gradients(lambda: self.error(x, y), variables)
            pairs = zip(values, gradients, strict=True)
            values = [value - self.rate * gradient for value, gradient in pairs]
        return values

    def error_after(self, step: kt.Step, tasks: Any, steps: int) -> Any:
        x, y, further_x, further_y = tasks
        total = 0.0
        for i in range(TASKS):
            with step.values(self.trainable_variables, self.adapted(step, x[i], y[i], steps)):
                total = total + self.error(further_x[i], further_y[i])
        return total / TASKS

    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        tasks, *_ = step.unpack(data)
        return {"loss": step.minimize(lambda: self.error_after(step, tasks, self.adaptations))}

    def evaluation_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        tasks, *_ = step.unpack(data)
        before, after = (self.error_after(step, tasks, steps) for steps in (0, 5))
        return {"loss": after, "before": before}


def build(adaptations: int = 2) -> MAML:
    """Return a compiled model."""
    model = with_equal_start(MAML(adaptations))
    model.compile(keras.optimizers.Adam(3e-3))
    return model


def batches(steps: int, seed: int = 0) -> Batches:
    """Return batches of tasks: points to adapt to, and further ones, each (tasks, points, 1)."""

    def batch(rng: np.random.Generator) -> tuple[Any]:
        amplitude, phase = rng.uniform((0.1, 0), (5, np.pi), size=(TASKS, 2)).T[..., None, None]
        x = rng.uniform(-5, 5, size=(TASKS, 2 * POINTS, 1))
        y = amplitude * np.sin(x - phase)
        parts = (x[:, :POINTS], y[:, :POINTS], x[:, POINTS:], y[:, POINTS:])
        return (tuple(part.astype("float32") for part in parts),)

    return Batches(batch, steps, seed)


def main() -> None:
    """Train with and without adaptation, and print the results."""
    chosen = options(__doc__, steps=1000)
    for adaptations, name in ((2, "MAML"), (0, "trained on all tasks")):
        model = build(adaptations)
        model.fit(batches(chosen.steps), shuffle=False, verbose=2)
        found = model.evaluate(batches(40, seed=1), verbose=0, return_dict=True)
        print(
            f"squared error on new sines: {found['before']:.3f} before, {found['loss']:.3f} after "
            f"five steps on {POINTS} points, {name}"
        )


if __name__ == "__main__":
    main()
