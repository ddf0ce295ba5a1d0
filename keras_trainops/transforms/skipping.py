"""Transforms for gradients that are not finite, or implausibly large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops.backends import backend
from keras_trainops.scalars import (
    Number,
    check_positive,
    check_whole,
    deserialize_number,
    serialize_number,
)
from keras_trainops.transforms.base import Gradient
from keras_trainops.transforms.pending import Pending, joint_norm
from keras_trainops.transforms.rescaling import Elementwise, Rescaling
from keras_trainops.transforms.scope import skip_update_if, value_of


@keras.saving.register_keras_serializable(package="keras_trainops")
class ZeroNonFinite(Elementwise):
    """Replaces NaN and infinite elements of gradients by 0.

    `g' = g` where `g` is finite, else 0. Under mixed precision the `LossScaleOptimizer` still sees
    the overflow and skips that step.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Example:
        >>> import keras_trainops as kt
        >>> zero = kt.transforms.ZeroNonFinite()

    References: `optax.zero_nans`, which keeps infinities.
    """

    row_sparse = True

    def elements(self, gradient: Pending) -> Gradient:
        values = gradient.value()
        return ops.where(ops.isfinite(values), values, ops.zeros_like(values))


@keras.saving.register_keras_serializable(package="keras_trainops")
class SkipNonFinite(Rescaling):
    """Skips the weight update if any gradient is NaN or infinite.

    A skipped update changes no weight, optimizer state, iteration count or state of other
    transforms. Only `skipped` and `consecutive` count it.

    With `gradient_accumulation_steps`, one bad batch makes the mean of all of them bad: the whole
    update is skipped, with the good batches. `per_batch=True` leaves out the bad batch alone and
    does not count it, so that an update still is the mean of as many good ones. A
    `LossScaleOptimizer` does so in any case, before transforms run.

    Args:
        max_consecutive: After this many skipped updates in a row the next bad one is applied, so
            that a permanently broken run fails visibly; None skips all. A finite update resets
            the count.
        per_batch: If True, skip single batches of a gradient accumulation. Otherwise, and without
            accumulation, whole updates.

    Attributes:
        skipped: Variable, the number of skipped updates or batches.
        consecutive: Variable, the number of bad updates or batches since the last finite one.

    Returns:
        The gradients.

    Raises:
        ValueError: If `max_consecutive` is neither an integer >= 0 nor None, or `per_batch` is not
            a boolean.

    Example:
        >>> import keras_trainops as kt
        >>> skip = kt.transforms.SkipNonFinite(max_consecutive=5)

    References: `optax.apply_if_finite`; with `per_batch=True`, `optax.skip_not_finite` of
    `optax.MultiSteps`.
    """

    def __init__(self, max_consecutive: int | None = None, per_batch: bool = False) -> None:
        self.max_consecutive = check_whole("max_consecutive", max_consecutive, 0, optional=True)
        if not isinstance(per_batch, bool):
            raise ValueError(
                f"`per_batch` must be True or False. Received: per_batch={per_batch!r}"
            )
        self.per_batch = per_batch

    def build(self, variables: Sequence[keras.Variable]) -> None:
        self.skipped = self.add_variable("skipped", dtype="int32", held=False)
        self.consecutive = self.add_variable("consecutive", dtype="int32", held=False)

    def multipliers(self, gradients: Sequence[Pending]) -> Sequence[Any]:
        skip_update_if(self._is_to_skip([g.value() for g in gradients], reduced=True))
        return [None] * len(gradients)

    def leaves_out(self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]) -> Any:
        present = [g for g in gradients if g is not None]
        return self._is_to_skip(present, reduced=False) if self.per_batch and present else None

    def _is_to_skip(self, gradients: Sequence[Gradient], *, reduced: bool) -> Any:
        """Count gradients, and return whether they are to be skipped.

        Args:
            gradients: The gradients, without those that are None.
            reduced: Whether they are the same on all replicas, which count in common.
        """
        finite = ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in gradients]))
        skip = ops.logical_not(finite)
        if not reduced:
            skip = backend().any_over_replicas(skip)
        consecutive = ops.where(skip, self.consecutive + 1, 0)
        if self.max_consecutive is not None:
            skip = ops.logical_and(skip, consecutive <= self.max_consecutive)
        self.consecutive.assign(consecutive)
        self.skipped.assign(self.skipped + ops.cast(skip, "int32"))
        return skip

    def get_config(self) -> dict[str, Any]:
        return {"max_consecutive": self.max_consecutive, "per_batch": self.per_batch}


@keras.saving.register_keras_serializable(package="keras_trainops")
class SkipLarge(Rescaling):
    """Skips the weight update if the joint L2 norm of the gradients exceeds a limit.

    A NaN norm exceeds it as well. A skipped update changes nothing, as in `SkipNonFinite`.

    Args:
        max_norm: The largest norm that is not skipped, > 0; a number or a schedule over the weight
            updates.

    Attributes:
        skipped: Variable, the number of skipped updates.

    Returns:
        The gradients.

    Raises:
        ValueError: If `max_norm` is not > 0.

    Example:
        >>> import keras_trainops as kt
        >>> skip = kt.transforms.SkipLarge(100.0)

    References: `optax.skip_large_updates`.
    """

    def __init__(self, max_norm: Number) -> None:
        self.max_norm = check_positive("max_norm", deserialize_number(max_norm), scheduled=True)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        self.skipped = self.add_variable("skipped", dtype="int32", held=False)

    def multipliers(self, gradients: Sequence[Pending]) -> Sequence[Any]:
        norm = joint_norm(gradients)
        # Not "not <=": TensorFlow's graph optimizer turns that into ">", which is False for NaN.
        skip = ops.logical_or(norm > value_of(self.max_norm), ops.logical_not(ops.isfinite(norm)))
        self.skipped.assign(self.skipped + ops.cast(skip, "int32"))
        skip_update_if(skip)
        return [None] * len(gradients)

    def get_config(self) -> dict[str, Any]:
        return {"max_norm": serialize_number(self.max_norm)}
