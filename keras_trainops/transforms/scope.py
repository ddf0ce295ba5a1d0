"""The weight update that transforms run for: its number, its schedules and its skipping."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from keras import ops

from keras_trainops.scalars import is_schedule, value_at


@dataclass
class WeightUpdateScope:
    """One weight update, while the chain runs for it.

    Attributes:
        iterations: Returns the number of weight updates before this one.
        skips: Conditions under which the update is skipped.
    """

    iterations: Callable[[], Any]
    skips: list[Any] = field(default_factory=list)

    def skip(self) -> Any:
        """Return whether any condition holds; None without conditions."""
        return ops.any(ops.stack(self.skips)) if self.skips else None


_scope: contextvars.ContextVar[WeightUpdateScope] = contextvars.ContextVar("update_scope")


@contextmanager
def update_scope(iterations: Callable[[], Any]) -> Iterator[WeightUpdateScope]:
    """Set the weight update that the chain runs for."""
    token = _scope.set(WeightUpdateScope(iterations))
    try:
        yield _scope.get()
    finally:
        _scope.reset(token)


def skip_update_if(condition: Any) -> None:
    """Skip the weight update that the running transform belongs to, if `condition` holds.

    Weights, the optimizer's state including its iteration count, and the state of transforms keep
    their values; variables made with `add_variable(..., held=False)` are assigned anyway.

    Args:
        condition: A scalar boolean tensor.

    Raises:
        RuntimeError: If the transform does not run in an optimizer.

    Example:
        >>> import keras, keras_trainops as kt
        >>> def skip_zeros(gradients, variables):
        ...     norms = [keras.ops.norm(g) for g in gradients if g is not None]
        ...     kt.transforms.skip_update_if(sum(norms) == 0)
        ...     return gradients
        >>> optimizer = kt.TransformedOptimizer(keras.optimizers.SGD(0.1), skip_zeros)
    """
    _current("Only a transform that an optimizer runs can skip a weight update").skips.append(
        ops.cast(condition, "bool")
    )


def value_of(number: Any) -> Any:
    """Return the value of a constant, schedule or scalar variable in the current weight update.

    Raises:
        RuntimeError: If `number` is a schedule and the transform does not run in an optimizer.
    """
    return value_at(number, updates_before("A schedule") if is_schedule(number) else None)


def updates_before(what: str) -> Any:
    """Return the number of weight updates before the current one.

    Args:
        what: What depends on it, for the message.

    Raises:
        RuntimeError: If the transform does not run in an optimizer.
    """
    return _current(f"{what} has a value only while an optimizer runs it").iterations()


def _current(complaint: str) -> WeightUpdateScope:
    scope = _scope.get(None)
    if scope is None:
        raise RuntimeError(
            f"{complaint}: pass the transform to `compile(gradient_transforms=...)` or to "
            "`TransformedOptimizer`."
        )
    return scope
