"""The object that `training_step` and `evaluation_step` are given: gradients, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_trainops import keras_private
from keras_trainops.backends import Gradient, backend
from keras_trainops.gradients.base import Found, GradientSource, Losses, Objective, checked
from keras_trainops.training.optimizers.loss_scale import (
    LossScale,
    loss_scale_of,
    require_same_scaling,
)
from keras_trainops.training.optimizers.transfer import built_for
from keras_trainops.training.steps.differentiation import Differentiation
from keras_trainops.training.steps.outcome import Differentiated, Request
from keras_trainops.training.steps.owners import owners_of, the_one


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
        self._applied: set[str] = set()  # the names of the optimizers that have made an update
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
        """Return `loss`, split by output if the source of gradients asks for that.

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
        if source is None or not source.splits_losses or len(outputs) < 2:
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
        owners = self._owners_of(variables)
        the_one(owners)
        self._apply(gradients, variables, owners, None, again=again)

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
            found = self._differentiate(Request(objective.whole, [], True, keep_updates))
            return (found.value, found.aux) if aux else found.value
        owners = self._owners_of(variables)
        require_same_scaling([self._optimizers[name] for name in dict.fromkeys(owners)])
        result: Differentiated | Found
        if self._source is None:
            scale = loss_scale_of(self._optimizers[owners[0]])
            result = self._differentiate(
                Request(objective.whole, variables, True, keep_updates, scale)
            )
        else:
            scale = None
            result = checked(self._source, self._source(self, objective, variables), variables)
            self._note_loss(result.value, variables)
        self._apply(result.gradients, variables, owners, scale, again=again)
        return (result.value, result.aux) if aux else result.value

    @property
    def _source(self) -> GradientSource | None:
        return self.model.train_ops.gradients if self.training else None

    def _apply(
        self,
        gradients: Sequence[Gradient],
        variables: Sequence[keras.Variable],
        owners: Sequence[str],
        scale: LossScale | None,
        *,
        again: bool,
    ) -> None:
        """Pass gradients to the optimizers of their variables.

        Args:
            gradients: One per variable, or None.
            variables: The variables.
            owners: The name of the optimizer of each variable.
            scale: The loss scale that the gradients have; None if they have none.
            again: Whether an optimizer may have made an update in this step.

        Raises:
            RuntimeError: In an evaluation.
            ValueError: If an optimizer has made an update, and may not make another one.
        """
        if not self.training:
            raise RuntimeError("`evaluation_step` must not update weights.")
        for name in dict.fromkeys(owners):
            if name in self._applied and not again:
                raise _repeated(name)
            self._applied.add(name)
            new = loss_scale_of(self._optimizers[name])
            trios = zip(gradients, variables, owners, strict=True)
            part = [(g, v) for g, v, owner in trios if owner == name]
            if scale != new:
                part = [(_rescaled(g, v, scale, new), v) for g, v in part]
            self._update(name, [g for g, _ in part], [v for _, v in part])

    def _update(
        self, name: str, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> None:
        """Pass scaled gradients to the optimizer of this name; the probe does nothing."""

    def _trained(self) -> list[keras.Variable]:
        """Return all variables that the model trains."""
        return built_for(self.model.optimizer) or self.model.trainable_variables

    def _owners_of(self, variables: Sequence[keras.Variable]) -> list[str]:
        return owners_of(self._names, variables)


def _rescaled(
    gradient: Gradient, variable: keras.Variable, old: LossScale | None, new: LossScale
) -> Gradient:
    """Return a gradient with another loss scale; `old` is None if it has none."""
    if old is not None:
        gradient = old.unscaled(backend().dense(gradient), variable)
    return new.scaled(gradient, variable)


def _repeated(name: str) -> ValueError:
    """Return the error for an optimizer that makes another update in a step."""
    which = f"The optimizer {name!r}" if name else "The optimizer"
    return ValueError(
        f"{which} has already updated weights in this step. Apply all of its gradients at "
        "once; or compile with several `optimizers`; or, if each step is to make several "
        "updates, pass `again=True`."
    )
