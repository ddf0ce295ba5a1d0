"""One weight update: reduce gradients, run the chain of transforms, step or skip."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import keras
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import Gradient, backend
from keras_trainops.transforms.chain import Chain
from keras_trainops.transforms.scope import update_scope


def parts(optimizer: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    """Return the optimizers that make the steps.

    Some parts of a `MultiOptimizer` may only exist once it is built.
    """
    return list(getattr(optimizer, "optimizers", [optimizer]))


class WeightUpdate(NamedTuple):
    """An optimizer, and the chain of transforms that runs right before its step.

    Attributes:
        inner: A built optimizer.
        chain: The transforms, built for the same variables.
    """

    inner: keras.optimizers.Optimizer
    chain: Chain

    def apply(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable] | None
    ) -> None:
        """Apply the still scaled gradients of one batch on this replica.

        Args:
            gradients: One per variable, or None.
            variables: The variables; None: those the optimizer was built for.
        """
        trained = keras_private.trained_by(self.inner) if variables is None else list(variables)
        gradients = backend().prepare_gradients(gradients, trained, self.inner)
        if not keras_private.is_multi(self.inner):
            with keras_private.applying(self.inner, self._apply_unscaled):
                self.inner.apply(gradients, variables)
            return
        scale = self.inner.loss_scale_factor or 1.0
        self._update([None if g is None else g / scale for g in gradients], trained)

    def _apply_unscaled(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> None:
        """Accumulate the gradients or, once there are enough of them, update the weights."""
        if not self.inner.gradient_accumulation_steps:
            self._update(gradients, variables)
            return
        with update_scope(lambda: self.inner.iterations):
            left_out = self.chain.leaves_out(gradients, variables)
        if left_out is None:
            self._accumulate(gradients, variables)
            return
        backend().conditionally(
            backend().any_over_replicas(left_out),
            lambda *_: keras_private.batch_count(self.inner).assign_sub(1),  # 1 is added later
            lambda *gradients: self._accumulate(gradients, variables),
            gradients,
            changes=[*variables, *self.inner.variables, *self.chain.variables],
        )

    def _accumulate(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> None:
        """Add gradients to those of earlier batches, or update the weights with their mean."""
        count = self.inner.gradient_accumulation_steps
        sums = keras_private.accumulators(self.inner, variables)

        def update(*gradients: Gradient) -> None:
            means = [(g + s) / count for g, s in zip(gradients, sums, strict=True)]
            self._update(means, variables)
            for total in sums:  # Keras's own reset on PyTorch multiplies by 0, and NaN stays NaN
                total.assign(ops.zeros(total.shape, dtype=total.dtype))

        def accumulate(*gradients: Gradient) -> None:
            keras_private.accumulate(self.inner, list(gradients), sums)
            self._update_averages()

        backend().conditionally(
            ops.equal((keras_private.batch_count(self.inner) + 1) % count, 0),
            update,
            accumulate,
            gradients,
            changes=[*variables, *self.inner.variables, *self.chain.variables],
        )

    def _update(self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]) -> None:
        """Reduce over replicas, run the chain and, unless a transform skips the update, step."""
        held = self.chain.held_variables
        before = [ops.copy(v.value) for v in held]
        with update_scope(lambda: self.inner.iterations) as scope:
            gradients = backend().reduce_and_transform(gradients, variables, self.chain)
            skip = scope.skip()
        if skip is None:
            self._step(gradients, variables)
            return
        for variable, value in zip(held, before, strict=True):
            variable.assign(ops.where(skip, value, variable.value))
        backend().conditionally(
            ops.logical_not(skip),
            lambda *gradients: self._step(gradients, variables),
            self._leave_uncounted,
            gradients,
            changes=[*variables, *self.inner.variables],
        )

    def _step(self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]) -> None:
        """Make the optimizer's step, and scale it where a transform asks for that."""
        with update_scope(lambda: self.inner.iterations):
            factors = self.chain.step_factors(variables)
        scaled = [(v, c) for v, c in zip(variables, factors, strict=True) if c is not None]
        starts = [ops.copy(v.value) for v, _ in scaled]
        self._step_inner(gradients, variables)
        backend().assign_weights(
            [v for v, _ in scaled],
            [w + ops.cast(c, w.dtype) * (v - w) for w, (v, c) in zip(starts, scaled, strict=True)],
        )
        if not keras_private.is_multi(self.inner):
            self._update_averages()

    def _step_inner(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> None:
        with contextlib.ExitStack() as reduced:
            for part in parts(self.inner):
                reduced.enter_context(backend().without_reduction(part))
            if not keras_private.is_multi(self.inner):
                keras_private.step(self.inner, list(gradients), list(variables))
                return
            scale = self.inner.loss_scale_factor or 1.0
            self.inner.apply([None if g is None else g * scale for g in gradients], variables)

    def _update_averages(self) -> None:
        """Update and write the averages of `use_ema`, as Keras does."""
        inner = self.inner
        if not inner.use_ema:
            return
        keras_private.update_averages(inner)
        if inner.ema_overwrite_frequency:
            backend().conditionally(
                ops.equal((inner.iterations + 1) % inner.ema_overwrite_frequency, 0),
                lambda: keras_private.overwrite_with_averages(inner),
                lambda: None,
                (),
                changes=keras_private.trained_by(inner),
            )

    def _leave_uncounted(self, *_: Gradient) -> None:
        """Subtract the count that the optimizer is about to add for a skipped update."""
        if not keras_private.is_multi(self.inner):
            count = keras_private.batch_count(self.inner)
            count.assign_sub(self.inner.gradient_accumulation_steps or 1)
