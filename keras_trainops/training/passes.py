"""The forward and the backward pass: loss, predictions, gradients and layers' assignments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras

from keras_trainops import keras_private
from keras_trainops.backends import Assignment, Gradient, backend
from keras_trainops.updates.layer_updates import LayerUpdateScope


class Batch(NamedTuple):
    """One batch of data, as `keras.utils.unpack_x_y_sample_weight` returns it."""

    x: Any
    y: Any
    sample_weight: Any


class Outcome(NamedTuple):
    """The results of a forward and a backward pass.

    Attributes:
        y_pred: The predictions.
        loss: The loss as the logs report it: unscaled, of this replica.
        variables: The variables to train.
        gradients: One per variable to train, still scaled.
        assigned: The variables that layers assigned, and the values, none of them written yet.
    """

    y_pred: Any
    loss: Any
    variables: list[keras.Variable]
    gradients: Sequence[Gradient]
    assigned: Sequence[Assignment]


def passes(model: Any, batch: Batch) -> Outcome:
    """Make a forward and a backward pass, without changing the model.

    Args:
        model: A model with `TrainOpsMixin`.
        batch: The data.
    """
    here = backend()
    assigned: list[Assignment] = []

    def losses() -> tuple[Any, tuple[Any, Any, list[Any]]]:
        # Compute the loss in the scope: it may read values that layers assigned, and the metrics of
        # a loss are kept per replica.
        with _collecting(model, assigned):
            loss, y_pred = here.forward(model, *batch)
        return model.optimizer.scale_loss(loss), (loss, y_pred, [value for _, value in assigned])

    keras_private.forget_losses(model)  # run eagerly, each step has new ones
    variables = model.trainable_variables
    gradients, (loss, y_pred, values) = here.differentiate(losses, variables)
    news = [(variable, value) for (variable, _), value in zip(assigned, values, strict=True)]
    return Outcome(y_pred, here.reported_loss(loss), variables, gradients, news)


@contextlib.contextmanager
def _collecting(model: Any, assigned: list[Assignment]) -> Iterator[None]:
    """Collect the layers' assignments in `assigned`.

    It stays empty if all of them are kept and can be written directly.
    """
    options, here = model.train_ops, backend()
    wants_all = options.policy.keeps_layer_updates and not options.numerics
    if here.assigns_in_forward and wants_all and not here.needs_our_step(model):
        yield
        return
    variables = [*model.variables, *model.metrics_variables]
    with LayerUpdateScope(variables) as scope:
        yield
        here.require_collectable(scope.assigned)
    assigned[:] = scope.assigned
