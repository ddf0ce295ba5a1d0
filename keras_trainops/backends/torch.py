"""The training step on PyTorch, and every use of Keras's private API that it needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import torch

from keras_trainops import keras_private
from keras_trainops.backends.dense import (
    assign_weights,
    divisible,
    elements,
    mean_over_replicas,
    on_any_replica,
    reduce_and_transform,
    separate,
    settle,
    with_reduced,
)
from keras_trainops.training.step import Batch, Outcome, finish
from keras_trainops.updates.layer_updates import LayerUpdateScope

if TYPE_CHECKING:
    from keras_trainops.training.numerics import NumericsGuard

__all__ = [
    "apply_gradients",
    "assign_weights",
    "conditionally",
    "divisible",
    "elements",
    "host_view",
    "mean_over_replicas",
    "needs_own_step",
    "on_any_replica",
    "reduce_and_transform",
    "refuse_processes",
    "runs_eagerly",
    "separate",
    "settle",
    "trace",
    "train_function",
    "train_step",
    "with_reduced",
]


def runs_eagerly(model: Any) -> bool:
    """Python runs the training step for every batch."""
    return True


def refuse_processes() -> None:
    """Refuses to train in a world of several processes, none of which reduces gradients.

    Raises:
        NotImplementedError: If `torch.distributed` has more than one process.
    """
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return
    size = distributed.get_world_size()
    if size > 1:
        raise NotImplementedError(
            "Training with the mixin does not reduce gradients over the processes of "
            f"`torch.distributed`, also where the model is inside DistributedDataParallel: each of "
            f"the {size} processes would train a model of its own. Train in one process, without "
            "`torch.distributed.init_process_group`; for several, use the TensorFlow or JAX "
            f"backend. Received: world size {size}"
        )


def needs_own_step(model: Any) -> bool:
    """Keras's step computes the gradients of all parameters, those not to train too."""
    return model.train_ops.arguments.get("variables_to_train") is not None


def train_step(model: Any, data: Any) -> dict[str, Any]:
    """One step that collects what layers assign, and differentiates only what is to be trained."""
    batch = Batch(*keras.utils.unpack_x_y_sample_weight(data))
    with LayerUpdateScope([*model.variables, *model.metrics_variables]) as scope:
        y_pred = keras_private.call_in_training(model, batch.x)
        loss = model._compute_loss(
            x=batch.x, y=batch.y, y_pred=y_pred, sample_weight=batch.sample_weight, training=True
        )
    weights = [v.value for v in model.trainable_variables]
    scaled = model.optimizer.scale_loss(loss)
    gradients = torch.autograd.grad(scaled, weights, allow_unused=True) if weights else ()
    with torch.no_grad():
        return finish(model, batch, Outcome(y_pred, loss.detach(), gradients, scope.assigned))


def apply_gradients(
    optimizer: Any, gradients: Sequence[Any], variables: Sequence[keras.Variable]
) -> None:
    """One batch's gradients through the optimizer."""
    optimizer.apply(list(gradients), variables)


def conditionally(
    predicate: Any,
    then: Callable[..., Any],
    otherwise: Callable[..., Any],
    args: Sequence[Any],
    *,
    changes: Sequence[keras.Variable],
) -> None:
    """Runs `then(*args)` where `predicate` holds, else `otherwise(*args)`."""
    (then if bool(predicate) else otherwise)(*args)


def trace(function: Callable[[], None]) -> None:
    """Runs a function: PyTorch has no tracing."""
    with torch.no_grad():
        function()


def train_function(
    function: Callable[..., Any], model: Any, numerics: NumericsGuard | None
) -> Callable[..., Any]:
    """Keras's train function, which raises where the step found something that is not finite."""
    if numerics is None:
        return function

    @functools.wraps(function)
    def checked(data: Any) -> Any:
        logs = function(data)
        numerics.raise_if_bad(keras.ops.convert_to_numpy)
        return logs

    return checked


def host_view(variable: keras.Variable) -> np.ndarray:
    """A variable's value on the host, good until it is assigned: without a copy where possible."""
    tensor = variable.value.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # which NumPy has not
        return keras.ops.convert_to_numpy(tensor)
    return tensor.numpy()
