"""The protocol of gradient transforms."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras

from keras_trainops.backends.types import Gradient as Gradient
from keras_trainops.representation import CallRepr
from keras_trainops.state import Stateful
from keras_trainops.transforms.checking import checked
from keras_trainops.transforms.pending import Gradients

TransformFn: TypeAlias = "Callable[[list[Gradient], list[keras.Variable]], Sequence[Gradient]]"


class GradientTransform(CallRepr, Stateful):
    """Base class of gradient transforms: subclass it, or write a plain function.

    A transform runs once per weight update. It receives the gradients that the optimizer is about
    to use: unscaled, accumulated and reduced over replicas.

    Subclasses override `__call__` and `get_config`, and `build` if they have state. They register
    themselves with `keras.saving.register_keras_serializable`.

    Attributes:
        clips: If True, it limits the size of gradients, and the optimizer's own `clipnorm`,
            `clipvalue` and `global_clipnorm` cannot be combined with it.
        row_sparse: If True, an embedding's gradient may be passed as its rows, `(rows, width)`,
            with each row once. The result must equal that for the dense gradient: scaling
            elements, taking norms and keeping zeros zero all qualify. If False, the gradient is
            made dense first, `(vocabulary, width)`.
        is_saved: If False, files leave it out.
        children: The transforms it is made of.

    Example:
        >>> import keras, keras_trainops as kt
        >>> class Halve(kt.transforms.GradientTransform):
        ...     def __call__(self, gradients, variables):
        ...         return [None if g is None else g / 2 for g in gradients]
        >>> optimizer = kt.TransformedOptimizer(keras.optimizers.SGD(0.1), Halve())
    """

    argument = "compile(gradient_transforms=...)"
    clips: bool = False
    row_sparse: bool = False
    is_saved: bool = True

    def step_factors(self, variables: Sequence[keras.Variable]) -> Sequence[Any]:
        """Return the factors by which to multiply the *step* of each variable.

        The optimizer has already computed the step. That makes the factor a learning-rate
        multiplier; a factor on the gradient would cancel under Adam.

        Args:
            variables: Variables from those that the transform was built with.

        Returns:
            For each variable a number, a scalar tensor or `keras.Variable`, a schedule over the
            weight updates, or None for the whole step.
        """
        return [None] * len(variables)

    def leaves_out(self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]) -> Any:
        """Return whether to leave a batch out of a gradient accumulation.

        With `gradient_accumulation_steps` it is called for every batch, before its gradients are
        added to those of the others. A batch that is left out changes nothing and does not count,
        so that the weight update takes one more. Only variables made with
        `add_variable(..., held=False)` may be assigned.

        Args:
            gradients: One per variable, as in `__call__`, but of this batch and this replica. If a
                batch is left out on one replica, it is left out on all.
            variables: The variables, in the same order.

        Returns:
            A scalar boolean tensor, or None if this transform leaves out none.
        """
        return None

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Check the transform against the variables to train, and create its state.

        Raises:
            ValueError: If it does not fit them, for example if a pattern matches no variable.
        """

    @abstractmethod
    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        """Transform the gradients of one weight update.

        Args:
            gradients: One per variable, with its variable's shape (but see `row_sparse`) and
                dtype, or None.
            variables: The variables, in the same order.

        Returns:
            As many gradients, with the same shapes and dtypes; None stays None.
        """

    def run_in_chain(self, gradients: Gradients) -> Gradients:
        """Run on gradients of which factors may still be to be multiplied in.

        This is what a chain calls. Here those factors are multiplied in before `__call__`, whose
        result is checked.

        Raises:
            ValueError: If the result differs in length, shapes, dtypes or Nones.
        """
        variables, values = gradients.variables, gradients.values()
        after = checked(self, values, self(values, variables), variables)
        return Gradients.of(after, variables)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as Keras serialises them."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GradientTransform:
        """Create the transform from its constructor's arguments."""
        return cls(**config)
