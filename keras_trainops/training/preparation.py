"""Preparing a model for training: build it, its optimizer and updates, and check them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import keras

from keras_trainops import keras_private, paths
from keras_trainops.backends import backend
from keras_trainops.training import own_step
from keras_trainops.training.norm_logs import NormLogs
from keras_trainops.training.optimizers.compiling import OptimizerArguments, for_replicas
from keras_trainops.training.optimizers.group import (
    OptimizerGroup,
    all_transformed_in,
    monitors_of,
)
from keras_trainops.training.optimizers.transfer import built_for, is_built_for
from keras_trainops.training.optimizers.transformed import transformed_in
from keras_trainops.training.steps.logs import StepLogs
from keras_trainops.training.steps.probe import probe
from keras_trainops.training.steps.texts import EVALUATION, TRAINING, has_own_text
from keras_trainops.training.trainability import changed_since, without

T = TypeVar("T")


def in_scope(model: Any, make: Callable[[], T]) -> T:
    """Call `make` in the scope of the model's distribution strategy, if it has one."""
    with backend().scope_of(model):
        return make()


def create_optimizer(model: Any, described: OptimizerArguments, *, keeps_state: bool) -> Any:
    """Return the optimizer that the arguments of `compile` describe.

    Args:
        model: The model.
        described: The arguments.
        keeps_state: Whether the optimizer has to keep the state of updates.

    Raises:
        ValueError: If an argument is not valid, or if the model and the optimizer were created
            under different strategies.
    """
    optimizer = in_scope(model, lambda: for_replicas(described.create(keeps_state=keeps_state)))
    of_optimizer = [] if optimizer is None else optimizer.variables
    backend().require_same_strategy(model, [*_trainable(model), *of_optimizer])
    return optimizer


def attach_optimizer(model: Any) -> None:
    """Connect the chain of transforms in the optimizer with the model and its logs."""
    for transformed in all_transformed_in(model.optimizer):
        transformed.attach(model)
    if isinstance(model.optimizer, OptimizerGroup):
        model.optimizer.state.attach(model)
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


def reduce_gradients(model: Any) -> None:
    """Have the optimizer reduce gradients over processes that have met since `compile`.

    Raises:
        NotImplementedError: If an engine that is not supported has taken the model since then.
    """
    backend().require_supported_engine(model)
    optimizer = in_scope(model, lambda: for_replicas(model.optimizer))
    if optimizer is not model.optimizer:
        model.optimizer = optimizer
        attach_optimizer(model)


def require_built(model: Any) -> None:
    """Check that a model is built, if its step needs that.

    Raises:
        ValueError: If it could not be built.
    """
    state = model.train_ops
    if state.why_unbuilt and state.needs_our_step():
        raise ValueError(
            "`updates`, `check_numerics` and `gradients` need a model that is built, and this one "
            "could not be built from the shapes of its data. Call it on a batch before `fit`, as "
            f"in `model(x)`. The reason: {state.why_unbuilt}"
        )


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
    for transformed in all_transformed_in(optimizer):
        if not transformed.built:  # it may be new inside a built optimizer
            transformed.build(built_for(transformed))
    keeper = optimizer if isinstance(optimizer, OptimizerGroup) else transformed_in(optimizer)
    if keeper is not None:
        keeper.state.track_updates(policy)


def _check_updates(model: Any) -> None:
    state = model.train_ops
    guarded = [] if state.numerics is None else state.numerics.variables
    if model.optimizer is not None:  # the optimizer has them, if its transforms check gradients
        guarded = without(guarded, model.optimizer.variables)
    # Leave out the variables that an earlier check found, so that this one finds them again.
    before, state.carried = state.carried, [*guarded, *state.policy.variables]
    if model.optimizer is not None:
        state.carried += state.policy.check(model)
    if [id(v) for v in state.carried] != [id(v) for v in before]:
        model.test_function = None  # an evaluation before the first `fit` passed on others


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
    """Build a lazy model before callbacks run, and metrics that are needed before the first step.

    Those are all if a callback follows the data; and those of several losses in our step, whose
    scopes do not initialise variables.

    Args:
        model: A model with the mixin.
        iterator: Keras's iterator over epochs, or None.
        data_batch: A batch, if there is no iterator.
    """
    here, state = backend(), model.train_ops
    followed = state.fit.show_data(iterator)
    required = is_to_probe(model)
    state.why_unbuilt = here.build_model(model, iterator, data_batch, required=required)
    if not state.why_unbuilt and (followed or own_step.needs_ours(model)):
        here.build_metrics(model, iterator, data_batch, always=followed)


def is_to_probe(model: Any) -> bool:
    """Return whether a step of the user's is about to run and was not run on shapes yet."""
    training = not model.train_ops.evaluating
    own = has_own_text(model, TRAINING if training else EVALUATION)
    return own and model.compiled and training not in model.train_ops.probed


def probe_step(model: Any, batch: Any) -> None:
    """Run the user's step on the shapes of a batch: build layers, and the averages of its logs.

    Args:
        model: A model with the mixin.
        batch: A batch, or the shapes of one.

    Raises:
        ValueError: If the step does something that it must not.
    """
    state, training = model.train_ops, not model.train_ops.evaluating
    names = probe(model, batch, training=training)
    state.step_logs[training] = in_scope(model, lambda: StepLogs(names))
    state.probed.add(training)
    if all(layer.built for layer in keras_private.inner_layers(model)):
        model.built = True  # there is nothing else with variables


def serialized_choice(model: Any) -> Any:
    """Return `variables_to_train` for a saved configuration.

    The variables of a built model are saved by position, because paths may repeat; a layer would
    include variables that nobody trains.
    """
    choice = model.train_ops.arguments["variables_to_train"]
    if choice is None:
        return None
    position = {id(v): i for i, v in enumerate(_trainable(model))} if model.built else {}

    def serialized(patterns: paths.Patterns) -> Any:
        if not model.built:
            return paths.serializable(patterns)
        return [position[id(v)] for v in paths.selected(patterns, _trainable(model))]

    if isinstance(choice, Mapping):
        return {name: serialized(patterns) for name, patterns in choice.items()}
    return serialized(choice)


def choice_from(config: Mapping[str, Any], model: Any) -> Any:
    """Return `variables_to_train` from a configuration that `serialized_choice` made."""
    choice = config.get("variables_to_train")
    variables = _trainable(model)

    def loaded(patterns: Any) -> Any:
        return [variables[p] if isinstance(p, int) else p for p in patterns]

    if isinstance(choice, Mapping):
        return {name: loaded(patterns) for name, patterns in choice.items()}
    return None if choice is None else loaded(choice)


def _trainable(model: Any) -> list[keras.Variable]:
    """Return all trainable variables, also those that the model is not to train."""
    return [variable for variable in model.variables if variable.trainable]
