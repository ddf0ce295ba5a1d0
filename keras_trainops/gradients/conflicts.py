"""Gradients of several losses, without the components that conflict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops.gradients.base import Found, GradientSource, Objective, StepLike
from keras_trainops.transforms.pending import upcast


@keras.saving.register_keras_serializable(package="keras_trainops")
class ProjectConflicts(GradientSource):
    """Projects the gradients of several losses onto each other's normal plane (PCGrad).

    For each loss `i`, start with `pᵢ = gᵢ`. For every other loss `j` in turn, if `pᵢ · gⱼ < 0`:
    `pᵢ = pᵢ − (pᵢ · gⱼ / ‖gⱼ‖²) gⱼ`. Then `g' = Σᵢ pᵢ`. The products are joint over all variables
    to train, in at least float32.

    The losses are those of the outputs of a model with several, with their `loss_weights`; or, in a
    `training_step` of your own, those that the function given to `step.minimize` returns as a list
    or dictionary. What belongs to no output, such as penalties on weights and `add_loss`, is added
    at the end and not projected.

    The paper draws the order of the `j`. Here it is `i + 1, i + 2, …`, cyclically, and begins one
    loss later with each weight update: every backend and every device then computes the same
    numbers, and so does a resumed run. With two losses there is only one order.

    A step makes one forward pass, and a backward pass for each loss and one for the rest. It keeps
    their gradients at the same time: the memory of the variables times the number of losses.
    Gradients are averaged over replicas before the projection, so several devices give the weights
    of one. Under gradient accumulation each batch is projected on its own.

    Returns:
        Gradients with the shapes and dtypes of the variables; zero where the loss does not depend
        on one.

    Raises:
        ValueError: In the first step, if there is only one loss.

    Example:
        >>> import keras, keras_trainops as kt
        >>> inputs = keras.Input((4,))
        >>> x = keras.layers.Dense(8, activation="relu")(inputs)
        >>> outputs = [keras.layers.Dense(1, name=name)(x) for name in ("price", "rating")]
        >>> model = kt.TrainOpsModel(inputs, outputs)
        >>> model.compile("sgd", ["mse", "mse"], gradients=kt.gradients.ProjectConflicts())

    References: Yu et al. 2020, "Gradient Surgery for Multi-Task Learning".
    """

    splits_losses = True

    def __call__(
        self, step: StepLike, objective: Objective, variables: Sequence[keras.Variable]
    ) -> Found:
        count = 0

        def losses() -> tuple[list[Any], Any]:
            nonlocal count
            found, aux = objective.apart()
            if found is None or len(found.parts) < 2:
                raise ValueError(
                    "`ProjectConflicts` needs several losses: of a model with several outputs; or, "
                    "in a `training_step`, of a function given to `step.minimize` that returns a "
                    "list or dictionary of losses, or `step.losses(...)`."
                )
            count = len(found.parts)
            rest = [] if found.rest is None else [found.rest]
            return [*found.parts, *rest], (found.value, aux)

        (_, (value, aux)), rows = step.gradients_of_each(
            losses, variables, keep_updates=objective.keep_updates
        )
        means = [[upcast(g) for g in step.mean_over_replicas(row)] for row in rows]
        weights = _weights(_products(means[:count]), _updates_made(step.model.optimizer))
        factors = [weights[i] for i in range(count)] + [1.0] * (len(rows) - count)
        gradients = []
        for i, variable in enumerate(variables):
            terms = [f * row[i] for f, row in zip(factors, means, strict=True)]
            gradients.append(ops.cast(sum(terms[1:], terms[0]), variable.dtype))
        return Found(value, aux, gradients)


def _products(rows: Sequence[Sequence[Any]]) -> Any:
    """Return the scalar products of the gradients, `(losses, losses)`."""
    return ops.stack([ops.stack([_product(a, b) for b in rows]) for a in rows])


def _product(first: Sequence[Any], second: Sequence[Any]) -> Any:
    return ops.sum(ops.stack([ops.sum(a * b) for a, b in zip(first, second, strict=True)]))


def _weights(products: Any, updates: Any) -> Any:
    """Return how often each gradient occurs in `Σᵢ pᵢ`.

    Each `pᵢ` is a weighted sum of the gradients, so its products with them follow from theirs.

    Args:
        products: The scalar products of the gradients.
        updates: The number of weight updates so far.
    """
    count = products.shape[0]
    rows = []
    for i in range(count):
        row = ops.one_hot(i, count, dtype=products.dtype)
        for turn in range(count - 1):
            j = (i + 1 + (turn + ops.cast(updates, "int32")) % (count - 1)) % count
            onto = ops.take(products, j, axis=0)
            product, square = ops.sum(row * onto), ops.take(onto, j)
            conflict = ops.logical_and(product < 0, square > 0)
            share = ops.where(conflict, product / ops.where(conflict, square, 1), 0)
            row = row - share * ops.one_hot(j, count, dtype=products.dtype)
        rows.append(row)
    return ops.sum(ops.stack(rows), axis=0)


def _updates_made(optimizer: Any) -> Any:
    """Return the number of weight updates; of several optimizers, those of the first."""
    return next(iter(getattr(optimizer, "optimizers", [optimizer]))).iterations
