"""The losses of `nets` in plain JAX on the CPU, for optax and other oracles."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from tests.gradients.nets import predicted


def loss(weights: Any, x: Any, y: Any, head: str = "head") -> Any:
    """The mean squared error of a batch."""
    return jnp.mean(jnp.square(predicted(weights, x, head, jnp.tanh) - y))


gradient = jax.jit(jax.grad(loss), static_argnames="head")


def stepping(transformation: Any) -> Any:
    """Return a function of gradients, a state and weights that steps as optax does, compiled.

    Not compiled, a transformation with a condition is traced again in each step.
    """

    @jax.jit
    def step(gradients: Any, state: Any, weights: Any) -> tuple[Any, Any]:
        changes, state = transformation.update(gradients, state, weights)
        return optax.apply_updates(weights, changes), state

    return step
