"""Which text of a step a model has: its own, or the mixin's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

TRAINING, EVALUATION = "training_step", "evaluation_step"

Method = TypeVar("Method", bound=Callable[..., Any])


def text_of(model: Any, method: str) -> Callable[..., Any]:
    """Return the method of a model that makes its steps.

    A class that `with_train_ops` extends comes after the mixin in the MRO, and still goes first.

    Args:
        model: A model with `TrainOpsMixin`.
        method: `TRAINING` or `EVALUATION`.
    """
    own = _own(type(model), method)
    return getattr(model, method) if own is None else own.__get__(model)


def has_own_text(model: Any, method: str) -> bool:
    """Return whether a class of the user's defines the step, instead of the mixin."""
    return _own(type(model), method) is not None


def _own(cls: type, method: str) -> Any:
    found = (vars(base)[method] for base in cls.__mro__ if method in vars(base))
    return next((function for function in found if not hasattr(function, "of_mixin")), None)


def of_mixin(function: Method) -> Method:
    """Mark a step as the mixin's."""
    function.of_mixin = True  # type: ignore[attr-defined]
    return function
