"""The object that `training_step` and `evaluation_step` are given: gradients, and what to do."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import Assignment, Gradient, backend
from keras_trainops.gradients.base import GradientSource, Losses, Objective, checked
from keras_trainops.keras_private import Assigned, ValueScope
from keras_trainops.training.examples import assigned_by_all, in_parts, of_example, summed_up
from keras_trainops.training.optimizers.group import OptimizerGroup
from keras_trainops.training.optimizers.loss_scale import LossScale, loss_scale_of
from keras_trainops.training.optimizers.transfer import built_for


class Differentiated(NamedTuple):
    """The results of one differentiation.

    Attributes:
        value: The scalar.
        aux: The auxiliary results; None if there are none.
        gradients: One per source, as the backend has them: sparse, or None, and scaled. Of several
            scalars a list of these for each.
        scale: The loss scale of the gradients; None if they have none.
    """

    value: Any
    aux: Any
    gradients: Sequence[Gradient]
    scale: LossScale | None


class Step(ABC):
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
        self.model = model
        self.has_minimized = False
        self._depth = 0  # of functions that are being differentiated
        self._scope: ValueScope | None = None  # around the text of the step
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

    # Gradients

    def gradients(
        self,
        function: Callable[..., Any],
        sources: Any,
        *,
        aux: bool = False,
        keep_updates: bool = True,
    ) -> tuple[Any, Any]:
        """Differentiate a scalar function by variables, or by its arguments.

        It may be called within another function that is differentiated, for gradient penalties and
        second derivatives. Outside of one, everything that it returns is constant.

        Args:
            function: Returns a scalar. It is called with those sources that are tensors, in their
                order, and must use these arguments: in place of tensors from outside.
            sources: A variable or a tensor, or a list, tuple or dictionary of these.
            aux: If True, `function` returns a scalar and something else, tensors or None.
            keep_updates: If False, assignments of layers to weights, as of batch-norm statistics,
                and those to metrics do not happen; random seeds advance anyway.

        Returns:
            The scalar, or the scalar and the rest as a tuple; and the gradients, in the structure
            of `sources`. They are dense and not scaled, have the shapes of the sources, and are
            zero where the scalar does not depend on a source.

        Raises:
            ValueError: If the scalar depends on none of the sources.

        References: `jax.value_and_grad`.
        """
        flat = [_as_source(source) for source in keras.tree.flatten(sources)]
        scale = self._scale_for(flat)
        found = self._differentiate(function, flat, aux, keep_updates, scale)
        _require_dependence(found.gradients, flat)
        gradients = [
            _finished(gradient, source, scale)
            for gradient, source in zip(found.gradients, flat, strict=True)
        ]
        value = (found.value, found.aux) if aux else found.value
        return value, keras.tree.pack_sequence_as(sources, gradients)

    def gradients_of_each(
        self,
        function: Callable[..., Any],
        variables: Sequence[keras.Variable],
        *,
        keep_updates: bool = True,
    ) -> tuple[Any, list[list[Any]]]:
        """Differentiate several scalars of one function by variables.

        The function is called once, and differentiated backwards once for each scalar.

        Args:
            function: Returns a list of scalars, and something else, tensors or None.
            variables: The variables.
            keep_updates: As in `gradients`.

        Returns:
            The scalars, `(scalars,)`, and the rest as a tuple; and for each scalar its gradients,
            one per variable, as `gradients` returns them.

        References: `jax.jacrev`.
        """
        variables = list(variables)

        def stacked() -> tuple[Any, Any]:
            scalars, rest = function()
            return ops.stack(list(scalars)), rest

        scale = self._scale_for(variables)
        found = self._differentiate(stacked, variables, True, keep_updates, scale, several=True)
        rows = [
            [_finished(g, v, scale) for g, v in zip(row, variables, strict=True)]
            for row in found.gradients
        ]
        return (found.value, found.aux), rows

    def per_example_gradients(
        self,
        function: Callable[..., Any],
        variables: Sequence[keras.Variable],
        data: Any,
        *,
        aux: bool = False,
    ) -> tuple[Any, list[Any]]:
        """Differentiate the loss of each example of a batch by variables.

        The examples are computed at once by a vectorised map, so the gradients take as much memory
        as the variables, times the size of the batch.

        Args:
            function: Called with `data` of one example, a batch of size 1; returns its loss, a
                scalar. Layers must not assign weights in it, as batch normalisation does in
                training.
            variables: The variables.
            data: A tensor, or a list, tuple or dictionary of tensors or None, whose first axis is
                that of the batch.
            aux: If True, `function` returns a loss and tensors.

        Returns:
            The losses, `(batch,)`, or they and the other results, each with a first axis for the
            examples, as a tuple; and for each variable its gradients, `(batch, *variable.shape)`.

        Raises:
            ValueError: If a layer assigns a weight; the message names it.

        References: Abadi et al. 2016, "Deep Learning with Differential Privacy"; `jax.vmap`.
        """
        losses, gradients, extra = self._of_each_example(function, list(variables), data, aux)
        return ((losses, extra) if aux else losses), gradients

    def mean_of_examples(
        self,
        function: Callable[..., Any],
        variables: Sequence[keras.Variable],
        data: Any,
        change: Callable[[Sequence[Any]], Sequence[Any]],
        *,
        at_once: int | None = None,
    ) -> tuple[Any, list[Any]]:
        """Average the gradients of the examples of a batch, each changed first.

        Args:
            function: As in `per_example_gradients`; it returns a loss and tensors.
            variables: The variables.
            data: As in `per_example_gradients`.
            change: Called with the gradients of some examples, `(examples, *variable.shape)` for
                each variable; returns them changed, each example on its own.
            at_once: How many examples are differentiated at once, one group after the other, which
                bounds the memory for their gradients; None: all of the batch.

        Returns:
            The losses, `(batch,)`, and the other results, each with a first axis for the examples,
            as a tuple; and the means of the changed gradients over the batch, one per variable.

        Raises:
            ValueError: If a layer assigns a weight; the message names it.
        """
        variables, leaves = list(variables), keras.tree.flatten(data)
        tensors = _tensors(data)

        def of_part(parts: Sequence[Any], valid: Any) -> tuple[list[Any], tuple[Any, Any]]:
            each = iter(parts)
            part = keras.tree.pack_sequence_as(
                data, [None if leaf is None else next(each) for leaf in leaves]
            )
            losses, gradients, extra = self._of_each_example(function, variables, part, True, valid)
            return [summed_up(g, valid) for g in change(gradients)], (losses, extra)

        sums, results = in_parts(of_part, tensors, variables, self._part_size(at_once), self.model)
        size = ops.shape(tensors[0])[0]
        means = [
            ops.cast(total / ops.cast(size, total.dtype), variable.dtype)
            for total, variable in zip(sums, variables, strict=True)
        ]
        return results, means

    def _of_each_example(
        self,
        function: Callable[..., Any],
        variables: Sequence[keras.Variable],
        data: Any,
        aux: bool,
        valid: Any = None,
    ) -> tuple[Any, list[Any], Any]:
        """Return the losses, the gradients and the other results of each example.

        Args:
            function: As in `per_example_gradients`.
            variables: The variables.
            data: The examples.
            aux: Whether `function` returns a loss and tensors.
            valid: Which of the examples belong to the batch; None: all.
        """
        scale, assigned = self._scale_for(variables), []  # type: ignore[var-annotated]
        call = lambda example: called(function, [example], aux)  # noqa: E731
        one = of_example(call, data, self.model, scale, assigned)
        tensors = _tensors(data)
        self._depth += 1
        try:
            _, gradients, (losses, extra, added), news = self._differentiate_each(
                one, variables, tensors
            )
        finally:
            self._depth -= 1
        self._pass_on(assigned_by_all(assigned, added, news, valid), keep_updates=True)
        pairs = zip(gradients, variables, strict=True)
        return losses, [_finished(gradient, v, scale) for gradient, v in pairs], extra

    @contextlib.contextmanager
    def values(
        self,
        variables: Sequence[keras.Variable],
        tensors: Sequence[Any],
        *,
        keep_updates: bool = True,
    ) -> Iterator[None]:
        """Give variables other values for a while; the variables themselves do not change.

        Gradients flow through the values: to differentiate by the tensors, compute them in the
        function that is differentiated.

        Args:
            variables: The variables.
            tensors: Their values, of the same shapes.
            keep_updates: As in `gradients`, for layers called meanwhile.

        Raises:
            ValueError: If there are not as many values as variables, or shapes differ.

        References: Finn et al. 2017, "Model-Agnostic Meta-Learning"; `torch.func.functional_call`.
        """
        with ValueScope(zip(variables, tensors, strict=True)) as scope:
            yield
        lent = {id(variable) for variable in variables}
        others = [each for each in scope.assigned if id(each.variable) not in lent]
        self._pass_on(others, keep_updates=keep_updates)

    @staticmethod
    def mean_over_replicas(tensors: Sequence[Any]) -> Sequence[Any]:
        """Return the means of floating-point tensors over the replicas of a strategy.

        On one device these are the tensors themselves. What a step computes from the means is the
        same on every replica.
        """
        return backend().mean_over_replicas(tensors)

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
        name = self._optimizer_of(variables)
        scale = loss_scale_of(self._optimizers()[name])
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
        variables = self.model.trainable_variables if variables is None else list(variables)
        self.has_minimized = True
        objective = Objective(function, data, aux, keep_updates)
        if not variables:
            found = self._differentiate(objective.whole, [], True, keep_updates, None)
            return (found.value, found.aux) if aux else found.value
        owners = self._owners_of(variables)
        if self._source is not None:
            value, extra = self._minimize_from(self._source, objective, variables, owners, again)
            return (value, extra) if aux else value
        scale = loss_scale_of(self._optimizers()[owners[0]])
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
            scale = loss_scale_of(self._optimizers()[name])
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
        new, pairs = loss_scale_of(self._optimizers()[name]), zip(gradients, variables, strict=True)
        dense = [(None if g is None else backend().dense(g), v) for g, v in pairs]
        return [new.scaled(scale.unscaled(gradient, v), v) for gradient, v in dense]

    # What differs between a step that runs and one that is only looked at

    @abstractmethod
    def _differentiate(
        self,
        function: Callable[..., Any],
        sources: Sequence[Any],
        aux: bool,
        keep_updates: bool,
        scale: LossScale | None,
        *,
        several: bool = False,
    ) -> Differentiated:
        """Differentiate `function` by variables and tensors; a vector element by element."""

    @abstractmethod
    def _differentiate_each(
        self,
        function: Callable[[Sequence[Assignment], Sequence[Any]], Any],
        variables: Sequence[keras.Variable],
        batch: Sequence[Any],
    ) -> tuple[Any, Sequence[Gradient], Any, Any]:
        """See `Backend.differentiate_each`."""

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

    # Shared

    def _require_outermost(self, method: str) -> None:
        """Raise a RuntimeError within a differentiated function, or within `values`."""
        scope = keras_private.current_scope()
        if self._depth or (isinstance(scope, ValueScope) and scope is not self._scope):
            raise RuntimeError(
                f"`step.{method}` must be called outside of functions that are differentiated and "
                "outside of `step.values`."
            )

    @abstractmethod
    def _note_loss(self, value: Any, owners: Sequence[str]) -> None:
        """Take the loss that belongs to the weight updates of the optimizers of these names."""

    def _part_size(self, at_once: int | None) -> int | None:
        """Return how many examples to differentiate at once."""
        return at_once

    def _pass_on(self, assigned: Sequence[Assigned], *, keep_updates: bool) -> None:
        """Assign in the scope around, or permanently if there is none."""
        weights: set[int] = set()
        metrics: set[int] = set()
        if not keep_updates:
            weights = {id(weight) for weight in self.model.weights}
            metrics = {id(v) for metric in self.model.metrics for v in metric.variables}
        for each in assigned:
            by_layer = each.by_layer and id(each.variable) in weights
            if not by_layer and id(each.variable) not in metrics:
                keras_private.assign(each)

    def _scale_for(self, sources: Sequence[Any]) -> LossScale | None:
        """Return the loss scale for gradients that can become a weight update."""
        if self._depth or not sources:
            return None
        owners = self._owners()
        if any(id(source) not in owners for source in sources):
            return None
        return loss_scale_of(self._optimizers()[owners[id(sources[0])]])

    def _optimizers(self) -> Mapping[str, Any]:
        return keras_private.named_optimizers(self.model.optimizer)

    def _owners(self) -> dict[int, str]:
        """Return the name of the optimizer that trains each variable, by the variables' `id`."""
        optimizer = self.model.optimizer
        trained: Mapping[str, Sequence[keras.Variable]]
        if not isinstance(optimizer, OptimizerGroup):
            trained = {"": [] if optimizer is None else self.model.trainable_variables}
        elif optimizer.built:
            trained = {name: built_for(each) for name, each in optimizer.by_name.items()}
        else:
            trained = optimizer.assigned(self.model.trainable_variables)
        return {id(v): name for name, variables in trained.items() for v in variables}

    def _owners_of(self, variables: Sequence[keras.Variable]) -> list[str]:
        """Return the name of the optimizer that trains each of these variables.

        Raises:
            ValueError: If there is none for one of them; the message names it.
        """
        if self.model.optimizer is None:
            raise ValueError("The model was compiled without an optimizer.")
        owners = self._owners()
        strangers = [v.path for v in variables if id(v) not in owners]
        if strangers:
            raise ValueError(
                f"No optimizer trains {', '.join(map(repr, strangers))}. The model must own these "
                "variables, as weights of a layer that is its attribute; they must be trainable, "
                "and `variables_to_train` must choose them."
            )
        return [owners[id(v)] for v in variables]

    def _optimizer_of(self, variables: Sequence[keras.Variable]) -> str:
        """Return the name of the optimizer that trains all of these variables.

        Raises:
            ValueError: If none does, or several do.
        """
        names = list(dict.fromkeys(self._owners_of(variables)))
        if len(names) != 1:
            found = " and ".join(map(repr, names)) or "none, because there are no variables"
            raise ValueError(
                "`step.apply` updates the variables of one optimizer at a time. Received variables "
                f"of: {found}"
            )
        return names[0]


def _tensors(data: Any) -> list[Any]:
    """Return the tensors of a batch."""
    return [ops.convert_to_tensor(t) for t in keras.tree.flatten(data) if t is not None]


def _as_source(source: Any) -> Any:
    return source if isinstance(source, keras.Variable) else ops.convert_to_tensor(source)


def called(function: Callable[..., Any], tensors: Sequence[Any], aux: bool) -> tuple[Any, Any]:
    """Call a function, and return its scalar and the rest."""
    result = function(*tensors)
    value, extra = result if aux else (result, None)
    return ops.convert_to_tensor(value), extra


def _finished(gradient: Gradient, source: Any, scale: LossScale | None) -> Any:
    """Return a gradient as `gradients` promises it: dense, not scaled, zero instead of None."""
    if gradient is None:
        return ops.zeros_like(source.value if isinstance(source, keras.Variable) else source)
    gradient = backend().dense(gradient)
    return gradient if scale is None else scale.unscaled(gradient, source)


def _require_dependence(gradients: Sequence[Gradient], sources: Sequence[Any]) -> None:
    if sources and all(gradient is None for gradient in gradients):
        raise independent(sources)


def independent(sources: Sequence[Any]) -> ValueError:
    """Return the error for a function that depends on none of the sources."""
    names = [s.path if isinstance(s, keras.Variable) else f"a tensor {s.shape}" for s in sources]
    return ValueError(
        "The function that is differentiated does not depend on what it is differentiated by: "
        f"{', '.join(names)}. A tensor must be used as the function's argument, not from outside; "
        "a variable must belong to a layer that the function calls."
    )
