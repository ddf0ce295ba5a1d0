"""Every use of Keras's private API that is the same on all backends.

What only one backend needs stands in `training/steps/`. `tests/test_keras_private.py` holds each
use to the behaviour relied on here, so that a new Keras that changes one fails a test with a name.
"""

from __future__ import annotations

from typing import Any

import keras
from keras.src.backend.common import global_state


def all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The model and all layers in it, however deep."""
    return list(model._flatten_layers())


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The weights that a layer made or was given itself, in the order in which it saves them."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def unbuilt_layers(model: keras.Model) -> tuple[str, ...]:
    """The names of layers that will have variables but, never called, have none yet."""
    return tuple(
        layer.name
        for layer in all_layers(model)
        if not layer.built and type(layer).build is not keras.layers.Layer.build
    )


def forget_losses(model: keras.Model) -> None:
    """Has layers forget the losses of the step before, which a stateless call does not.

    Layers know their losses by `id`. One that is freed may have the `id` of a new one of another
    layer, which is then dropped.
    """
    model._clear_losses()


def kernel_of(layer: Any) -> keras.Variable:
    """The variable of a layer's kernel; with LoRA `layer.kernel` is computed from several."""
    return layer.kernel if isinstance(layer.kernel, keras.Variable) else layer._kernel


def seeds(model: keras.Model) -> list[keras.Variable]:
    """The states of the seed generators in a model's layers, which Keras's files leave out."""
    weights = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in weights and v.name == "seed_generator_state"]


def call_in_training(model: Any, x: Any) -> Any:
    """A forward pass as Keras's training step makes it."""
    return model(x, training=True) if model._call_has_training_arg else model(x)


def track_loss(model: Any, loss: Any, batch_size: Any) -> None:
    """Adds a batch's loss to the mean that the logs hold."""
    model._loss_tracker.update_state(loss, sample_weight=batch_size)


def compute_loss(model: Any, x: Any, y: Any, sample_weight: Any, y_pred: Any) -> Any:
    """Return the loss of a batch as Keras's training step computes it, with the layers' losses."""
    return model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)


def build_metrics(model: Any, data_batch: Any) -> None:
    """Creates the variables of losses and metrics, from the shapes of a batch alone."""
    model._symbolic_build(data_batch=data_batch)


def start_at_epoch(model: Any, epoch: int | None) -> None:
    """Has the `fit` that is about to begin its epochs begin with this one; None: with its own."""
    model._initial_epoch = epoch


def global_seed() -> keras.Variable | None:
    """The state of the seeds that `keras.random` takes where it is given none, if any were."""
    generator = global_state.get_global_attribute("global_seed_generator")
    return None if generator is None else generator.state


def random_seed() -> int | None:
    """What `keras.utils.set_random_seed` was given last."""
    return global_state.get_global_attribute("global_random_seed")
