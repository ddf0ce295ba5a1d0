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
from keras_trainops.keras_private import ValueScope
from keras_trainops.training.optimizers.loss_scale import LossScale
from keras_trainops.training.optimizers.transfer import built_for
from keras_trainops.training.steps.outcome import Differentiated, called
from keras_trainops.training.steps.owners import optimizers_of
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
    return _run(TrainingStep(model), text_of(model, TRAINING), data)


def test_step(model: Any, data: Any) -> dict[str, Any]:
    """Evaluate on one batch with the model's `evaluation_step`.

    Args:
        model: A model with `TrainOpsMixin`.
        data: A batch.

    Returns:
        The logs.
    """
    return _run(EvaluationStep(model), text_of(model, EVALUATION), data)


def _run(step: RunningStep, text: Callable[..., Any], data: Any) -> dict[str, Any]:
    data = mapped(_as_tensor, data)
    with step.open():
        logs = text(step, data)
        step.finish()
    keras_private.forget_returned_losses(step.model)
    return step.results(logs, data)


def _as_tensor(leaf: Any) -> Any:
    """Return an array of numbers as a tensor; `train_on_batch` passes arrays on some backends."""
    is_numbers = isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf"
    return ops.convert_to_tensor(leaf) if is_numbers else leaf


class RunningStep(Step):
    """A step that runs, or is traced to be run."""

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Surround the text of the step."""
        with contextlib.ExitStack() as stack:
            if backend().replicas() > 1:
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
        x, *_ = self.unpack(data)
        size = ops.shape(first_leaf(x))[0]
        for name, value in logs.items():
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
        here, scope = backend(), ValueScope()
        variables: list[Any] = []

        def scalar(values: Sequence[Assignment], tensors: Sequence[Any]) -> Any:
            nonlocal scope
            scope = ValueScope(values)
            # Without a scope around it, layers may assign directly, unless that is to be undone.
            collects = bool(values) or not keep_updates or keras_private.current_scope() is not None
            with scope if collects else contextlib.nullcontext():
                value, extra = called(function, tensors, aux)
                here.require_collectable((a.variable, a.value) for a in scope.assigned)
            variables[:] = scope.assigned
            scaled = value if scale is None else scale.scaled_loss(value)
            return scaled, (value, extra, [each.value for each in scope.assigned])

        self._depth += 1
        try:
            gradients, (value, extra, news) = here.differentiate(
                scalar, sources, nested=self._depth > 1, several=several
            )
        finally:
            self._depth -= 1
        pairs = zip(variables, news, strict=True)
        self._pass_on([each._replace(value=new) for each, new in pairs], keep_updates=keep_updates)
        return Differentiated(value, extra, gradients, scale)

    def _differentiate_each(
        self,
        function: Callable[[Sequence[Assignment], Sequence[Any]], Any],
        variables: Sequence[keras.Variable],
        batch: Sequence[Any],
    ) -> tuple[Any, Sequence[Gradient], Any, Any]:
        return backend().differentiate_each(function, variables, batch)

    def _note_loss(self, value: Any, owners: Sequence[str]) -> None:
        pass


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
        self._applied: set[str] = set()
        self._checked: list[str] = []  # the names of what was checked for NaN

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
        if not self._depth:
            keras_private.forget_losses(self.model)
        found = super()._differentiate(function, sources, aux, keep_updates, scale, several=several)
        if not self._depth:
            # A loss that is differentiated by tensors alone belongs to no weight update.
            value = ops.sum(found.value) if several else found.value
            self._note_loss(value, self._owners_in(sources) if sources else [""])
        return found

    def _note_loss(self, value: Any, owners: Sequence[str]) -> None:
        self._losses.append(value)
        self._last_loss = value
        self._loss_of.update(dict.fromkeys(owners, value))

    def _apply(
        self,
        name: str,
        gradients: Sequence[Gradient],
        variables: Sequence[keras.Variable],
        *,
        again: bool,
    ) -> None:
        require_once(name, self._applied, again)
        self._applied.add(name)
        model, policy = self.model, self.model.train_ops.policy
        optimizer = optimizers_of(self.model)[name]
        given = {id(v): g for v, g in zip(variables, gradients, strict=True)}
        trained = built_for(optimizer) or list(variables)
        # Filters of warnings are those of the process, and replicas take turns.
        partly = len(given) < len(trained) and backend().replicas() == 1

        def update(loss: Any, *gradients: Gradient) -> None:
            before = policy.weight_updates(model, name) if policy.followers(name) else ()
            with _unwarned() if partly else contextlib.nullcontext():
                backend().apply_gradients(optimizer, gradients, trained)
            policy.run(model, name, loss, before)

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

    def _apply(
        self,
        name: str,
        gradients: Sequence[Gradient],
        variables: Sequence[keras.Variable],
        *,
        again: bool,
    ) -> None:
        raise RuntimeError("`evaluation_step` must not update weights.")


def require_once(name: str, applied: set[str], again: bool) -> None:
    """Check that an optimizer makes its first update in a step.

    Args:
        name: The optimizer's name.
        applied: The names of those that have made an update.
        again: Whether the user has asked for another one.

    Raises:
        ValueError: If it is another one, and the user has not asked for it.
    """
    if name in applied and not again:
        which = f"The optimizer {name!r}" if name else "The optimizer"
        raise ValueError(
            f"{which} has already updated weights in this step. Apply all of its gradients at "
            "once; or compile with several `optimizers`; or, if each step is to make several "
            "updates, pass `again=True`."
        )


def _writes_directly(model: Any) -> bool:
    """Return whether layers may assign variables at once, as nothing is left out or held back."""
    here, options = backend(), model.train_ops
    wants_all = options.policy.keeps_layer_updates and not options.numerics
    return here.assigns_in_forward and wants_all and not here.needs_our_step(model)


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Do not warn about variables that are left alone on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gradients do not exist for variables")
        yield
