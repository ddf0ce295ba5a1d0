"""The losses of `nets` in plain JAX on the CPU, for optax and other oracles."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tests.gradients.nets import predicted


def loss(weights: Any, x: Any, y: Any, head: str = "head") -> Any:
    """The mean squared error of a batch."""
    return jnp.mean(jnp.square(predicted(weights, x, head, jnp.tanh) - y))


gradient = jax.jit(jax.grad(loss), static_argnames="head")
