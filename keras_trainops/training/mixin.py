"""Mixin that adds gradient transforms and configurable updates to a Keras model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import keras

from keras_trainops import keras_private, paths
from keras_trainops.backends import backend
from keras_trainops.gradients.base import as_source
from keras_trainops.training import agreement, apart, own_step, preparation
from keras_trainops.training.all_or_nothing import all_or_nothing
from keras_trainops.training.call_arguments import EPOCHS, EVALUATE_VERBOSE, FIT_VERBOSE
from keras_trainops.training.fit_callbacks import evaluation_context, wrapped_fit
from keras_trainops.training.numerics import GradientGuard, NumericsGuard
from keras_trainops.training.optimizers.compiling import (
    DEFAULT,
    OptimizerArguments,
    fitted,
    with_loss_scales,
)
from keras_trainops.training.optimizers.group import all_transformed_in
from keras_trainops.training.optimizers.loss_scale import require_same_scaling
from keras_trainops.training.optimizers.transfer import built_for
from keras_trainops.training.optimizers.weight_decay import EXCLUDED, exclude, exclusions
from keras_trainops.training.optimizers.wrapping import ensure_transformed, guarded, owned_by
from keras_trainops.training.signatures import TypedModel, typed_as
from keras_trainops.training.steps.running import test_step, train_step
from keras_trainops.training.steps.step import Step
from keras_trainops.training.steps.texts import EVALUATION, TRAINING, has_own_text, of_mixin
from keras_trainops.training.train_ops import (
    COMPILE_ARGUMENTS,
    Compiled,
    FitState,
    TrainOps,
    no_logs,
)
from keras_trainops.training.trainability import Trainability, as_compiled, chosen, without
from keras_trainops.updates.functions import as_update
from keras_trainops.updates.policy import UpdatePolicy

if TYPE_CHECKING:
    from keras_trainops.training.signatures import TypedModel as _Model
else:
    _Model = object


class TrainOpsMixin(_Model):
    """Mixin that customises the training step of a Keras model; list it before `keras.Model`.

    `compile` takes six more arguments; everything else works as in Keras.

    Example:
        >>> import keras, keras_trainops as kt
        >>> class Net(kt.TrainOpsMixin, keras.Model):
        ...     pass
        >>> inputs = keras.Input((4,))
        >>> model = Net(inputs, keras.layers.Dense(2, name="head")(inputs))
        >>> model.compile("sgd", "mse", gradient_transforms=kt.transforms.ClipByNorm(3.0))

    References: `tf.contrib.training.create_train_op`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if keras.Model in order and order.index(keras.Model) < order.index(TrainOpsMixin):
            raise TypeError(
                f"`TrainOpsMixin` must come before the Keras model it extends: "
                f"`class {cls.__name__}(TrainOpsMixin, keras.Model)`."
            )

    @property
    def train_ops(self) -> TrainOps:
        """The state of the mixin; created on first use, because the mixin may be added later."""
        state = self.__dict__.get("_train_ops")
        if state is None:
            state = self.__dict__["_train_ops"] = TrainOps()
        return state

    @typed_as(TypedModel.compile)
    def compile(
        self,
        optimizer: Any = DEFAULT,
        *args: Any,
        optimizers: Any = None,
        gradient_transforms: Any = None,
        updates: Any = None,
        variables_to_train: paths.Patterns = None,
        check_numerics: bool = False,
        gradients: Any = None,
        **kwargs: Any,
    ) -> None:
        backend().require_training()
        backend().require_supported_engine(self)
        state = self.train_ops
        described = OptimizerArguments(
            optimizer, optimizers, gradient_transforms, variables_to_train
        )
        policy = UpdatePolicy(updates, state.registered, state.policy, described.names)
        keeps_state = bool(policy.after_weights)
        optimizer = preparation.create_optimizer(self, described, keeps_state=keeps_state)
        values = (updates, variables_to_train, check_numerics, as_source(gradients))
        arguments: dict[str, Any] = dict(zip(COMPILE_ARGUMENTS, values, strict=True))
        needed = own_step.methods_needed(self, TrainOpsMixin, policy, arguments, optimizer)
        own_step.refuse_without_methods(self, TrainOpsMixin, needed)
        with all_or_nothing(self, state, *owned_by(optimizer)):
            guard = preparation.in_scope(self, NumericsGuard) if check_numerics else None
            in_optimizer = guard is not None and own_step.replaces_ours(self, TrainOpsMixin)
            optimizer = guarded(optimizer, GradientGuard(guard) if guard and in_optimizer else None)
            state.compiled = Compiled(arguments, policy, guard, own_step.need_our_step(needed))
            state.step_logs, state.probed = no_logs(), set()
            optimizer = preparation.in_scope(self, lambda: fitted(optimizer, self))
            super().compile(optimizer, *args, **kwargs)
            self.optimizer = preparation.in_scope(self, lambda: with_loss_scales(self.optimizer))
            if not has_own_text(self, TRAINING):
                require_same_scaling(keras_private.named_optimizers(self.optimizer).values())
            state.compiled = dataclasses.replace(state.compiled, trainability=Trainability(self))
            preparation.attach_optimizer(self)

    @typed_as(TypedModel.add_update)
    def add_update(self, update: Any = None, **options: Any) -> Any:
        if update is None:
            return functools.partial(self.add_update, **options)
        state, optimizer = self.train_ops, getattr(self, "optimizer", None)
        registered = [*state.registered, as_update(update, **options)]
        policy = UpdatePolicy(
            state.arguments["updates"],
            registered,
            state.policy,
            list(keras_private.named_optimizers(optimizer)),
        )
        needed = own_step.methods_needed(self, TrainOpsMixin, policy, state.arguments, optimizer)
        if self.compiled:
            own_step.refuse_without_methods(self, TrainOpsMixin, needed)
        with all_or_nothing(self, state, *owned_by(optimizer)):
            state.registered = registered
            state.compiled = dataclasses.replace(
                state.compiled, policy=policy, need_our_step_for=own_step.need_our_step(needed)
            )
            if optimizer is not None and policy.after_weights:
                self.optimizer = ensure_transformed(optimizer)
                preparation.attach_optimizer(self)
        self.train_function = None  # the next `fit` traces the step again
        return update

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The variables to train: the trainable ones that `variables_to_train` chooses."""
        return self._to_train(super().trainable_variables)

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        """The same as `trainable_variables`."""
        return self._to_train(super().trainable_weights)

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        """All variables except those to train, in Keras's order."""
        return without(self.variables, self.trainable_variables)

    @property
    def non_trainable_weights(self) -> list[keras.Variable]:
        """All weights except those to train, in Keras's order."""
        return without(self.weights, self.trainable_weights)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Return Keras's logs and, in training, the norms that monitors watch."""
        state, transformed = self.train_ops, all_transformed_in(self.optimizer)
        if not state.evaluating and all(each.built for each in transformed):
            state.norms.update()  # not in a symbolic build
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**logs, **state.norm_logs()}

    def get_metrics_result(self) -> dict[str, Any]:
        """Return Keras's results and, in training, the norms that monitors watch."""
        return {**super().get_metrics_result(), **self.train_ops.norm_logs()}

    def reset_metrics(self) -> None:
        """Reset metrics as in Keras, and the averages of norms and of a step's logs."""
        super().reset_metrics()
        self.train_ops.reset_logs()

    @typed_as(TypedModel.fit)
    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Train as in Keras."""
        facts = {"the number of epochs": EPOCHS.of(args, kwargs)}
        args, kwargs = apart.printed_once(self, args, kwargs, FIT_VERBOSE)
        with (
            apart.whole_fit(self, FitState(runs=True, facts=facts)),
            self._in_training(whole=True),
            wrapped_fit(self, args, kwargs) as (args, kwargs),
        ):
            return super().fit(*args, **kwargs)

    @typed_as(TypedModel.train_on_batch)
    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Train on one batch as in Keras."""
        with self._in_training(whole=False):
            return super().train_on_batch(*args, **kwargs)

    @contextmanager
    def _in_training(self, *, whole: bool) -> Iterator[None]:
        needed = self.train_ops.compiled.need_our_step_for
        preparation.reduce_gradients(self)
        with as_compiled(self), own_step.watched(self, TrainOpsMixin, needed, whole=whole):
            yield

    @typed_as(TypedModel.evaluate)
    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as in Keras; during a `fit` with `UseAverage`, with the averaged weights."""
        state = self.train_ops
        args, kwargs = apart.printed_once(self, args, kwargs, EVALUATE_VERBOSE)
        with state.evaluation(whole=True), evaluation_context(state.fit.evaluation, kwargs):
            try:
                with apart.whole_evaluation(self):
                    return super().evaluate(*args, **kwargs)
            except BaseException:
                backend().write_back_state(self)
                raise

    @typed_as(TypedModel.test_on_batch)
    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate on one batch as in Keras."""
        with self.train_ops.evaluation(whole=False):
            return super().test_on_batch(*args, **kwargs)

    @property
    def metrics_variables(self) -> list[keras.Variable]:
        """The variables of metrics, and others that steps pass on but files do not store."""
        state = self.train_ops
        own = super().metrics_variables
        return [*own, *state.log_variables, *state.carried]

    def _to_train(self, variables: list[keras.Variable]) -> list[keras.Variable]:
        patterns = self.train_ops.arguments.get("variables_to_train")
        return variables if patterns is None or not self.built else chosen(patterns, variables)

    @of_mixin
    def training_step(self, step: Step, data: Any) -> dict[str, Any]:
        """Train on one batch; override it for a step of your own.

        The text is the same on every backend, and compiled as `fit` compiles. What it assigns
        itself, for example to clip weights after an update, is kept whatever `updates` says.

        Args:
            step: Differentiates functions and updates weights.
            data: A batch.

        Returns:
            Scalars for the logs, by name; "loss" is Keras's own.
        """
        x, y, sample_weight = step.unpack(data)

        def loss(batch: Any) -> tuple[Any, Any]:
            x, y, sample_weight = batch
            y_pred = step.forward(x)
            return step.losses(x, y, y_pred, sample_weight), y_pred

        batch = (x, y, sample_weight)
        value, y_pred = step.minimize(loss, data=batch, aux=True)
        step.update_metrics(y, y_pred, sample_weight, x=x)
        return {"loss": value}

    @of_mixin
    def evaluation_step(self, step: Step, data: Any) -> dict[str, Any]:
        """Evaluate on one batch, in `evaluate` and in validation; override it for your own.

        Args:
            step: As in `training_step`; it updates no weights.
            data: A batch.

        Returns:
            Scalars for the logs, by name.
        """
        x, y, sample_weight = step.unpack(data)
        y_pred = step.forward(x)
        step.update_metrics(y, y_pred, sample_weight, x=x)
        return {"loss": step.loss(x, y, y_pred, sample_weight)}

    @typed_as(TypedModel.train_step)
    def train_step(self, *args: Any) -> Any:
        """Train on one batch with the class's Keras step, `training_step` if needed, or Keras's.

        Args:
            *args: The data; on JAX the training state and the data.
        """
        self.train_ops.steps += 1
        whose = own_step.own_step_after_mixin(type(self), TrainOpsMixin)
        if whose is None and own_step.needs_ours(self):
            return backend().run_step(train_step, self, *args)
        return super().train_step(*args)

    @typed_as(TypedModel.test_step)
    def test_step(self, *args: Any) -> Any:
        """Evaluate on one batch with the class's `evaluation_step`, or as Keras does.

        Args:
            *args: The data; on JAX the state and the data.

        Raises:
            ValueError: If the model has its own `training_step`, but nothing to evaluate with.
        """
        if has_own_text(self, EVALUATION):
            return backend().run_step(test_step, self, *args)
        own_step.require_evaluation(self)
        return super().test_step(*args)

    def make_train_function(self, force: bool = False) -> Any:
        """Build the optimizer and the updates, then the compiled step, as `fit` starts."""
        preparation.require_same_variables(self)
        state = self.train_ops
        if self.train_function is not None and not force:
            self.start_updates(anew=False)
            agreement.require_same(self)
            return self.train_function
        preparation.require_built(self)
        if self.built and not state.why_unbuilt:
            preparation.prepare(self)
        agreement.require_same(self)
        own_step.remember(self)
        with backend().logs_of_replicas(self, "train_step"):
            super().make_train_function(force)
        made: Any = self.train_function
        made = backend().train_function(made, self, state.numerics)
        shares_state = not own_step.replaces_ours(self, TrainOpsMixin)
        self.train_function = apart.train_function_of_all(made, self, shares_state=shares_state)
        return self.train_function

    def make_test_function(self, force: bool = False) -> Any:
        """Build the compiled step of an evaluation, as `evaluate` starts."""
        if self.test_function is None or force:
            with backend().logs_of_replicas(self, "test_step"):
                super().make_test_function(force)
            made: Any = self.test_function
            self.test_function = apart.test_function_of_all(made, self)
        return self.test_function

    def start_updates(self, *, anew: bool) -> None:
        """Initialise updates from the model's weights, for example averages.

        Args:
            anew: If True, updates that have already started start again, as after a warm start.
        """
        preparation.start_updates(self, anew=anew)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Build the model before callbacks run; only TensorFlow's trainer calls this."""
        if backend().builds_models_itself(self):
            self.train_ops.fit.show_data(iterator)
            if not self.train_ops.evaluating:
                agreement.require_same(self)  # replicas create variables together
            super()._maybe_symbolic_build(*backend().data_to_build_from(self, iterator, data_batch))
        else:
            preparation.build_early(self, iterator, data_batch)

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Pass the data to the callback that follows them; JAX and PyTorch have them only here."""
        self.train_ops.fit.show_data(iterator)
        if preparation.is_to_probe(self):
            data_batch = keras_private.first_batch(iterator) if data_batch is None else data_batch
            preparation.probe_step(self, data_batch)
        super()._symbolic_build(iterator, data_batch)

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        """Return Keras's logs, or the metrics for an epoch that was resumed at its very end."""
        parent: Any = super()
        logs = apart.logs_of_all(self, logs)
        logs = logs or (parent.get_metrics_result() if self.train_ops.fit.follows else logs)
        return parent._get_metrics_result_or_logs(logs)

    def get_compile_config(self) -> dict[str, Any]:
        """Return Keras's configuration of `compile`, with the arguments of the mixin."""
        config = super().get_compile_config()
        if not config:
            return config
        arguments = dict(self.train_ops.arguments)
        arguments["variables_to_train"] = preparation.serialized_choice(self)
        if self.optimizer is not None:  # `add_update` may have wrapped it since
            arguments["optimizer"] = self.optimizer
            arguments.update(exclusions(self.optimizer, built_for(self.optimizer)))
        return {**config, **keras.saving.serialize_keras_object(arguments)}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the saved model was compiled, and create the optimizer's variables."""
        config = keras.saving.deserialize_keras_object(config)
        excluded = config.pop(EXCLUDED, [])
        if all(layer.built for layer in keras_private.inner_layers(self)):
            self.built = True  # there is nothing else with variables
        config["variables_to_train"] = preparation.choice_from(config, self)
        self.compile(**config)
        exclude(self.optimizer, excluded, self.trainable_variables)
        if self.built and self.optimizer is not None:
            preparation.in_scope(self, lambda: preparation.build_optimizer(self))
