"""Gradients whose examples are clipped one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops.gradients.base import Found, GradientSource, Objective, StepLike
from keras_trainops.scalars import check_positive, check_whole
from keras_trainops.transforms.pending import upcast


@keras.saving.register_keras_serializable(package="keras_trainops")
class PerExampleClip(GradientSource):
    """Clips the gradient of each example to a joint L2 norm, then averages over the batch.

    `g' = 1/B · Σᵢ gᵢ · c / max(‖gᵢ‖₂, c)`, where `gᵢ` is the gradient of example `i` by all
    variables to train, its norm in at least float32. With `Noise` among the gradient transforms it
    is DP-SGD: a noise multiplier `σ` is `Noise(variance=(σ · c / B) ** 2, decay=0)`.

    The loss of an example is that of a batch with this example alone, and the loss of the batch is
    their mean. So `sample_weight` works for losses that divide by the number of samples, as Keras's
    do by default, and penalties on weights are a part of each example's gradient and clipped with
    it; weight decay of the optimizer is not. Of what the minimised function returns besides the
    loss, scalars are averaged over the examples, and other tensors are joined along their first
    axis.

    The examples are computed at once by a vectorised map. Their gradients take the memory of the
    variables times the batch size, or times `microbatch`. All of them share the random numbers of
    layers, such as the mask of a `Dropout`.

    Args:
        norm: The largest joint L2 norm `c` of an example's gradient, > 0.
        microbatch: How many examples are differentiated at once; None: the whole batch. The batch
            size need not be a multiple of it. Each group draws its own random numbers.

    Returns:
        Gradients with the shapes and dtypes of the variables; zero where the loss does not depend
        on one.

    Raises:
        ValueError: If an argument is not valid; in the first step, if a layer assigns a weight, as
            batch normalisation does in training, or if `step.minimize` gets no `data`.

    Example:
        >>> import keras, keras_trainops as kt
        >>> model = kt.with_train_ops(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]))
        >>> model.compile(
        ...     "sgd", "mse", gradients=kt.gradients.PerExampleClip(1.0, microbatch=16),
        ...     gradient_transforms=kt.transforms.Noise((1.1 * 1.0 / 64) ** 2, decay=0))

    References: Abadi et al. 2016, "Deep Learning with Differential Privacy";
    `optax.contrib.differentially_private_aggregate`, with equal results but for the noise.
    """

    def __init__(self, norm: float, microbatch: int | None = None) -> None:
        self.norm = check_positive("norm", norm)
        self.microbatch = check_whole("microbatch", microbatch, 1, optional=True)

    def __call__(
        self, step: StepLike, objective: Objective, variables: Sequence[keras.Variable]
    ) -> Found:
        if objective.data is None:
            raise ValueError(
                "`PerExampleClip` needs the examples of the batch. Pass them to `step.minimize` as "
                "`data`, and use the function's argument: `step.minimize(loss, data=(x, y))`."
            )
        (losses, aux), gradients = step.mean_of_examples(
            objective.of, variables, objective.data, self._clipped, at_once=self.microbatch
        )
        return Found(ops.mean(losses), keras.tree.map_structure(_of_batch, aux), gradients)

    def _clipped(self, gradients: Sequence[Any]) -> list[Any]:
        """Return the gradients of several examples, `(examples, ...)`, each clipped."""
        norms = ops.sqrt(ops.sum(ops.stack([_square(g) for g in gradients]), axis=0))
        factors = self.norm / ops.maximum(norms, self.norm)
        return [self._scaled(gradient, factors) for gradient in gradients]

    def _scaled(self, gradient: Any, factors: Any) -> Any:
        values = upcast(gradient)
        factors = ops.reshape(factors, (-1, *[1] * (len(values.shape) - 1)))
        return ops.cast(values * ops.cast(factors, values.dtype), gradient.dtype)

    def get_config(self) -> dict[str, Any]:
        return {"norm": self.norm, "microbatch": self.microbatch}


def _square(gradient: Any) -> Any:
    """Return the squared L2 norm of each example's gradient."""
    squares = ops.square(upcast(gradient))
    axes = tuple(range(1, len(squares.shape)))
    return ops.sum(squares, axis=axes) if axes else squares


def _of_batch(tensor: Any) -> Any:
    """Return an auxiliary result of all examples, `(examples, ...)`, as one of the batch."""
    if tensor is None:
        return None
    if len(tensor.shape) == 1:
        return ops.mean(tensor)
    if tensor.shape[1] == 1:
        return tensor[:, 0]
    return ops.reshape(tensor, (-1, *ops.shape(tensor)[2:]))
