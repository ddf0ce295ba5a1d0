"""The protocol of gradient transforms."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
from keras import ops

from keras_trainops.backends.base import Gradient as Gradient
from keras_trainops.representation import CallRepr
from keras_trainops.scalars import Number
from keras_trainops.state import Stateful

TransformFn: TypeAlias = (
    "Callable[[Sequence[Gradient], Sequence[keras.Variable]], Sequence[Gradient]]"
)


class GradientTransform(CallRepr, Stateful):
    """Base class of gradient transforms: subclass it, or write a plain function.

    A transform sees the gradients as the optimizer is about to use them: unscaled, accumulated,
    reduced over replicas, once per weight update.

    Subclasses override `__call__`, `get_config` and, where they have state, `build`; and register
    themselves with `keras.saving.register_keras_serializable`.

    Attributes:
        clips: Whether it limits the size of gradients. The optimizer's own `clipnorm`, `clipvalue`
            and `global_clipnorm` are refused beside such a transform.
        row_sparse: Whether applying it to the rows that an embedding's gradient has gives what
            applying it to the dense gradient gives: so for transforms that scale elements, take
            norms and keep zeros zero. The gradient of an embedding is then `(rows, width)`, each
            row once, and else it is made dense, `(vocabulary, width)`.
        children: The transforms that it is made of.
    """

    argument = "compile(gradient_transforms=...)"
    clips: bool = False
    row_sparse: bool = False

    def step_factors(self, variables: Sequence[keras.Variable]) -> Sequence[Number | None]:
        """By what the *step* of each variable is multiplied, after the optimizer made it.

        That is what a learning-rate multiplier means: under Adam a factor on the gradient cancels.

        Args:
            variables: Variables, of those that the transform was built with.

        Returns:
            For each a number, a schedule of the weight updates, or None for the whole step.
        """
        return [None] * len(variables)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Checks the transform against the variables to train, and creates its state.

        Raises:
            ValueError: If it does not fit them, as where a pattern matches none.
        """

    @abstractmethod
    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        """Transforms the gradients of one weight update.

        Args:
            gradients: One per variable, each of its variable's shape (but see `row_sparse`) and
                dtype, or None.
            variables: The variables, in the same order.

        Returns:
            As many gradients, of the same shapes and dtypes; None stays None.
        """

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as Keras serialises them."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GradientTransform:
        """The transform with these constructor arguments."""
        return cls(**config)


def upcast(gradient: Gradient) -> Gradient:
    """A gradient in a dtype wide enough for sums of squares: float16 overflows at 65,504."""
    dtype = keras.backend.standardize_dtype(gradient.dtype)
    return gradient if dtype in ("float32", "float64") else ops.cast(gradient, "float32")
