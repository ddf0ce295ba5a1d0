"""The types that pass between the library and a backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import keras

T = TypeVar("T")
Gradient: TypeAlias = Any  # a backend tensor, or None where the loss does not depend on a variable
Assignment: TypeAlias = "tuple[keras.Variable, Any]"  # a variable and its new value
Differentiable: TypeAlias = "Callable[[Sequence[Assignment], Sequence[Any]], tuple[Any, T]]"
GroupFunction: TypeAlias = "Callable[[T, Any], tuple[T, Any]]"  # (carry, group) -> both
OfExample: TypeAlias = "Callable[[Sequence[Assignment], Sequence[Any]], tuple[Any, tuple[T, Any]]]"
StepFunction: TypeAlias = "Callable[[Any, Any], dict[str, Any]]"  # (model, data) -> logs


class GradientChain(Protocol):
    """A chain of gradient transforms, as `Backend.reduce_and_transform` calls it.

    Attributes:
        row_sparse: Whether the chain may get the rows of an embedding's gradient.
    """

    @property
    def row_sparse(self) -> bool: ...

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]: ...


class NumericsCheck(Protocol):
    """Raises on the host if a compiled step found a value that is not finite."""

    def raise_if_bad(
        self, read: Callable[[keras.Variable], Any], before: Callable[[], None] = ...
    ) -> None: ...


def split_sources(
    sources: Sequence[Any], values: Sequence[Any]
) -> tuple[list[Assignment], list[Any]]:
    """Return the values of those sources that are variables, with them, and those of tensors."""
    pairs = list(zip(sources, values, strict=True))
    variables = [(source, value) for source, value in pairs if isinstance(source, keras.Variable)]
    return variables, [value for source, value in pairs if not isinstance(source, keras.Variable)]
