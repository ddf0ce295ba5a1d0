"""A user's training step on shapes alone: what it builds and returns, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import Assignment, Gradient
from keras_trainops.keras_private import ValueScope
from keras_trainops.training.optimizers.loss_scale import LossScale
from keras_trainops.training.steps.outcome import (
    Differentiated,
    Request,
    called,
    independent,
    zeros_of,
)
from keras_trainops.training.steps.step import Step
from keras_trainops.training.steps.texts import EVALUATION, TRAINING, text_of


def probe(model: Any, batch: Any, *, training: bool) -> list[str]:
    """Run a step on the shapes of a batch, which builds the layers that it calls.

    Args:
        model: A model with `TrainOpsMixin` and a step of its own.
        batch: A batch of data, or the shapes of one.
        training: Whether to run `training_step` or `evaluation_step`.

    Returns:
        The names of the logs.

    Raises:
        ValueError: If the step does something that it must not; the model is not changed, except
            that layers are built.
    """
    names: list[str] = []
    method = TRAINING if training else EVALUATION

    def run(data: Any, building: bool) -> dict[str, Any]:
        step = Probe(model, training=training, building=building)
        with step.scope:
            logs = text_of(model, method)(step, data)
            names[:] = _checked(logs, method)
            step.run_metrics()
        source = model.train_ops.gradients
        if training and source is not None and not step.has_minimized:
            raise ValueError(
                f"`compile(gradients={source!r})` has no effect: the `{TRAINING}` of "
                f"{type(model).__name__!r} does not call `step.minimize`, which asks for these "
                "gradients. Call it in place of `step.gradients` and `step.apply`, or leave "
                "`gradients` out."
            )
        return {name: ops.convert_to_tensor(value) for name, value in logs.items()}

    shapes = keras.tree.map_structure(_shape_of, batch)
    if not all(layer.built for layer in keras_private.inner_layers(model)):
        # The first pass only builds: lists of variables are empty before the functions have run.
        keras_private.output_shapes(lambda data: run(data, True), shapes)
    found = keras_private.output_shapes(lambda data: run(data, False), shapes)
    for name, value in found.items():
        if tuple(value.shape):
            raise ValueError(
                f"`{method}` must return scalars as logs. Received: shape {tuple(value.shape)} for "
                f"{name!r}"
            )
    return names


class Probe(Step):
    """A step on shapes: functions run, gradients are zero, and nothing is applied.

    Args:
        model: The model.
        training: Whether it is a training step.
        building: Whether layers are still being built, so that nothing can be checked yet.
    """

    def __init__(self, model: Any, *, training: bool, building: bool) -> None:
        super().__init__(model)
        self.training, self._building = training, building
        self.scope = self._scope = ValueScope()

    def run_metrics(self) -> None:
        """Build the metrics of `compile(metrics=...)` that the step updates."""
        for x, y, y_pred, sample_weight in self._metrics:
            self.model.compute_metrics(x, y, y_pred, sample_weight)

    def _differentiate(self, request: Request) -> Differentiated:
        sources = request.sources
        tensors = [source for source in sources if not isinstance(source, keras.Variable)]
        self._depth += 1
        try:
            with _ReadingScope() as scope:
                value, extra = called(request.function, tensors, request.aux)
        finally:
            self._depth -= 1
        if not request.several:
            _require_scalar(value)
        variables = [source for source in sources if isinstance(source, keras.Variable)]
        unread = not any(id(variable) in scope.read for variable in variables)
        if variables and unread and not tensors and not self._building:
            raise independent(variables)
        self._pass_on(scope.assigned, keep_updates=request.keep_updates)
        zeros = [zeros_of(source) for source in sources]
        return Differentiated(value, extra, [zeros] * value.shape[0] if request.several else zeros)

    def _differentiate_each(
        self,
        function: Callable[[Sequence[Assignment], Sequence[Any]], Any],
        variables: Sequence[keras.Variable],
        batch: Sequence[Any],
    ) -> tuple[Any, Sequence[Gradient], Any, Any]:
        loss, (own, shared) = function([], [tensor[0] for tensor in batch])
        _require_scalar(loss)
        size = ops.shape(batch[0])[0]

        def each(tensor: Any) -> Any:
            return ops.broadcast_to(tensor, (size, *tensor.shape))

        gradients = [each(zeros_of(variable)) for variable in variables]
        return each(loss), gradients, keras.tree.map_structure(each, own), shared

    def _scale_for(self, sources: Sequence[Any]) -> LossScale | None:
        return None

    def _part_size(self, at_once: int | None) -> int | None:
        return None  # a loop over groups of examples shows no more

    def _owners_of(self, variables: Sequence[keras.Variable]) -> list[str]:
        if self._building:
            return [next(iter(self._optimizers))] * max(len(variables), 1)
        return super()._owners_of(variables)

    def _apply(
        self,
        gradients: Sequence[Gradient],
        variables: Sequence[keras.Variable],
        owners: Sequence[str],
        scale: LossScale | None,
        *,
        again: bool,
    ) -> None:
        if not self._building:
            super()._apply(gradients, variables, owners, scale, again=again)


class _ReadingScope(ValueScope):
    """Notes which variables are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def get_current_value(self, variable: keras.Variable) -> Any:
        self.read.add(id(variable))
        return super().get_current_value(variable)


def _checked(logs: Any, method: str) -> list[str]:
    """Return the names of the logs.

    Raises:
        ValueError: If it is not a dictionary with names.
    """
    if not isinstance(logs, Mapping) or not all(isinstance(name, str) for name in logs):
        raise ValueError(
            f"`{method}` must return a dictionary from names to scalars, such as "
            f'`{{"loss": loss}}`. Received: {logs!r}'
        )
    return [name for name in logs if name != "loss"]


def _require_scalar(value: Any) -> None:
    if tuple(value.shape):
        raise ValueError(
            "A function that is differentiated must return a scalar. Received: shape "
            f"{tuple(value.shape)}. Take the mean or the sum."
        )


def _shape_of(leaf: Any) -> Any:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return None
    return keras.KerasTensor(tuple(leaf.shape), keras.backend.standardize_dtype(leaf.dtype))
