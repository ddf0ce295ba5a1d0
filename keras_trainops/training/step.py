"""The training step, which is the same code on every backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.training.passes import Batch, passes

if TYPE_CHECKING:
    from keras_trainops.training.train_ops import TrainOps


def train_step(model: Any, data: Any) -> dict[str, Any]:
    """Train on one batch: the layers' updates, then the weight update, then registered updates.

    Args:
        model: A model with `TrainOpsMixin`.
        data: `x`, `(x, y)` or `(x, y, sample_weight)`.

    Returns:
        The logs.
    """
    batch = Batch(*keras.utils.unpack_x_y_sample_weight(data))
    outcome = passes(model, batch)
    options: TrainOps = model.train_ops
    size = ops.shape(next(leaf for leaf in keras.tree.flatten(batch.x) if leaf is not None))[0]
    keras_private.track_loss(model, outcome.loss, size)
    kept = options.policy.chosen(outcome.assigned)

    def change_state(loss: Any, *tensors: Any) -> None:
        values, gradients = tensors[: len(kept)], tensors[len(kept) :]
        means = backend().mean_over_replicas(values)
        for (variable, _), value in zip(kept, means, strict=True):
            variable.assign(value)
        before = ops.copy(ops.convert_to_tensor(model.optimizer.iterations))
        if outcome.variables:
            backend().apply_gradients(model.optimizer, gradients, outcome.variables)
        options.policy.run(model, loss, before)

    loss = outcome.loss
    if options.policy.after_weights:
        # Each replica has its own loss; an update gets that of the whole batch.
        (loss,) = backend().mean_over_replicas([loss])
    args = (loss, *(value for _, value in kept), *outcome.gradients)
    if options.numerics is None:
        change_state(*args)
    else:
        options.numerics.guard(model, outcome.loss, outcome.gradients, change_state, args)
    return model.compute_metrics(batch.x, batch.y, outcome.y_pred, batch.sample_weight)
