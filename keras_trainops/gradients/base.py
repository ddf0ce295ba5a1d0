"""The protocol of sources of gradients."""

from __future__ import annotations

import functools
import itertools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import keras
from keras import ops

from keras_trainops.arguments import misplaced
from keras_trainops.representation import CallRepr
from keras_trainops.state import BoundToModel


class Losses(NamedTuple):
    """A loss that is split into parts; a function given to `step.minimize` may return one.

    Attributes:
        value: The loss, a scalar.
        parts: Scalars whose gradients may be in conflict. Only their gradients count.
        rest: A scalar with the gradient of everything else, such as penalties; None if there is
            nothing else. The gradient of `value` is the sum of theirs and this one.
    """

    value: Any
    parts: Sequence[Any]
    rest: Any = None


class Found(NamedTuple):
    """The result of a source.

    Attributes:
        value: The loss, for the logs and for updates.
        aux: The auxiliary results of the function that is minimised; None if there are none.
        gradients: One per variable, with its shape; dense and not scaled.
    """

    value: Any
    aux: Any
    gradients: Sequence[Any]


class StepLike(Protocol):
    """The methods of `keras_trainops.Step` that sources use."""

    model: Any

    def gradients(
        self,
        function: Callable[..., Any],
        sources: Any,
        *,
        aux: bool = ...,
        keep_updates: bool = ...,
    ) -> tuple[Any, Any]: ...

    def gradients_of_each(
        self,
        function: Callable[..., Any],
        variables: Sequence[keras.Variable],
        *,
        keep_updates: bool = ...,
    ) -> tuple[Any, list[list[Any]]]: ...

    def mean_of_examples(
        self,
        function: Callable[..., Any],
        variables: Sequence[keras.Variable],
        data: Any,
        change: Callable[[Sequence[Any]], Sequence[Any]],
        *,
        at_once: int | None = ...,
    ) -> tuple[Any, list[Any]]: ...

    def values(
        self,
        variables: Sequence[keras.Variable],
        tensors: Sequence[Any],
        *,
        keep_updates: bool = ...,
    ) -> AbstractContextManager[None]: ...

    def mean_over_replicas(self, tensors: Sequence[Any]) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Objective:
    """The function that a step minimises, and its data.

    Attributes:
        function: Returns a loss: a scalar, a list or dictionary of scalars, whose sum is the loss,
            or `Losses`. It is called with `data`, unless that is None.
        data: The batch, or None.
        aux: Whether `function` returns the loss and something else.
        keep_updates: Whether assignments of layers to weights happen, as in `step.gradients`.
    """

    function: Callable[..., Any]
    data: Any = None
    aux: bool = False
    keep_updates: bool = True

    def whole(self) -> tuple[Any, Any]:
        """Return the loss of the batch, a scalar, and the rest or None."""
        return self.of(self.data)

    def of(self, data: Any) -> tuple[Any, Any]:
        """Return the loss of other data of the same structure, a scalar, and the rest or None."""
        loss, rest = self._called(data)
        return _total(loss), rest

    def apart(self) -> tuple[Losses | None, Any]:
        """Return the parts of the loss, or None if it is a scalar; and the rest or None."""
        loss, rest = self._called(self.data)
        if isinstance(loss, Losses):
            return loss, rest
        parts = _parts(loss)
        return (None if parts is None else Losses(_total(loss), parts)), rest

    def _called(self, data: Any) -> tuple[Any, Any]:
        result = self.function() if data is None else self.function(data)
        if not self.aux:
            return result, None
        loss, rest = result
        return loss, rest


class GradientSource(CallRepr, BoundToModel):
    """Base class of sources of gradients: how a step computes the gradients of its loss.

    `step.minimize` calls a source with the step, whose methods work on every backend. It returns
    the gradients for the optimizer, which then go through accumulation, the mean over replicas and
    the gradient transforms.

    Subclasses override `__call__` and `get_config`. They keep no state, and register themselves
    with `keras.saving.register_keras_serializable`.

    Attributes:
        splits_losses: If True, the loss of a model with several outputs comes in parts, one
            per output; see `Objective.apart`.

    Example:
        >>> import keras, keras_trainops as kt
        >>> @keras.saving.register_keras_serializable(package="example")
        ... class SignOnly(kt.gradients.GradientSource):
        ...     def __call__(self, step, objective, variables):
        ...         (value, aux), gradients = step.gradients(
        ...             objective.whole, variables, aux=True, keep_updates=objective.keep_updates)
        ...         signs = [keras.ops.sign(g) for g in gradients]
        ...         return kt.gradients.Found(value, aux, signs)
    """

    argument = "compile(gradients=...)"
    splits_losses: bool = False

    @abstractmethod
    def __call__(
        self, step: StepLike, objective: Objective, variables: Sequence[keras.Variable]
    ) -> Found:
        """Compute the gradients of one batch, on this replica.

        Args:
            step: The step, as `training_step` gets it.
            objective: What it minimises.
            variables: The variables to train.

        Returns:
            The loss, the auxiliary results and the gradients.
        """

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as Keras serialises them."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GradientSource:
        """Create the source from its constructor's arguments."""
        return cls(**config)


def as_source(value: Any) -> GradientSource | None:
    """Return the source of gradients that a user passes, or None.

    Raises:
        ValueError: If `value` is neither.
    """
    if value is None or isinstance(value, GradientSource):
        return value
    why = misplaced(value) or f"Received: gradients={value!r}"
    raise ValueError(f"`gradients` must be a `keras_trainops.gradients.GradientSource`. {why}")


def checked(source: GradientSource, found: Any, variables: Sequence[keras.Variable]) -> Found:
    """Return the result of a source, if it fits the variables; runs once per trace.

    Raises:
        ValueError: If there are not as many gradients as variables, or shapes differ.
    """
    name = type(source).__name__
    if not isinstance(found, Found):
        raise ValueError(
            f"{name} must return a `keras_trainops.gradients.Found`. It returned {found!r}"
        )
    if len(found.gradients) != len(variables):
        raise ValueError(
            f"{name} returned {len(found.gradients)} gradients for {len(variables)} variables."
        )
    for gradient, variable in zip(found.gradients, variables, strict=True):
        if not hasattr(gradient, "shape"):
            raise ValueError(f"{name} returned {gradient!r} for {variable.path!r}.")
        shapes = itertools.zip_longest(gradient.shape, variable.shape, fillvalue=-1)
        if any(size is not None and size != wanted for size, wanted in shapes):
            raise ValueError(
                f"{name} returned a gradient of shape {tuple(gradient.shape)} for "
                f"{variable.path!r}, whose shape is {tuple(variable.shape)}."
            )
    return found


def _parts(loss: Any) -> list[Any] | None:
    """Return the losses in a list or dictionary; None if `loss` is one."""
    if isinstance(loss, Mapping):
        return list(loss.values())
    return list(loss) if isinstance(loss, (list, tuple)) else None


def _total(loss: Any) -> Any:
    if isinstance(loss, Losses):
        return loss.value
    parts = _parts(loss)
    return loss if parts is None else functools.reduce(ops.add, parts)
