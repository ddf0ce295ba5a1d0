"""Preparing a model for training: build it, its optimizer and updates, and check them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from keras_trainops.backends import backend
from keras_trainops.training.norm_logs import NormLogs
from keras_trainops.training.optimizers.transfer import built_for, is_built_for
from keras_trainops.training.optimizers.transformed import monitors_of, transformed_in
from keras_trainops.training.trainability import changed_since, without

T = TypeVar("T")


def in_scope(model: Any, make: Callable[[], T]) -> T:
    """Call `make` in the scope of the model's distribution strategy, if it has one."""
    with backend().scope_of(model):
        return make()


def attach_optimizer(model: Any) -> None:
    """Connect the chain of transforms in the optimizer with the model and its logs."""
    transformed = transformed_in(model.optimizer)
    if transformed is not None:
        transformed.attach(model)
    monitors = monitors_of(model.optimizer)
    model.train_ops.norms = in_scope(model, lambda: NormLogs(monitors))


def require_same_variables(model: Any) -> None:
    """Check that the optimizer was built for the variables that are to be trained now.

    Raises:
        ValueError: If the variables to train have changed since; the message names them.
    """
    now, before = model.trainable_variables, built_for(model.optimizer)
    if not is_built_for(before, now):
        changed = [*without(before, now), *without(now, before)]
        raise changed_since([variable.path for variable in changed])


def prepare(model: Any) -> None:
    """Build and check everything that the training step of a built model needs.

    Raises:
        ValueError: If an update or a transform does not fit the model.
    """
    in_scope(model, lambda: build_optimizer(model))
    in_scope(model, lambda: _check_updates(model))
    start_updates(model, anew=False)


def build_optimizer(model: Any) -> None:
    """Build the optimizer, the updates and the transforms of a built model."""
    optimizer, policy = model.optimizer, model.train_ops.policy
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
    policy.build(model)
    transformed = transformed_in(optimizer)
    if transformed is not None:
        transformed.build(model.trainable_variables)  # it may be new inside a built optimizer
        transformed.track_updates(policy)


def _check_updates(model: Any) -> None:
    state = model.train_ops
    guarded = [] if state.numerics is None else state.numerics.variables
    # Leave out the variables that an earlier check found, so that this one finds them again.
    state.carried = [*guarded, *state.policy.variables]
    if model.optimizer is not None:
        state.carried += state.policy.check(model)


def start_updates(model: Any, *, anew: bool) -> None:
    """Initialise updates from the model's weights, for example averages.

    Args:
        model: A model that is prepared for training.
        anew: If True, updates that have already started start again, as after a warm start.
    """
    policy = model.train_ops.policy
    if policy.start(model, anew=anew) and model.optimizer is not None:
        shared = [*model.variables, *model.optimizer.variables, *policy.variables]
        backend().unshare_values(shared)


def build_early(model: Any, iterator: Any, data_batch: Any) -> None:
    """Build a lazy model, and its metrics if a callback follows the data, before callbacks run.

    Args:
        model: A model with the mixin.
        iterator: Keras's iterator over epochs, or None.
        data_batch: A batch, if there is no iterator.
    """
    here, state = backend(), model.train_ops
    followed = state.fit.show_data(iterator)
    state.why_unbuilt = here.build_model(model, iterator, data_batch)
    if followed and not state.why_unbuilt:
        here.build_metrics(model, iterator)
