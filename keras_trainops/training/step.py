"""What a training step does once it has gradients: the same on every backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import backend_steps
from keras_trainops.transforms.base import Gradient

if TYPE_CHECKING:
    from keras_trainops.training.options import TrainOps


class Batch(NamedTuple):
    """One batch of data, as `keras.utils.unpack_x_y_sample_weight` gives it."""

    x: Any
    y: Any
    sample_weight: Any


class Outcome(NamedTuple):
    """What a forward and a backward pass gave.

    Attributes:
        y_pred: The predictions.
        loss: The loss as it is reported: unscaled, of this replica.
        gradients: One per variable to train, still scaled.
        assigned: The variables that layers assigned, and the values, none of them written yet.
    """

    y_pred: Any
    loss: Any
    gradients: Sequence[Gradient]
    assigned: Sequence[tuple[keras.Variable, Any]]


def finish(model: Any, batch: Batch, outcome: Outcome) -> dict[str, Any]:
    """Writes what the policy chose of the layers' updates, then the weights, then runs updates.

    Args:
        model: A model with `TrainOpsMixin`.
        batch: The data, for the metrics.
        outcome: What the passes gave.

    Returns:
        The logs.
    """
    options: TrainOps = model.train_ops
    trainable = model.trainable_variables
    size = ops.shape(next(leaf for leaf in keras.tree.flatten(batch.x) if leaf is not None))[0]
    keras_private.track_loss(model, outcome.loss, size)
    kept = options.policy.chosen(outcome.assigned)

    def change_state(loss: Any, *tensors: Any) -> None:
        values, gradients = tensors[: len(kept)], tensors[len(kept) :]
        means = backend_steps().mean_over_replicas(values)
        for (variable, _), value in zip(kept, means, strict=True):
            variable.assign(value)
        before = ops.copy(ops.convert_to_tensor(model.optimizer.iterations))
        if trainable:
            backend_steps().apply_gradients(model.optimizer, gradients, trainable)
        options.policy.run(model, loss, before, backend_steps().conditionally)

    loss = outcome.loss
    if options.policy.after_weights:
        # Replicas have losses of their own; an update is given that of the whole batch.
        (loss,) = backend_steps().mean_over_replicas([loss])
    args = (loss, *(value for _, value in kept), *outcome.gradients)
    if options.numerics is None:
        change_state(*args)
    else:
        options.numerics.guard(model, outcome.loss, outcome.gradients, change_state, args)
    return model.compute_metrics(batch.x, batch.y, outcome.y_pred, batch.sample_weight)
