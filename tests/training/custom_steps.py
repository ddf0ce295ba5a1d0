"""Models with their own training steps, which several test files use."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

import keras_trainops as kt

RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=(24, 6)).astype("float32")
REAL = RNG.normal(size=(24, 2)).astype("float32")


def network(name: str, inputs: int, outputs: int) -> keras.Model:
    """Two dense layers around a batch normalisation; there is no bias without a gradient."""
    tensor = keras.Input((inputs,))
    x = keras.layers.Dense(5, use_bias=False, name=f"{name}_in")(tensor)
    x = keras.layers.BatchNormalization(name=f"{name}_norm")(x)
    x = keras.layers.Dense(outputs, use_bias=False, name=f"{name}_out")(keras.ops.tanh(x))
    return keras.Model(tensor, x, name=name)


@keras.saving.register_keras_serializable("tests")
class Adversaries(kt.TrainOpsMixin, keras.Model):
    """A generator and a critic, which two optimizers train in one step."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        keras.utils.set_random_seed(1)
        self.generator, self.critic = network("generator", 6, 2), network("critic", 2, 1)

    def critic_loss(self, fake: Any, real: Any) -> Any:
        score = self.critic(real, training=True)
        gap = ops.mean(self.critic(fake, training=True)) - ops.mean(score)
        return gap + 0.1 * ops.mean(score**2)

    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        noise, real, _ = step.unpack(data)
        fake = self.generator(noise, training=True)
        variables = self.critic.trainable_variables
        of_critic, gradients = step.gradients(lambda: self.critic_loss(fake, real), variables)
        step.apply(gradients, variables)

        def loss() -> Any:
            return -ops.mean(self.critic(self.generator(noise, training=True), training=True))

        of_generator = step.minimize(loss, self.generator.trainable_variables)
        return {"critic": of_critic, "generator": of_generator}


def adversaries(optimizers: Any = None, **options: Any) -> Any:
    """Return the model, compiled."""
    model: Any = Adversaries()
    model.compile(
        optimizers=optimizers
        or {"critic": keras.optimizers.Adam(0.01), "generator": keras.optimizers.Adam(0.02)},
        variables_to_train={"critic": model.critic, "generator": model.generator},
        **options,
    )
    return model


def fit(model: Any, **options: Any) -> dict[str, list[float]]:
    """Train for an epoch of six batches, and return the logs."""
    options = {"batch_size": 4, "shuffle": False, "verbose": 0, **options}
    return model.fit(NOISE, REAL, **options).history


def stepping(text: Any, layers: int = 1, **options: Any) -> Any:
    """Return a compiled dense model whose training step is `text(model, step, data)`."""

    class Own(kt.TrainOpsMixin, keras.Model):
        def training_step(self, step: kt.Step, data: Any) -> Any:
            return text(self, step, data)

    x = inputs = keras.Input((6,))
    for i in range(layers):
        x = keras.layers.Dense(2, name=f"dense_{i}", kernel_initializer="ones")(x)
    model: Any = Own(inputs, x)
    model.compile(**{"optimizer": keras.optimizers.SGD(0.1), "loss": "mse", **options})
    return model
