"""Steps that run: they write assignments, weights and updates, and return the logs."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import Assignment, Gradient, backend
from keras_trainops.keras_private import Assigned, ValueScope
from keras_trainops.training.optimizers.transfer import built_for
from keras_trainops.training.steps.outcome import Differentiated, Request, called
from keras_trainops.training.steps.step import Step
from keras_trainops.training.steps.texts import EVALUATION, TRAINING, text_of
from keras_trainops.trees import first_leaf, mapped


def train_step(model: Any, data: Any) -> dict[str, Any]:
    """Train on one batch with the model's `training_step`.

    Args:
        model: A model with `TrainOpsMixin`.
        data: A batch.

    Returns:
        The logs.
    """
    return _run(TrainingStep(model), TRAINING, data)


def test_step(model: Any, data: Any) -> dict[str, Any]:
    """Evaluate on one batch with the model's `evaluation_step`.

    Args:
        model: A model with `TrainOpsMixin`.
        data: A batch.

    Returns:
        The logs.
    """
    return _run(EvaluationStep(model), EVALUATION, data)


def _run(step: RunningStep, method: str, data: Any) -> dict[str, Any]:
    data = mapped(_as_tensor, data)
    with step.open(data):
        logs = text_of(step.model, method)(step, data)
        step.finish()
    keras_private.forget_returned_losses(step.model)
    return step.results(logs, data)


def _as_tensor(leaf: Any) -> Any:
    """Return an array of numbers as a tensor; `train_on_batch` passes arrays on some backends."""
    is_numbers = isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf"
    return ops.convert_to_tensor(leaf) if is_numbers else leaf


class RunningStep(Step):
    """A step that runs, or is traced to be run."""

    _has_examples: Any = None  # whether this replica has some; None if it certainly has

    @contextlib.contextmanager
    def open(self, data: Any) -> Iterator[None]:
        """Surround the text of the step.

        Args:
            data: The batch.
        """
        with contextlib.ExitStack() as stack:
            if backend().replicas() > 1:
                size = self._size(data)
                self._has_examples = None if isinstance(size, int) else size > 0
                stack.enter_context(keras_private.losses_of_one_replica())
            if self._scope is not None:
                stack.enter_context(self._scope)
            yield

    def finish(self) -> None:
        """Write what the text has left to write."""

    def results(self, logs: dict[str, Any], data: Any) -> dict[str, Any]:
        """Update the metrics of a step, and return the logs that Keras shows.

        Args:
            logs: What the text returned.
            data: The batch.
        """
        model = self.model
        means = model.train_ops.step_logs[self.training]
        size = self._size(data)
        for name, log in logs.items():
            value = self._of_examples(log, 0)
            if name == "loss":
                keras_private.track_loss(model, value, size)
            else:
                means.update(name, value, size)
        found: dict[str, Any] = {}
        for args in self._metrics:
            found = model.compute_metrics(*args)
        if not self._metrics:
            found = _results_without_metrics(model)
        if "loss" not in logs:
            found = {name: value for name, value in found.items() if name != "loss"}
        return {**found, **means.result()}

    def _size(self, data: Any) -> Any:
        x, *_ = self.unpack(data)
        return ops.shape(first_leaf(x))[0]

    def _of_examples(self, value: Any, without: Any) -> Any:
        """Return a value, or another one if this replica has no examples.

        A last batch may have fewer examples than there are replicas. A mean over no examples is NaN
        and would reach the others.
        """
        if self._has_examples is None:
            return value
        value = ops.convert_to_tensor(value)
        return ops.where(self._has_examples, value, ops.cast(without, value.dtype))

    def _differentiate(self, request: Request) -> Differentiated:
        here, scale, keep_updates = backend(), request.scale, request.keep_updates
        assigned: list[Assigned] = []

        def scalar(values: Sequence[Assignment], tensors: Sequence[Any]) -> Any:
            scope = ValueScope(values)
            # Without a scope around it, layers may assign directly, unless that is to be undone.
            direct = here.assigns_in_forward and keep_updates and not values
            collects = not direct or keras_private.current_scope() is not None
            with scope if collects else contextlib.nullcontext():
                value, extra = called(request.function, tensors, request.aux)
                value = self._of_examples(value, 0)
                assigned[:] = scope.assigned
                here.require_collectable((each.variable, each.value) for each in assigned)
            scaled = value if scale is None else scale.scaled_loss(value)
            return scaled, (value, extra, [each.value for each in assigned])

        self._depth += 1
        try:
            gradients, (value, extra, news) = here.differentiate(
                scalar, request.sources, nested=self._depth > 1, several=request.several
            )
        finally:
            self._depth -= 1
        pairs = zip(assigned, news, strict=True)
        self._pass_on([self._assigned(*pair) for pair in pairs], keep_updates=keep_updates)
        if self._has_examples is not None:
            gradients = mapped(self._gradient, gradients)
        return Differentiated(value, extra, gradients)

    def _gradient(self, gradient: Gradient) -> Gradient:
        """Return a gradient; that of no examples is zero. Rows of a sparse one are of examples."""
        if gradient is None or backend().elements(gradient) is not gradient:
            return gradient
        return self._of_examples(gradient, 0)

    def _assigned(self, assigned: Assigned, value: Any) -> Assigned:
        """Return an assignment with its value; statistics of no examples change nothing."""
        variable = assigned.variable
        # Others are seeds and counters.
        if self._has_examples is not None and keras.backend.is_float_dtype(variable.dtype):
            value = self._of_examples(value, variable.value)
        return assigned._replace(value=value)

    def _differentiate_each(
        self,
        function: Callable[[Sequence[Assignment], Sequence[Any]], Any],
        variables: Sequence[keras.Variable],
        batch: Sequence[Any],
    ) -> tuple[Any, Sequence[Gradient], Any, Any]:
        return backend().differentiate_each(function, variables, batch)


def _results_without_metrics(model: Any) -> dict[str, Any]:
    """Return the logs of a step that has not updated the metrics of `compile`."""
    if not model.train_ops.evaluating:
        model.train_ops.norms.update()
    unused = keras_private.compiled_metric_names(model)
    found = model.get_metrics_result()
    return {name: value for name, value in found.items() if name not in unused}


class TrainingStep(RunningStep):
    """A step that trains."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._scope = None if _writes_directly(model) else ValueScope()
        self._losses: list[Any] = []  # not yet checked for NaN
        self._loss_of: dict[str, Any] = {}  # the last loss of each optimizer, by its name
        self._last_loss: Any = 0.0
        self._checked: list[str] = []  # the names of what was checked for NaN

    def _differentiate(self, request: Request) -> Differentiated:
        if not self._depth:
            keras_private.forget_losses(self.model)
        found = super()._differentiate(request)
        if not self._depth:
            loss = ops.sum(found.value) if request.several else found.value
            self._note_loss(loss, request.sources)
        return found

    def _note_loss(self, value: Any, sources: Sequence[Any]) -> None:
        self._losses.append(value)
        self._last_loss = value
        for source in sources:  # a loss that is differentiated by tensors alone belongs to none
            if id(source) in self._names:
                self._loss_of[self._names[id(source)]] = value

    def _update(
        self, name: str, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> None:
        model, policy = self.model, self.model.train_ops.policy
        optimizer = self._optimizers[name]
        given = {id(v): g for v, g in zip(variables, gradients, strict=True)}
        trained = built_for(optimizer) or list(variables)
        # Filters of warnings are those of the process, and replicas take turns.
        partly = len(given) < len(trained) and backend().replicas() == 1

        def update(loss: Any, *gradients: Gradient) -> None:
            warned = _unwarned() if partly else contextlib.nullcontext()
            with policy.following(model, name, loss), warned:
                backend().apply_gradients(optimizer, gradients, trained)

        loss = self._loss_of.get(name, 0.0)
        self._write(update, loss, [given.get(id(v)) for v in trained], optimizer, trained)

    def finish(self) -> None:
        policy = self.model.train_ops.policy
        waiting = self._scope is not None and self._scope.assigned
        unchecked = self._losses and self.model.train_ops.numerics is not None
        if waiting or unchecked or policy.of_batches:
            self._write(lambda loss: policy.run_for_batch(self.model, loss), self._last_loss)

    def _write(
        self,
        change: Callable[..., None],
        loss: Any,
        gradients: Sequence[Gradient] = (),
        optimizer: Any = None,
        variables: Sequence[keras.Variable] = (),
    ) -> None:
        """Write what layers assigned since the last time, then call `change(loss, *gradients)`.

        With `check_numerics` nothing happens from the first bad loss or gradient on.

        Args:
            change: Assigns variables.
            loss: The loss that updates get.
            gradients: The gradients of a weight update, on this replica.
            optimizer: The optimizer that makes it.
            variables: The variables of the gradients.
        """
        model, here = self.model, backend()
        policy, numerics = model.train_ops.policy, model.train_ops.numerics
        kept = policy.chosen([] if self._scope is None else self._scope.take_assigned())

        def write(loss: Any, *tensors: Any) -> None:
            values, rest = tensors[: len(kept)], tensors[len(kept) :]
            means = here.mean_over_replicas(values)
            for each, value in zip(kept, means, strict=True):
                each.variable.assign(value)
            change(loss, *rest)

        with contextlib.nullcontext() if self._scope is None else self._scope.left():
            loss = ops.convert_to_tensor(loss)
            if policy.after_weights:
                # Each replica has its own loss; an update gets that of the whole batch.
                (loss,) = here.mean_over_replicas([loss])
            args = (loss, *(each.value for each in kept), *gradients)
            if numerics is None:
                write(*args)
            else:
                if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
                    gradients, variables = (), ()  # they overflow in normal operation
                numerics.guard(
                    model, self._checked, self._losses, gradients, variables, write, args
                )
        self._losses = []


class EvaluationStep(RunningStep):
    """A step that evaluates."""

    training = False


def _writes_directly(model: Any) -> bool:
    """Return whether layers may assign variables at once, as nothing is left out or held back."""
    here, options = backend(), model.train_ops
    wants_all = options.policy.keeps_layer_updates and not options.numerics
    return wants_all and here.writes_at_once(model)


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Do not warn about variables that are left alone on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gradients do not exist for variables")
        yield
