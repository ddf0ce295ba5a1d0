"""Differentiation within a step: by variables or tensors, nested, and example by example."""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import Assignment, Gradient, backend
from keras_trainops.keras_private import Assigned, ValueScope
from keras_trainops.training.optimizers.loss_scale import LossScale, loss_scale_of
from keras_trainops.training.steps.examples import (
    assigned_by_all,
    in_parts,
    of_example,
    summed_up,
    tensors_of,
    with_tensors,
)
from keras_trainops.training.steps.outcome import (
    Differentiated,
    Request,
    as_source,
    called,
    finished,
    require_dependence,
)
from keras_trainops.training.steps.owners import owners


class Differentiation(ABC):
    """The methods of a step that differentiate functions, or lend variables other values.

    Args:
        model: A model with `TrainOpsMixin`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._depth = 0  # of functions that are being differentiated
        self._within_examples = False
        self._scope: ValueScope | None = None  # around the text of the step

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
        self._refuse_within_examples("gradients")
        flat = [as_source(source) for source in keras.tree.flatten(sources)]
        scale = self._scale_for(flat)
        found = self._differentiate(Request(function, flat, aux, keep_updates, scale))
        require_dependence(found.gradients, flat)
        gradients = [
            finished(gradient, source, scale)
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
        self._refuse_within_examples("gradients_of_each")
        variables = list(variables)

        def stacked() -> tuple[Any, Any]:
            scalars, rest = function()
            return ops.stack(list(scalars)), rest

        scale = self._scale_for(variables)
        request = Request(stacked, variables, True, keep_updates, scale, several=True)
        found = self._differentiate(request)
        rows = [
            [finished(g, v, scale) for g, v in zip(row, variables, strict=True)]
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
            RuntimeError: Within a function that is differentiated.

        References: Abadi et al. 2016, "Deep Learning with Differential Privacy"; `jax.vmap`.
        """
        variables = list(variables)
        losses, gradients, extra = self._of_each_example(function, variables, data, aux)
        self._note_loss(ops.mean(losses), variables)
        extra = None if isinstance(extra, tuple) and not extra else extra
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
        variables, tensors = list(variables), tensors_of(data)

        def of_part(parts: Sequence[Any], valid: Any) -> tuple[list[Any], tuple[Any, Any]]:
            part = with_tensors(data, parts)
            losses, gradients, extra = self._of_each_example(function, variables, part, True, valid)
            return [summed_up(g, valid) for g in change(gradients)], (losses, extra)

        sums, results = in_parts(of_part, tensors, variables, self._part_size(at_once), self.model)
        self._note_loss(ops.mean(results[0]), variables)
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
        if self._depth:
            raise RuntimeError(
                "Gradients of each example cannot be differentiated in turn: call "
                "`step.per_example_gradients` outside of functions that are differentiated."
            )
        scale, assigned = self._scale_for(variables), []  # type: ignore[var-annotated]
        call = lambda example: called(function, [example], aux)  # noqa: E731
        one = of_example(call, data, self.model, scale, assigned)
        tensors = tensors_of(data)
        self._depth += 1
        self._within_examples = True
        try:
            _, gradients, (losses, extra, added), news = self._differentiate_each(
                one, variables, tensors
            )
        finally:
            self._depth -= 1
            self._within_examples = False
        self._pass_on(assigned_by_all(assigned, added, news, valid), keep_updates=True)
        pairs = zip(gradients, variables, strict=True)
        return losses, [finished(gradient, v, scale) for gradient, v in pairs], extra

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
        function that is differentiated. The losses that layers add meanwhile are to be used
        meanwhile, too.

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

    @functools.cached_property
    def _optimizers(self) -> Mapping[str, Any]:
        """The optimizers of the model by name; the only one has the name ""."""
        return keras_private.named_optimizers(self.model.optimizer)

    @functools.cached_property
    def _names(self) -> dict[int, str]:
        """The name of the optimizer that trains each variable, by the variables' `id`."""
        return owners(self.model)

    # Overridden by steps that run, and by the probe

    @abstractmethod
    def _differentiate(self, request: Request) -> Differentiated:
        """Differentiate a function by variables and tensors; a vector element by element."""

    @abstractmethod
    def _differentiate_each(
        self,
        function: Callable[[Sequence[Assignment], Sequence[Any]], Any],
        variables: Sequence[keras.Variable],
        batch: Sequence[Any],
    ) -> tuple[Any, Sequence[Gradient], Any, Any]:
        """See `Backend.differentiate_each`."""

    def _note_loss(self, value: Any, sources: Sequence[Any]) -> None:  # noqa: B027
        """Take the loss that belongs to the weight updates of those sources that are trained."""

    def _part_size(self, at_once: int | None) -> int | None:
        """Return how many examples to differentiate at once."""
        return at_once

    # Shared

    def _refuse_within_examples(self, method: str) -> None:
        """Raise a RuntimeError within the function of one example."""
        if self._within_examples:
            raise RuntimeError(
                f"`step.{method}` cannot be called in the function of `per_example_gradients`."
            )

    def _require_outermost(self, method: str) -> None:
        """Raise a RuntimeError within a differentiated function, or within `values`."""
        scope = keras_private.current_scope()
        if self._depth or (isinstance(scope, ValueScope) and scope is not self._scope):
            raise RuntimeError(
                f"`step.{method}` must be called outside of functions that are differentiated and "
                "outside of `step.values`."
            )

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
        if any(id(source) not in self._names for source in sources):
            return None
        return loss_scale_of(self._optimizers[self._names[id(sources[0])]])
