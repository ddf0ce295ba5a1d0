"""The mixin that gives a Keras model transformable gradients and chosen updates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import keras

from keras_trainops import paths
from keras_trainops.backends import backend
from keras_trainops.training import own_step
from keras_trainops.training.all_or_nothing import all_or_nothing
from keras_trainops.training.fit_callbacks import accompanied, surroundings
from keras_trainops.training.numerics import NumericsGuard
from keras_trainops.training.optimizer import engine_of
from keras_trainops.training.optimizer_transfer import (
    is_built_for,
    trained_by,
    transferred,
    without,
)
from keras_trainops.training.options import COMPILE_ARGUMENTS, TrainOps
from keras_trainops.training.step import train_step
from keras_trainops.training.trainability import Trainability, as_compiled, changed_since
from keras_trainops.training.weight_decay import EXCLUDED, exclude, exclusions
from keras_trainops.training.wrapping import owned_by, with_engine, with_transforms
from keras_trainops.transforms.monitoring import Monitor, norm_metrics
from keras_trainops.updates.functions import as_update
from keras_trainops.updates.policy import UpdatePolicy


class TrainOpsMixin:
    """Mix it into a Keras model, before `keras.Model`, to customise its training step.

    `compile` takes four more arguments, and everything else works as in Keras.

    Example:
        >>> import keras, keras_trainops as kt
        >>> class Net(kt.TrainOpsMixin, keras.Model):
        ...     pass
        >>> inputs = keras.Input((4,))
        >>> model = Net(inputs, keras.layers.Dense(2, name="head")(inputs))
        >>> model.compile("sgd", "mse", gradient_transforms=kt.transforms.ClipByNorm(3.0))

    References: `tf.contrib.training.create_train_op`.
    """

    if TYPE_CHECKING:  # what the Keras model beside it has
        built: bool
        compiled: bool
        optimizer: Any
        variables: list[keras.Variable]
        weights: list[keras.Variable]

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
        """What the mixin keeps; made when first asked for, as a class may be mixed in later."""
        state = self.__dict__.get("_train_ops")
        if state is None:
            state = self.__dict__["_train_ops"] = TrainOps()
        return state

    def compile(
        self,
        optimizer: Any = "rmsprop",
        *args: Any,
        gradient_transforms: Any = None,
        updates: Any = None,
        variables_to_train: paths.Patterns = None,
        check_numerics: bool = False,
        **kwargs: Any,
    ) -> None:
        """Configures the model for training; see `keras.Model.compile` for the other arguments.

        Args:
            optimizer: As in Keras; it stays as it is. With `gradient_transforms` the model's is a
                `TransformedOptimizer` around it, or a copy of a `LossScaleOptimizer` with one
                inside; these transforms take the place of those that it has.
            *args: As in Keras.
            gradient_transforms: One transform, a list, or None: `GradientTransform`s or callables
                `fn(gradients, variables) -> gradients`.
            updates: The non-gradient updates. None: every layer's own, and what `add_update`
                registered. One or a list: just these; `[]` none at all (batch norm still normalises
                with batch statistics, random seeds still advance).
            variables_to_train: Patterns, variables or layers; None: all trainable variables. The
                others get no gradient, no weight decay, no optimizer slots and no update.
            check_numerics: Whether a NaN or infinite loss or gradient stops training with a
                `NonFiniteLossError` that names the step and which it was, and leaves the weights
                of the last good step.
            **kwargs: As in Keras.

        Raises:
            ValueError: If an argument does not fit; nothing changes. Patterns wait for the build.
            NotImplementedError: On a backend other than TensorFlow, JAX and PyTorch.
        """
        state = self.train_ops
        optimizer = keras.optimizers.get(optimizer)
        if gradient_transforms is not None:
            optimizer = with_transforms(optimizer, gradient_transforms)
        backend().require_training()
        policy = UpdatePolicy(updates, state.registered, state.policy)
        if policy.after_weights and optimizer is not None:
            optimizer = with_engine(optimizer)  # which keeps the updates' state
        paths.as_list(variables_to_train)
        values = (updates, variables_to_train, check_numerics)
        arguments = dict(zip(COMPILE_ARGUMENTS, values, strict=True))
        wanted = own_step.wants_our_step(policy, arguments, optimizer)
        own_step.refuse_without_our_step(self, TrainOpsMixin, wanted)
        with all_or_nothing(self, state, *owned_by(optimizer)):
            state.arguments, state.policy, state.wanted = arguments, policy, wanted
            state.numerics = self._in_scope(NumericsGuard) if check_numerics else None
            optimizer = self._in_scope(functools.partial(transferred, optimizer, self))
            super().compile(optimizer, *args, **kwargs)  # type: ignore[misc]
            state.compiled = Trainability(self)
            self._attach_engine()

    def _attach_engine(self) -> None:
        state, engine = self.train_ops, engine_of(self.optimizer)
        state.monitors, state.norm_metrics = [], []
        if engine is not None:
            engine.attach(self)
            state.monitors = [m for m in engine.chain.walk() if isinstance(m, Monitor)]
            state.norm_metrics = self._in_scope(lambda: norm_metrics(state.monitors))

    def _in_scope(self, make: Callable[[], Any]) -> Any:
        strategy = getattr(self, "_distribute_strategy", None)
        if strategy is None:
            return make()
        with strategy.scope():
            return make()

    def add_update(self, update: Any = None, **options: Any) -> Any:
        """Registers an update that runs after the weight update, unless `compile` says otherwise.

        Also a decorator, with arguments or without: `@model.add_update(every=10)`.

        Args:
            update: An `Update`, or a function `fn(model, loss)` that assigns variables with
                `keras.ops`.
            **options: For a function the arguments of `keras_trainops.updates.Function`:
                `variables`, `every`, `on`.

        Returns:
            `update`.

        Raises:
            ValueError: If it is neither, or an option does not fit.
        """
        if update is None:
            return functools.partial(self.add_update, **options)
        state = self.train_ops
        registered = [*state.registered, as_update(update, **options)]
        policy = UpdatePolicy(state.arguments["updates"], registered, state.policy)
        wanted = own_step.wants_our_step(policy, state.arguments, getattr(self, "optimizer", None))
        if self.compiled:
            own_step.refuse_without_our_step(self, TrainOpsMixin, wanted)
        with all_or_nothing(self, state, *owned_by(getattr(self, "optimizer", None))):
            state.registered, state.policy, state.wanted = registered, policy, wanted
            if getattr(self, "optimizer", None) is not None and policy.after_weights:
                self.optimizer = with_engine(self.optimizer)
                self._attach_engine()
        self.train_function: Any = None  # the next `fit` traces the step anew
        return update

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The variables to train: Keras's own, or of these what `variables_to_train` chooses."""
        return self._to_train(super().trainable_variables)  # type: ignore[misc]

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        """The same as `trainable_variables`."""
        return self._to_train(super().trainable_weights)  # type: ignore[misc]

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        """All variables but the ones to train, in Keras's order."""
        return without(self.variables, self.trainable_variables)

    @property
    def non_trainable_weights(self) -> list[keras.Variable]:
        """All weights but the ones to train, in Keras's order."""
        return without(self.weights, self.trainable_weights)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Keras's logs and, in training, the norms that monitors watch."""
        state = self.train_ops
        engine = engine_of(self.optimizer)
        if engine is not None and engine.built and state.shows_norms:  # not in a symbolic build
            metrics = iter(state.norm_metrics)
            for monitor in state.monitors:
                norms, weights = monitor.take()
                for i in range(len(monitor.labels)):
                    next(metrics).update_state(norms[i], sample_weight=weights[i])
        logs = super().compute_metrics(x, y, y_pred, sample_weight)  # type: ignore[misc]
        return {**logs, **self._norms()}

    def get_metrics_result(self) -> dict[str, Any]:
        """Keras's results and, in training, the norms that monitors watch."""
        return {**super().get_metrics_result(), **self._norms()}  # type: ignore[misc]

    def reset_metrics(self) -> None:
        """As in Keras."""
        super().reset_metrics()  # type: ignore[misc]
        for metric in self.train_ops.norm_metrics if self.train_ops.shows_norms else []:
            metric.reset_state()

    def _norms(self) -> dict[str, Any]:
        """Not among `metrics`, which users' steps update with predictions and targets."""
        state = self.train_ops
        return {m.name: m.result() for m in state.norm_metrics} if state.shows_norms else {}

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As in Keras."""
        try:
            with self._in_training(whole=True), accompanied(self, args, kwargs) as (args, kwargs):
                return super().fit(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.train_ops.evaluation = None

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As in Keras."""
        with self._in_training(whole=False):
            return super().train_on_batch(*args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def _in_training(self, *, whole: bool) -> Iterator[None]:
        backend().require_one_process()
        wanted = self.train_ops.wanted
        with as_compiled(self), own_step.watched(self, TrainOpsMixin, wanted, whole=whole):
            yield

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As in Keras; within a `fit` that has a `UseAverage`, with the averaged weights."""
        with self._without_norms(), surroundings(self.train_ops.evaluation, kwargs):
            try:
                return super().evaluate(*args, **kwargs)  # type: ignore[misc]
            except BaseException:
                backend().write_back_state(self)
                raise

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As in Keras."""
        with self._without_norms():
            return super().test_on_batch(*args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def _without_norms(self) -> Iterator[None]:
        self.train_ops.shows_norms = False
        try:
            yield
        finally:
            self.train_ops.shows_norms = True

    @property
    def metrics_variables(self) -> list[keras.Variable]:
        """The variables of the metrics, and others that a step carries to the next, unsaved."""
        state = self.train_ops
        norms = [variable for metric in state.norm_metrics for variable in metric.variables]
        return [*super().metrics_variables, *norms, *state.carried]  # type: ignore[misc]

    def _to_train(self, variables: list[keras.Variable]) -> list[keras.Variable]:
        patterns = self.train_ops.arguments.get("variables_to_train")
        if patterns is None or not self.built:
            return variables
        chosen = paths.select(patterns, paths.by_path(variables))
        return [variable for variable, yes in zip(variables, chosen, strict=True) if yes]

    def train_step(self, *args: Any) -> Any:
        """One training step: that of the model's class, or Keras's where nothing needs ours.

        Args:
            *args: What Keras passes on the backend: the data, or on JAX the state and the data.
        """
        self.train_ops.steps += 1
        whose = own_step.own_step_behind(type(self), TrainOpsMixin)
        if whose is None and (self.train_ops.wants_own_step() or backend().needs_our_step(self)):
            return backend().run_step(train_step, self, *args)
        return super().train_step(*args)  # type: ignore[misc]

    def make_train_function(self, force: bool = False) -> Any:
        """Builds the optimizer and the updates, then the compiled step, as `fit` starts."""
        self._check_variables_to_train()
        state = self.train_ops
        if self.train_function is not None and not force:
            self.start_updates(anew=False)
            return self.train_function
        if state.why_unbuilt and state.wants_own_step():
            raise ValueError(
                "`updates` and `check_numerics` need a model that is built, and this one could not "
                "be built from the shapes of its data. Call it on a batch before `fit`, as in "
                f"`model(x)`. Why it could not: {state.why_unbuilt}"
            )
        if self.built and not state.why_unbuilt:
            self._in_scope(self._build_for_training)
            self._in_scope(self._check_for_training)
            self.start_updates(anew=False)
        own_step.remember(self)
        super().make_train_function(force)  # type: ignore[misc]
        self.train_function = backend().train_function(self.train_function, self, state.numerics)
        return self.train_function

    def _check_variables_to_train(self) -> None:
        now, before = self.trainable_variables, trained_by(self.optimizer)
        if not is_built_for(self.optimizer, now):
            changed = [*without(before, now), *without(now, before)]
            raise changed_since([variable.path for variable in changed])

    def _build_for_training(self) -> None:
        optimizer = self.optimizer
        if optimizer is not None and not optimizer.built:
            optimizer.build(self.trainable_variables)
        policy, engine = self.train_ops.policy, engine_of(optimizer)
        policy.build(self)
        if engine is not None:
            engine.build(self.trainable_variables)  # one that was put into a built optimizer
            engine.track_updates(policy)

    def _check_for_training(self) -> None:
        state = self.train_ops
        state.carried = [] if state.numerics is None else state.numerics.variables
        state.carried += state.policy.variables
        if self.optimizer is not None:
            state.carried += state.policy.check(self)

    def start_updates(self, *, anew: bool) -> None:
        """Has updates take what they start from: as training begins, `anew` after a warm start."""
        policy = self.train_ops.policy
        if policy.start(self, anew=anew) and self.optimizer is not None:
            shared = [*self.variables, *self.optimizer.variables, *policy.variables]
            backend().unshare_values(shared)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        here, followed = backend(), self._follow(iterator)  # only TensorFlow's trainer asks
        if here.builds_models_itself(self):
            super()._maybe_symbolic_build(iterator, data_batch)  # type: ignore[misc]
            return
        self.train_ops.why_unbuilt = here.build_model(self, iterator, data_batch)
        if followed and iterator is not None and not self.train_ops.why_unbuilt:
            here.build_metrics(self, iterator)

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        self._follow(iterator)  # here JAX's trainer and PyTorch's have the data
        super()._symbolic_build(iterator, data_batch)  # type: ignore[misc]

    def _follow(self, iterator: Any) -> bool:
        """Shows the data of a `fit` to the callback that follows them, once."""
        sees_data = self.train_ops.sees_data
        if sees_data is None or iterator is None:
            return False
        self.train_ops.sees_data, self.train_ops.follows = None, True
        sees_data(iterator)
        return True

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        """Keras's; of an epoch that was resumed at its very end there are no logs."""
        parent: Any = super()
        logs = logs or (parent.get_metrics_result() if self.train_ops.follows else logs)
        return parent._get_metrics_result_or_logs(logs)

    def get_compile_config(self) -> dict[str, Any]:
        """Keras's configuration of `compile`, with our arguments beside it."""
        config = super().get_compile_config()  # type: ignore[misc]
        if not config:
            return config
        arguments = dict(self.train_ops.arguments)
        arguments["variables_to_train"] = paths.serializable(arguments["variables_to_train"])
        if self.optimizer is not None:  # `add_update` may have wrapped it since
            arguments["optimizer"] = self.optimizer
            arguments.update(exclusions(self.optimizer, trained_by(self.optimizer)))
        return {**config, **keras.saving.serialize_keras_object(arguments)}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as the saved model was compiled, and creates the optimizer's variables."""
        config = keras.saving.deserialize_keras_object(config)
        excluded = config.pop(EXCLUDED, [])
        self.compile(**config)
        exclude(self.optimizer, excluded, self.trainable_variables)
        if self.built and self.optimizer is not None:
            self._in_scope(self._build_for_training)
