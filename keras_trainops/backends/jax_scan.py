"""Several steps of JAX in one call of a compiled function."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import keras
import numpy as np

_MOST = 1 << 26  # bytes of all batches of a call; the steps of larger ones hide what calls cost
_SLOW = "conv_general_dilated"


def in_one_call(function: Callable[..., Any], model: Any) -> Callable[..., Any]:
    """Return a train function that runs all steps of an execution in one call.

    Keras calls its compiled step for each of the `steps_per_execution`. Most of a step of a small
    model is the call. Here `jax.lax.scan` steps through the batches, if they have the same shapes,
    which those at the end of an epoch may not have. Batches that are divided among devices stay
    with Keras.

    Args:
        function: Keras's train function, of the state and an iterator.
        model: The model.
    """
    count = model.steps_per_execution
    compiled = model.jit_compile and not model.run_eagerly
    special = keras.distribution.distribution() is not None or keras.config.is_nnx_enabled()
    if count == 1 or special or not compiled:
        return function
    step = jax.jit(model.train_step)  # traced once, to look at it and for the scan
    scanned = jax.jit(lambda state, batches: _scanned(step, state, batches), donate_argnums=0)
    suits: dict[Hashable, bool] = {}

    def run(state: Any, iterator: Iterator[Any]) -> Any:
        first = next(iterator)  # which ends an epoch, if there is none
        kind = _kind_of(first, count)
        if kind not in suits:
            suits[kind] = kind is not None and _suits_a_scan(step, state, first)
        if not suits[kind]:  # Keras has one batch in memory at a time
            return function(state, itertools.chain([first], iterator))
        batches = [first, *itertools.islice(iterator, count - 1)]
        if len(batches) < count or any(_kind_of(batch, count) != kind for batch in batches):
            return function(state, iter(batches))
        return scanned(state, jax.tree.map(_stacked, *batches))

    return run


def _scanned(step: Callable[..., Any], state: Any, batches: Any) -> Any:
    """Return the logs of the last step, and the state after it."""

    def body(state: Any, batch: Any) -> tuple[Any, Any]:
        logs, state = step(state, batch)
        return _in_lists(state), logs

    state, logs = jax.lax.scan(body, _in_lists(state), batches)
    return jax.tree.map(lambda of_steps: of_steps[-1], logs), state


def _in_lists(state: Sequence[Any]) -> tuple[list[Any], ...]:
    return tuple(list(group) for group in state)


def _kind_of(batch: Any, count: int) -> Hashable | None:
    """Return what a compiled function depends on; None if so many batches are large, or odd."""
    leaves = jax.tree.leaves(batch)
    if not all(isinstance(leaf, (np.ndarray, jax.Array)) for leaf in leaves):
        return None  # such as numbers, which compiled functions also take
    return _signature(batch) if count * sum(x.nbytes for x in leaves) <= _MOST else None


def _signature(batch: Any) -> Hashable:
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _suits_a_scan(step: Any, state: Any, batch: Any) -> bool:
    """Return whether a step can run in a scan, and without loss.

    The state after it must have the shapes and dtypes of that before. A step could, for example,
    assign float32 values to float16 variables, which Keras casts at the end of an epoch only. On a
    CPU, a convolution inside of a scan takes up to 15 times as long.
    """
    traced = step.trace(state, batch)
    _, after = traced.out_info
    if _signature(_in_lists(state)) != _signature(_in_lists(after)):
        return False
    return jax.default_backend() != "cpu" or _SLOW not in _primitives(traced.jaxpr)


def _primitives(jaxpr: Any) -> set[str]:
    """Return the names of all operations, those of inner functions included."""
    names = set[str]()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "eqns"):
                names |= _primitives(inner)
    return names


def _stacked(*leaves: Any) -> Any:
    stack = np.stack if isinstance(leaves[0], np.ndarray) else jax.numpy.stack
    return stack(leaves)
