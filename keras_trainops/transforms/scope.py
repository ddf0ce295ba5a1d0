"""What transforms may ask and say about the weight update that they run for."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import ops

from keras_trainops.scalars import Number, is_schedule, value_at


@dataclass
class UpdateScope:
    """One weight update, while the chain runs for it.

    Attributes:
        iterations: Gives the number of weight updates before this one.
        skips: The conditions under which it is not made.
    """

    iterations: Callable[[], Any]
    skips: list[Any] = field(default_factory=list)

    def skip(self) -> Any:
        """Whether any of the conditions holds; None where there is none."""
        return ops.any(ops.stack(self.skips)) if self.skips else None


_scope: contextvars.ContextVar[UpdateScope] = contextvars.ContextVar("update_scope")
_owners: contextvars.ContextVar[Mapping[int, keras.layers.Layer]] = contextvars.ContextVar("owners")


@contextmanager
def update_scope(iterations: Callable[[], Any]) -> Iterator[UpdateScope]:
    """Says, while a chain runs, which weight update it runs for."""
    token = _scope.set(UpdateScope(iterations))
    try:
        yield _scope.get()
    finally:
        _scope.reset(token)


def skip_update_if(condition: Any) -> None:
    """Leaves out the weight update that the running transform belongs to, where `condition` holds.

    Weights, the optimizer's state (its iteration count too) and the state of transforms stay as
    they are; what `add_variable(..., held=False)` made is written all the same.

    Args:
        condition: A scalar boolean tensor.

    Raises:
        RuntimeError: If no optimizer runs the transform.
    """
    _current("Only a transform that an optimizer runs can skip a weight update").skips.append(
        ops.cast(condition, "bool")
    )


def value_of(number: Number) -> Any:
    """A number's value in the current weight update: schedules are asked for it.

    Raises:
        RuntimeError: If `number` is a schedule and no optimizer runs the transform.
    """
    if not is_schedule(number):
        return number
    why = "A schedule has a value only while an optimizer runs it"
    return value_at(number, _current(why).iterations())


def _current(complaint: str) -> UpdateScope:
    scope = _scope.get(None)
    if scope is None:
        raise RuntimeError(
            f"{complaint}: pass the transform to `compile(gradient_transforms=...)` or to "
            "`TransformedOptimizer`."
        )
    return scope


@contextmanager
def owners_scope(layers: Sequence[keras.layers.Layer]) -> Iterator[None]:
    """Says, while a chain is built, which layer each variable belongs to: the innermost."""
    owners: dict[int, keras.layers.Layer] = {}
    for layer in sorted(layers, key=lambda layer: -len(layer.variables)):
        owners.update({id(variable): layer for variable in layer.variables})
    token = _owners.set(owners)
    try:
        yield
    finally:
        _owners.reset(token)


def owner_of(variable: keras.Variable) -> keras.layers.Layer | None:
    """The layer that `variable` belongs to, where it is known while transforms are built."""
    return _owners.get({}).get(id(variable))
