"""Private Keras API of models and layers.

`tests/test_keras_private.py` tests the behaviour that each use relies on.
"""

from __future__ import annotations

from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.models.functional import Functional


def is_functional(cls: type) -> bool:
    """Return whether a class is Keras's own class of functional models."""
    return cls is Functional


def all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Return the model and all layers in it, however deep."""
    return list(model._flatten_layers())


def inner_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Return all layers in a model, however deep, without the model itself."""
    return list(model._flatten_layers(include_self=False))


def first_batch(iterator: Any) -> Any:
    """Return the first batch of Keras's iterator over epochs, as its symbolic build takes it."""
    for _, _, data in iterator:
        return data[0] if isinstance(data, (list, tuple)) else next(data)
    raise ValueError("The data are empty: there is no batch to train on.")


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return a layer's own weights, without those of inner layers, in the order it saves them."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def state_of_layers(model: keras.Model) -> list[keras.Variable]:
    """Return the weights that layers assign themselves; frozen ones are not among them."""
    return [v for layer in all_layers(model) for v in layer._non_trainable_variables]


def unbuilt_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Return the layers that will have variables but have not been called yet."""
    return [
        layer
        for layer in all_layers(model)
        if not layer.built and type(layer).build is not keras.layers.Layer.build
    ]


def forget_losses(model: keras.Model) -> None:
    """Clear the losses that layers kept from earlier calls; stateless calls do not.

    Layers identify their losses by `id`. A new loss may have the `id` of another layer's freed
    loss, and would then be dropped.
    """
    model._clear_losses()
    forget_returned_losses(model)


def forget_returned_losses(model: keras.Model) -> None:
    """Clear the losses that a stateless call returned and that the model shows as its own."""
    if model._losses_override:
        model._losses_override = []


def kernel_of(layer: Any) -> keras.Variable:
    """Return the variable of a layer's kernel; with LoRA `layer.kernel` is not a variable."""
    return layer.kernel if isinstance(layer.kernel, keras.Variable) else layer._kernel


def seeds(model: keras.Model) -> list[keras.Variable]:
    """Return the states of seed generators in a model's layers, which Keras's files leave out."""
    weights = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in weights and v.name == "seed_generator_state"]


def call_model(model: Any, x: Any, *, training: bool) -> Any:
    """Make a forward pass as Keras's steps do."""
    return model(x, training=training) if model._call_has_training_arg else model(x)


def compiled_metric_names(model: Any) -> list[str]:
    """Return the names in the logs of the metrics of `compile(metrics=...)`."""
    metrics = model._compile_metrics
    return [] if metrics is None or not metrics.built else list(metrics.result())


def has_loss(model: Any) -> bool:
    """Return whether a model was compiled with a loss."""
    return model._compile_loss is not None


def track_loss(model: Any, loss: Any, batch_size: Any) -> None:
    """Add the loss of a batch to the mean in the logs.

    Args:
        model: The model.
        loss: The loss, a scalar.
        batch_size: The number of samples, which is the weight of the loss in the mean.
    """
    model._loss_tracker.update_state(loss, sample_weight=batch_size)


def compute_loss(
    model: Any, x: Any, y: Any, sample_weight: Any, y_pred: Any, *, training: bool = True
) -> Any:
    """Return the loss of a batch as Keras's steps compute it, with the layers' losses.

    Args:
        model: The model.
        x: The inputs.
        y: The targets, or None.
        sample_weight: The weights of the samples, or None.
        y_pred: The predictions.
        training: Whether it is a training step.
    """
    return model._compute_loss(
        x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
    )


def build_metrics(model: Any, data_batch: Any) -> None:
    """Create the variables of losses and metrics from the shapes of a batch."""
    model._symbolic_build(data_batch=data_batch)


def start_at_epoch(model: Any, epoch: int | None) -> None:
    """Make the current `fit` begin at `epoch`; None keeps its own initial epoch.

    Call it before the first epoch.
    """
    model._initial_epoch = epoch


def global_seed() -> keras.Variable | None:
    """Return the state of the seeds that `keras.random` uses by default; None if none were used."""
    generator = global_state.get_global_attribute("global_seed_generator")
    return None if generator is None else generator.state


def random_seed() -> int | None:
    """Return the seed of the last `keras.utils.set_random_seed`."""
    return global_state.get_global_attribute("global_random_seed")
