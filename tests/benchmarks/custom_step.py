"""Cost of a custom training step, compared with steps that are written for one backend.

`default` compares Keras's own step with the same step as a text of the user's. `wgan` compares the
WGAN-GP of `examples/custom_steps` with steps that are written in TensorFlow, JAX or PyTorch as in
Keras's guides. The rounds are paired as in `step_time.py`.

    KERAS_BACKEND=jax python tests/benchmarks/custom_step.py [--quick] [default] [wgan]
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "custom_steps"))

import keras
import numpy as np
import wgan_gp
from step_time import BACKEND, CASES, Case, epoch_in_fit, fresh, interleave, mlp, residual, table

import keras_trainops as kt

TARGET = 1.03
TORCH_CASES = {
    "mlp": Case(mlp, (64,), steps=100, rounds=24, first_fits=0),
    "residual": Case(residual, (64,), steps=10, rounds=12, first_fits=0),
}
CRITICS = wgan_gp.CRITIC_STEPS
RATE, BETAS, PENALTY = 1e-3, (0.5, 0.9), 10.0


class Default(kt.TrainOpsMixin, keras.Model):
    """The mixin's step, as a text of the user's."""

    def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
        return super().training_step(step, data)


def default_step(name: str, case: Case, rounds: int) -> None:
    """Seconds of a step in `fit`."""
    fresh()
    x, y = case.data(case.steps)

    def compiled(kind: Any) -> Any:
        keras.utils.set_random_seed(1)
        net = case.build()
        model = kind(net.inputs, net.outputs)
        model.compile("adam", "mse")
        return model

    models = {
        "Keras": compiled(keras.Model),
        "Keras again": compiled(keras.Model),
        "training_step": compiled(Default),
    }
    runs = {key: functools.partial(epoch_in_fit, model, x, y) for key, model in models.items()}
    seconds = interleave(runs, rounds, f"default, {name}")
    title = f"Step in fit: {name}, batch 16, {case.steps} steps an epoch"
    table(title, seconds, case.steps, {"training_step": TARGET})


class HandWritten(keras.Model):
    """The networks of the WGAN-GP, with an optimizer and a logged loss for each."""

    def __init__(self) -> None:
        super().__init__()
        networks = wgan_gp.build()
        self.generator, self.critic = networks.generator, networks.critic
        self.critic_mean = keras.metrics.Mean(name="critic_loss")
        self.generator_mean = keras.metrics.Mean(name="generator_loss")

    @property
    def metrics(self) -> list[Any]:
        return [self.critic_mean, self.generator_mean]

    def compile_both(self) -> HandWritten:
        """Compile with an optimizer for each network."""
        self.compile()
        self.critic_optimizer = keras.optimizers.Adam(RATE, *BETAS)
        self.generator_optimizer = keras.optimizers.Adam(RATE, *BETAS)
        self.critic_optimizer.build(self.critic.trainable_variables)
        self.generator_optimizer.build(self.generator.trainable_variables)
        self.built = True
        return self


class OnTensorFlow(HandWritten):
    """Steps with gradient tapes."""

    def train_step(self, data: Any) -> dict[str, Any]:
        import tensorflow as tf

        (reals, noises, shares), *_ = keras.utils.unpack_x_y_sample_weight(data)
        critic, generator = self.critic.trainable_variables, self.generator.trainable_variables
        loss: Any = None
        for i in range(CRITICS):
            real, share, fake = reals[:, i], shares[:, i], self.generator(noises[:, i])
            with tf.GradientTape() as tape:
                mixed = share * real + (1 - share) * fake
                with tf.GradientTape() as inner:
                    inner.watch(mixed)
                    total = tf.reduce_sum(self.critic(mixed))
                slope = inner.gradient(total, mixed)
                norm = tf.sqrt(tf.reduce_sum(tf.square(slope), axis=1) + 1e-12)
                penalty = PENALTY * tf.reduce_mean(tf.square(norm - 1))
                loss = tf.reduce_mean(self.critic(fake)) - tf.reduce_mean(self.critic(real))
                loss += penalty
            self.critic_optimizer.apply(tape.gradient(loss, critic), critic)
        with tf.GradientTape() as tape:
            fake = self.generator(noises[:, -1], training=True)
            generator_loss = -tf.reduce_mean(self.critic(fake))
        self.generator_optimizer.apply(tape.gradient(generator_loss, generator), generator)
        self.critic_mean.update_state(loss)
        self.generator_mean.update_state(generator_loss)
        return {metric.name: metric.result() for metric in self.metrics}


class OnTorch(HandWritten):
    """Steps with `backward`."""

    def train_step(self, data: Any) -> dict[str, Any]:
        import torch

        (reals, noises, shares), *_ = keras.utils.unpack_x_y_sample_weight(data)
        critic, generator = self.critic.trainable_variables, self.generator.trainable_variables
        loss: Any = None
        for i in range(CRITICS):
            real, share = reals[:, i], shares[:, i]
            with torch.no_grad():
                fake = self.generator(noises[:, i])
            self.zero_grad()
            mixed = (share * real + (1 - share) * fake).requires_grad_()
            (slope,) = torch.autograd.grad(self.critic(mixed).sum(), mixed, create_graph=True)
            norm = torch.sqrt(torch.square(slope).sum(1) + 1e-12)
            penalty = PENALTY * torch.square(norm - 1).mean()
            loss = self.critic(fake).mean() - self.critic(real).mean() + penalty
            loss.backward()
            with torch.no_grad():
                self.critic_optimizer.apply([v.value.grad for v in critic], critic)
        self.zero_grad()
        generator_loss = -self.critic(self.generator(noises[:, -1], training=True)).mean()
        generator_loss.backward()
        with torch.no_grad():
            self.generator_optimizer.apply([v.value.grad for v in generator], generator)
        self.critic_mean.update_state(loss.detach())
        self.generator_mean.update_state(generator_loss.detach())
        return {metric.name: metric.result() for metric in self.metrics}


class Both:
    """The state of two optimizers, where Keras's JAX trainer looks for that of one."""

    built = True

    def __init__(self, first: Any, second: Any) -> None:
        self.variables = [*first.variables, *second.variables]


class OnJAX(HandWritten):
    """Steps with pure functions."""

    def compile_both(self) -> OnJAX:
        super().compile_both()
        self.optimizer = Both(self.critic_optimizer, self.generator_optimizer)
        return self

    def train_step(self, state: Any, data: Any) -> tuple[dict[str, Any], Any]:
        import jax
        import jax.numpy as jnp

        weights, others, slots, metrics = state
        (reals, noises, shares), *_ = keras.utils.unpack_x_y_sample_weight(data)
        split = len(self.generator.trainable_variables)
        generator, critic = weights[:split], weights[split:]
        split = len(self.critic_optimizer.variables)
        critic_slots, generator_slots = slots[:split], slots[split:]

        def rated(critic: Any, images: Any) -> Any:
            return self.critic.stateless_call(critic, [], images)[0]

        def drawn(generator: Any, noise: Any, training: bool = False) -> Any:
            return self.generator.stateless_call(generator, [], noise, training=training)[0]

        def critic_loss(critic: Any, real: Any, fake: Any, share: Any) -> Any:
            mixed = share * real + (1 - share) * fake
            slope = jax.grad(lambda images: jnp.sum(rated(critic, images)))(mixed)
            norm = jnp.sqrt(jnp.sum(jnp.square(slope), axis=1) + 1e-12)
            penalty = PENALTY * jnp.mean(jnp.square(norm - 1))
            return jnp.mean(rated(critic, fake)) - jnp.mean(rated(critic, real)) + penalty

        def generator_loss(generator: Any) -> Any:
            return -jnp.mean(rated(critic, drawn(generator, noises[:, -1], training=True)))

        loss: Any = None
        for i in range(CRITICS):
            batch = reals[:, i], drawn(generator, noises[:, i]), shares[:, i]
            loss, gradients = jax.value_and_grad(critic_loss)(critic, *batch)
            critic, critic_slots = self.critic_optimizer.stateless_apply(
                critic_slots, gradients, critic
            )
        last, gradients = jax.value_and_grad(generator_loss)(generator)
        generator, generator_slots = self.generator_optimizer.stateless_apply(
            generator_slots, gradients, generator
        )
        logs, updated = {}, []
        for metric, value in zip(self.metrics, (loss, last), strict=True):
            values = metrics[len(updated) : len(updated) + len(metric.variables)]
            values = metric.stateless_update_state(values, value)
            logs[metric.name] = metric.stateless_result(values)
            updated += values
        slots = [*critic_slots, *generator_slots]
        return logs, ([*generator, *critic], others, slots, updated)


HAND_WRITTEN: dict[str, Callable[[], HandWritten]] = {
    "tensorflow": OnTensorFlow,
    "jax": OnJAX,
    "torch": OnTorch,
}


def wgan(rounds: int, steps: int) -> None:
    """Seconds of a step in `fit`."""
    fresh()
    batches = wgan_gp.batches(steps)
    parts = zip(*(batches[i][0] for i in range(steps)), strict=True)
    x = tuple(np.concatenate(part) for part in parts)
    by_hand = HAND_WRITTEN[BACKEND]
    models = {
        "by hand": by_hand().compile_both(),
        "by hand again": by_hand().compile_both(),
        "training_step": wgan_gp.build(),
    }
    few = tuple(part[: 10 * wgan_gp.BATCH] for part in x)
    fit = functools.partial(epoch_in_fit, y=None, batch_size=wgan_gp.BATCH)
    for model in models.values():
        fit(model, few)
    first, _, last = (model.get_weights() for model in models.values())
    apart = max(float(np.abs(a - b).max()) for a, b in zip(first, last, strict=True))
    runs = {key: functools.partial(fit, model, x) for key, model in models.items()}
    title = f"Step in fit: WGAN-GP, batch {wgan_gp.BATCH}, {CRITICS} critic updates"
    table(title, interleave(runs, rounds, "wgan"), steps, {"training_step": TARGET})
    print(f"  No weight of the two differed by more than {apart:.1e} after 10 steps.")


def main() -> None:
    cases = CASES.get(BACKEND, TORCH_CASES)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sections", nargs="*", help="of default, wgan")
    parser.add_argument("--case", action="append", choices=cases, help="default: all")
    parser.add_argument("--quick", action="store_true", help="a smoke test: mlp only, few rounds")
    parser.add_argument("--rounds", type=int, help="of everything")
    options = parser.parse_args()
    chosen = options.sections or ["default", "wgan"]
    if not set(chosen) <= {"default", "wgan"}:
        parser.error("the sections are: default, wgan")

    def rounds(usual: int) -> int:
        return options.rounds or (min(usual, 5) if options.quick else usual)

    print(", ".join(f"{p} {version(p)}" for p in ("keras", BACKEND, "numpy", "keras_trainops")))
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load average {load}; {', '.join(chosen)}")
    if "default" in chosen:
        for name in options.case or (["mlp"] if options.quick else list(cases)):
            default_step(name, cases[name], rounds(cases[name].rounds))
    if "wgan" in chosen:
        wgan(rounds(24), steps=20 if BACKEND == "torch" else 100)


if __name__ == "__main__":
    main()
