"""The results of a differentiation, and the checks of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_trainops.backends import Gradient, backend
from keras_trainops.training.optimizers.loss_scale import LossScale


class Request(NamedTuple):
    """A request for the gradients of a function.

    Attributes:
        function: Called with those sources that are tensors; returns a scalar.
        sources: Variables and tensors.
        aux: Whether `function` returns the scalar and something else.
        keep_updates: Whether assignments of layers to weights, and those to metrics, happen.
        scale: The loss scale of the gradients; None if they have none.
        several: Whether `function` returns a vector of scalars in place of one.
    """

    function: Callable[..., Any]
    sources: Sequence[Any]
    aux: bool = False
    keep_updates: bool = True
    scale: LossScale | None = None
    several: bool = False


class Differentiated(NamedTuple):
    """The results of one differentiation.

    Attributes:
        value: The scalar.
        aux: The auxiliary results; None if there are none.
        gradients: One per source, as the backend has them: sparse, or None, and scaled. Of several
            scalars a list of these for each.
    """

    value: Any
    aux: Any
    gradients: Sequence[Gradient]


def as_source(source: Any) -> Any:
    """Return a variable, or a tensor made of anything else."""
    return source if isinstance(source, keras.Variable) else ops.convert_to_tensor(source)


def called(function: Callable[..., Any], tensors: Sequence[Any], aux: bool) -> tuple[Any, Any]:
    """Call a function, and return its scalar and the rest."""
    result = function(*tensors)
    value, extra = result if aux else (result, None)
    return ops.convert_to_tensor(value), extra


def finished(gradient: Gradient, source: Any, scale: LossScale | None) -> Any:
    """Return a gradient as `gradients` promises it: dense, not scaled, zero instead of None."""
    if gradient is None:
        return zeros_of(source)
    gradient = backend().dense(gradient)
    return gradient if scale is None else scale.unscaled(gradient, source)


def zeros_of(source: Any) -> Any:
    """Return zeros in the shape of a variable or tensor."""
    return ops.zeros_like(source.value if isinstance(source, keras.Variable) else source)


def require_dependence(gradients: Sequence[Gradient], sources: Sequence[Any]) -> None:
    """Check that a scalar depends on some of the sources.

    Raises:
        ValueError: If there is no gradient.
    """
    if sources and all(gradient is None for gradient in gradients):
        raise independent(sources)


def independent(sources: Sequence[Any]) -> ValueError:
    """Return the error for a function that depends on none of the sources."""
    names = [s.path if isinstance(s, keras.Variable) else f"a tensor {s.shape}" for s in sources]
    return ValueError(
        "The function that is differentiated does not depend on what it is differentiated by: "
        f"{', '.join(names)}. A tensor must be used as the function's argument, not from outside; "
        "a variable must belong to a layer that the function calls."
    )
