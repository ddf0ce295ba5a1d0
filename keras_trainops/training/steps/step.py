"""The object that `training_step` and `evaluation_step` are given: gradients, and what to do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_trainops import keras_private
from keras_trainops.backends import Gradient, backend
from keras_trainops.gradients.base import GradientSource, Losses, Objective, checked
from keras_trainops.training.optimizers.loss_scale import (
    LossScale,
    loss_scale_of,
    require_same_scaling,
)
from keras_trainops.training.optimizers.transfer import built_for
from keras_trainops.training.steps.differentiation import Differentiation
from keras_trainops.training.steps.owners import optimizers_of, owners_of, the_one


class Step(Differentiation):
    """One step on one batch of data, with the same methods on TensorFlow, JAX and PyTorch.

    `training_step(self, step, data)` of a model with `TrainOpsMixin` is given one, and so is
    `evaluation_step`. A function that is differentiated may call layers and assign variables as it
    likes: the assignments happen once, when it has returned.

    Example:
        >>> import keras, keras_trainops as kt
        >>> class Autoencoder(kt.TrainOpsMixin, keras.Model):
        ...     def training_step(self, step: kt.Step, data):
        ...         x, *_ = step.unpack(data)
        ...         def loss():
        ...             return keras.ops.mean(keras.ops.square(self(x, training=True) - x))
        ...         return {"loss": step.minimize(loss, self.trainable_variables)}

    References: `tf.contrib.training.create_train_op`; `jax.grad`.
    """

    training: bool = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.has_minimized = False
        self._metrics: list[tuple[Any, ...]] = []

    # The data and the model

    @staticmethod
    def unpack(data: Any) -> tuple[Any, Any, Any]:
        """Return the data of a batch as `x, y, sample_weight`; what is not there is None."""
        return keras.utils.unpack_x_y_sample_weight(data)

    def forward(self, x: Any) -> Any:
        """Call the model on `x`, with `training` as Keras's own steps do.

        Args:
            x: The inputs of a batch.

        Returns:
            The predictions.
        """
        return backend().forward(self.model, x, training=self.training)

    def loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Return the loss of `compile(loss=...)`, with the losses that layers added: a scalar.

        Args:
            x: The inputs of a batch.
            y: The targets, or None.
            y_pred: The predictions.
            sample_weight: The weights of the samples, or None.
        """
        return keras_private.compute_loss(
            self.model, x, y, sample_weight, y_pred, training=self.training
        )

    def losses(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Return `loss`, told apart by outputs if the source of gradients asks for that.

        Args:
            x: The inputs of a batch.
            y: The targets, or None.
            y_pred: The predictions.
            sample_weight: The weights of the samples, or None.

        Returns:
            A scalar; with `compile(gradients=kt.gradients.ProjectConflicts())`, for example, and
            several outputs, a `kt.gradients.Losses`. `minimize` takes both.
        """
        value = self.loss(x, y, y_pred, sample_weight)
        source = self._source
        outputs = keras.tree.flatten(y_pred)
        if source is None or not source.tells_losses_apart or len(outputs) < 2:
            return value
        stopped = [keras_private.stop_gradient(output) for output in outputs]

        def through(*kept: int) -> Any:
            mixed = [outputs[i] if i in kept else each for i, each in enumerate(stopped)]
            packed = keras.tree.pack_sequence_as(y_pred, mixed)
            return self.loss(x, y, packed, sample_weight)

        with self.values([], [], keep_updates=False):  # metrics have counted the batch already
            rest = through()
            return Losses(value, [through(i) - rest for i in range(len(outputs))], rest)

    def update_metrics(
        self, y: Any, y_pred: Any, sample_weight: Any = None, *, x: Any = None
    ) -> None:
        """Update the metrics of `compile(metrics=...)` at the end of the step.

        Args:
            y: The targets.
            y_pred: The predictions; from a differentiated function they come as `aux`.
            sample_weight: The weights of the samples, or None.
            x: The inputs, for models that override `compute_metrics`.

        Raises:
            RuntimeError: Within a function that is differentiated, or within `values`.
        """
        self._require_outermost("update_metrics")
        self._metrics.append((x, y, y_pred, sample_weight))

    # Weight updates

    def apply(
        self,
        gradients: Sequence[Gradient],
        variables: Sequence[keras.Variable],
        *,
        again: bool = False,
    ) -> None:
        """Update weights with the optimizer that was compiled for them.

        Its transforms, and the updates that follow it, run too.

        Args:
            gradients: One per variable, as `gradients` returns them; None leaves a variable alone.
            variables: Variables that one optimizer trains, all of them or some.
            again: If True, the optimizer may already have made an update in this step.

        Raises:
            ValueError: If there are not as many gradients as variables, or no optimizer trains
                these variables, or several do, or it has made an update in this step.
            RuntimeError: Within a function that is differentiated, or within `values`.
        """
        gradients, variables = list(gradients), list(variables)
        if len(gradients) != len(variables):
            raise ValueError(
                f"`gradients` and `variables` must be equally many. Received: {len(gradients)} "
                f"gradients, {len(variables)} variables"
            )
        self._require_outermost("apply")
        name = the_one(self._owners_of(variables))
        scale = loss_scale_of(optimizers_of(self.model)[name])
        pairs = zip(gradients, variables, strict=True)
        self._apply(name, [scale.scaled(g, v) for g, v in pairs], variables, again=again)

    def minimize(
        self,
        function: Callable[..., Any],
        variables: Sequence[keras.Variable] | None = None,
        *,
        data: Any = None,
        aux: bool = False,
        keep_updates: bool = True,
        again: bool = False,
    ) -> Any:
        """Differentiate a loss, and update weights with its gradients.

        It is the place where `compile(gradients=...)` takes effect. Without it the optimizer gets
        the gradients exactly as in Keras: rows of embeddings stay sparse on TensorFlow, and a
        variable without a gradient is left alone.

        Args:
            function: Returns the loss: a scalar, or a list or dictionary of scalars, whose sum is
                the loss, or `losses(...)`. It is called with `data`, if that is given.
            variables: Variables to train; None: all that the model trains. If several optimizers
                train them, each makes an update.
            data: A batch, for sources of gradients that look at its examples.
            aux: If True, `function` returns the loss and something else, tensors or None.
            keep_updates: As in `gradients`.
            again: As in `apply`.

        Returns:
            The loss, a scalar, or the loss and the rest.

        Raises:
            ValueError: As `gradients` and `apply`, and as the source of gradients.
            RuntimeError: As `apply`.
        """
        self._require_outermost("minimize")
        variables = self._trained() if variables is None else list(variables)
        self.has_minimized = True
        objective = Objective(function, data, aux, keep_updates)
        if not variables:
            found = self._differentiate(objective.whole, [], True, keep_updates, None)
            return (found.value, found.aux) if aux else found.value
        owners = self._owners_of(variables)
        require_same_scaling([optimizers_of(self.model)[name] for name in dict.fromkeys(owners)])
        if self._source is not None:
            value, extra = self._minimize_from(self._source, objective, variables, owners, again)
            return (value, extra) if aux else value
        scale = loss_scale_of(optimizers_of(self.model)[owners[0]])
        found = self._differentiate(objective.whole, variables, True, keep_updates, scale)
        for name in dict.fromkeys(owners):
            own = [i for i, owner in enumerate(owners) if owner == name]
            gradients, part = [found.gradients[i] for i in own], [variables[i] for i in own]
            if name != owners[0]:
                gradients = self._rescaled(gradients, part, scale, name)
            self._apply(name, gradients, part, again=again)
        return (found.value, found.aux) if aux else found.value

    @property
    def _source(self) -> GradientSource | None:
        return self.model.train_ops.gradients if self.training else None

    def _minimize_from(
        self,
        source: GradientSource,
        objective: Objective,
        variables: Sequence[keras.Variable],
        owners: Sequence[str],
        again: bool,
    ) -> tuple[Any, Any]:
        """Update weights with the gradients of a source; return the loss and the rest."""
        found = checked(source, source(self, objective, variables), variables)
        self._note_loss(found.value, owners)
        for name in dict.fromkeys(owners):
            scale = loss_scale_of(optimizers_of(self.model)[name])
            part = [
                (gradient, variable)
                for gradient, variable, owner in zip(
                    found.gradients, variables, owners, strict=True
                )
                if owner == name
            ]
            self._apply(
                name, [scale.scaled(g, v) for g, v in part], [v for _, v in part], again=again
            )
        return found.value, found.aux

    def _rescaled(
        self,
        gradients: Sequence[Gradient],
        variables: Sequence[keras.Variable],
        scale: LossScale,
        name: str,
    ) -> list[Gradient]:
        """Return gradients with the loss scale of the optimizer of this name."""
        new, pairs = (
            loss_scale_of(optimizers_of(self.model)[name]),
            zip(gradients, variables, strict=True),
        )
        dense = [(None if g is None else backend().dense(g), v) for g, v in pairs]
        return [new.scaled(scale.unscaled(gradient, v), v) for gradient, v in dense]

    # What differs between a step that runs and one that is only looked at

    @abstractmethod
    def _apply(
        self,
        name: str,
        gradients: Sequence[Gradient],
        variables: Sequence[keras.Variable],
        *,
        again: bool,
    ) -> None:
        """Pass scaled gradients to the optimizer of this name."""

    def _trained(self) -> list[keras.Variable]:
        """Return all variables that the model trains."""
        return built_for(self.model.optimizer) or self.model.trainable_variables

    def _owners_of(self, variables: Sequence[keras.Variable]) -> list[str]:
        return owners_of(self._names, variables)
