"""Base classes of transforms that a chain runs without a pass over memory for each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import keras

from keras_trainops.transforms.base import Gradient, GradientTransform
from keras_trainops.transforms.pending import Gradients, Pending


class PendingTransform(GradientTransform):
    """Base class of transforms that can run on `Gradients`."""

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        return self.changed(Gradients.of(gradients, variables)).values()

    @property
    def is_overridden(self) -> bool:
        """Return whether a subclass overrides `__call__`; a chain then calls that."""
        return type(self).__call__ is not PendingTransform.__call__

    def run_in_chain(self, gradients: Gradients) -> Gradients:
        return super().run_in_chain(gradients) if self.is_overridden else self.changed(gradients)

    @abstractmethod
    def changed(self, gradients: Gradients) -> Gradients:
        """Return the transformed gradients."""


class Stackable(PendingTransform):
    """Base class of transforms that can run on stacks of gradients."""

    def kind(self, variable: keras.Variable) -> Hashable:
        """Return what must be equal for the gradients of variables to be stacked."""
        return None


class Rescaling(Stackable):
    """Base class of transforms that multiply gradients by factors, or only look at norms."""

    row_sparse = True

    def changed(self, gradients: Gradients) -> Gradients:
        parts = gradients.parts
        if not parts:
            return gradients
        pairs = zip(parts, self.multipliers(parts), strict=True)
        return gradients.with_parts(part.times(factor) for part, factor in pairs)

    @abstractmethod
    def multipliers(self, gradients: Sequence[Pending]) -> Sequence[Any]:
        """Return the factor of each gradient.

        Args:
            gradients: At least one; any of them may be a stack.

        Returns:
            For each a number, a scalar or, for a stack, a vector; or a `Ratio` of these; or None
            for 1.
        """


class Elementwise(Stackable):
    """Base class of transforms of each gradient on its own."""

    def changed(self, gradients: Gradients) -> Gradients:
        return gradients.with_parts(
            Pending(self.elements(part), part.variables, part.is_stack) for part in gradients.parts
        )

    @abstractmethod
    def elements(self, gradient: Pending) -> Gradient:
        """Return the transformed gradient, or the transformed stack."""
