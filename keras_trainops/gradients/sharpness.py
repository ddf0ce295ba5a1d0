"""Gradients at the worst weights nearby."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops.gradients.base import Found, GradientSource, Objective, StepLike
from keras_trainops.scalars import check_positive
from keras_trainops.transforms.pending import global_norm, upcast


@keras.saving.register_keras_serializable(package="keras_trainops")
class SharpnessAware(GradientSource):
    """Computes the gradient where the loss is highest, to first order, near the weights (SAM).

    `g' = ∇L(w + e)` with `e = ρ · g / ‖g‖₂` and `g = ∇L(w)`; adaptive (ASAM):
    `e = ρ · w² g / ‖w g‖₂`. The norm is joint over all variables to train, in at least float32. If
    it is 0, `e` is 0.

    A step makes two forward and two backward passes. The weights themselves do not move to `w + e`.
    Layers' statistics and the logged loss are those of the first pass, at `w`; random seeds
    advance in both. `e` is computed from the mean gradient over replicas, so several devices give
    the weights of one. Under gradient accumulation each batch has an `e` of its own.

    Args:
        rho: The radius `ρ`, > 0.
        adaptive: If True, the radius is relative to the size of each weight, so that `e` does not
            change if weights are rescaled together with the next layer's. Weights that are 0, as
            biases may be at first, are not perturbed.

    Returns:
        Gradients with the shapes and dtypes of the variables; zero where the loss does not depend
        on one.

    Raises:
        ValueError: If `rho` is not > 0, or `adaptive` is not a boolean.

    Example:
        >>> import keras, keras_trainops as kt
        >>> model = kt.with_train_ops(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]))
        >>> model.compile("sgd", "mse", gradients=kt.gradients.SharpnessAware(rho=0.05))

    References: Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving
    Generalization"; Kwon et al. 2021, "ASAM: Adaptive Sharpness-Aware Minimization"
    (there `|w| + η` with a small `η` may replace `|w|`); `optax.contrib.sam`, with equal results.
    """

    def __init__(self, rho: float = 0.05, adaptive: bool = False) -> None:
        self.rho = check_positive("rho", rho)
        if not isinstance(adaptive, bool):
            raise ValueError(f"`adaptive` must be True or False. Received: adaptive={adaptive!r}")
        self.adaptive = adaptive

    def __call__(
        self, step: StepLike, objective: Objective, variables: Sequence[keras.Variable]
    ) -> Found:
        (value, aux), gradients = step.gradients(
            objective.whole, variables, aux=True, keep_updates=objective.keep_updates
        )
        moved = self._moved(step.mean_over_replicas(gradients), variables)
        with step.values(variables, moved, keep_updates=False):
            _, gradients = step.gradients(objective.whole, variables, aux=True)
        return Found(value, aux, gradients)

    def _moved(self, gradients: Sequence[Any], variables: Sequence[keras.Variable]) -> list[Any]:
        """Return the weights plus `e`."""
        weights = [upcast(ops.convert_to_tensor(variable)) for variable in variables]
        gradients = [ops.cast(g, w.dtype) for g, w in zip(gradients, weights, strict=True)]
        if self.adaptive:
            gradients = [w * g for g, w in zip(gradients, weights, strict=True)]
        norm = global_norm(gradients)
        factor = ops.where(
            ops.equal(norm, 0), 0.0, self.rho / ops.where(ops.equal(norm, 0), 1.0, norm)
        )
        steps = [g * ops.cast(factor, g.dtype) for g in gradients]
        if self.adaptive:
            steps = [w * e for e, w in zip(steps, weights, strict=True)]
        moved = [w + e for e, w in zip(steps, weights, strict=True)]
        return [ops.cast(m, v.dtype) for m, v in zip(moved, variables, strict=True)]

    def get_config(self) -> dict[str, Any]:
        return {"rho": self.rho, "adaptive": self.adaptive}
