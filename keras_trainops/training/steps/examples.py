"""The examples of a batch, one by one or in groups, and what is assigned for each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import Assignment, backend
from keras_trainops.keras_private import Assigned, ValueScope
from keras_trainops.training.optimizers.loss_scale import LossScale
from keras_trainops.transforms.pending import upcast


def of_example(
    function: Callable[[Any], tuple[Any, Any]],
    data: Any,
    model: Any,
    scale: LossScale | None,
    assigned: list[Assigned],
) -> Callable[[Sequence[Assignment], Sequence[Any]], Any]:
    """Return the function of one example that `Backend.differentiate_each` differentiates.

    Args:
        function: Called with a batch of one example; returns its loss, and tensors or None.
        data: The structure of a batch.
        model: The model.
        scale: The loss scale, or None.
        assigned: Gets the variables that are assigned.

    Returns:
        A function that returns the scaled loss, and as auxiliary results of the example its loss,
        the tensors and the floating-point values that are assigned; and all others, which are the
        same for all examples.
    """

    def of_values(values: Sequence[Assignment], parts: Sequence[Any]) -> Any:
        example = with_tensors(data, [ops.expand_dims(part, 0) for part in parts])
        keras_private.forget_losses(model)
        with ValueScope(values) as scope:
            value, extra = function(example)
        _refuse_weights(scope.assigned, model)
        assigned[:] = sorted(scope.assigned, key=_is_shared)
        shared = [each.value for each in assigned if _is_shared(each)]
        own = [each.value for each in assigned if not _is_shared(each)]
        scaled = value if scale is None else scale.scaled_loss(value)
        return scaled, ((value, () if extra is None else extra, own), shared)

    return of_values


def tensors_of(data: Any) -> list[Any]:
    """Return the tensors of a batch."""
    return [ops.convert_to_tensor(t) for t in keras.tree.flatten(data) if t is not None]


def with_tensors(data: Any, tensors: Sequence[Any]) -> Any:
    """Return a batch of the same structure with other tensors, in the order of `tensors_of`."""
    each = iter(tensors)
    leaves = [None if leaf is None else next(each) for leaf in keras.tree.flatten(data)]
    return keras.tree.pack_sequence_as(data, leaves)


def assigned_by_all(
    assigned: Sequence[Assigned], own: Sequence[Any], shared: Sequence[Any], valid: Any = None
) -> list[Assigned]:
    """Return what the examples of a batch assign together.

    Each example starts from the value before the batch. What it adds to a floating-point variable,
    such as the sums of a metric, is added up. Other values, such as those of seeds, are the same
    for all.

    Args:
        assigned: The variables, those that differ between examples first.
        own: The values of those, `(examples, ...)`.
        shared: The values of the others.
        valid: Which of the examples belong to the batch; None: all.
    """
    values = []
    for each, several in zip(assigned, own, strict=False):
        before = ops.convert_to_tensor(each.variable.value)
        added = summed_up(several - before, valid)
        values.append(before + ops.cast(added, before.dtype))
    pairs = zip(assigned, [*values, *shared], strict=True)
    return [each._replace(value=value) for each, value in pairs]


def summed_up(tensor: Any, valid: Any = None) -> Any:
    """Return the sum over those examples that belong to the batch, in at least float32."""
    tensor = upcast(tensor)
    if valid is not None:
        valid = ops.reshape(valid, (-1, *[1] * (len(tensor.shape) - 1)))
        tensor = ops.where(valid, tensor, ops.zeros_like(tensor))
    return ops.sum(tensor, axis=0)


def in_parts(
    function: Callable[[Sequence[Any], Any], tuple[list[Any], Any]],
    batch: Sequence[Any],
    variables: Sequence[keras.Variable],
    at_once: int | None,
    model: Any,
) -> tuple[list[Any], Any]:
    """Call a function for groups of examples, one after the other, and add up its results.

    The last group is filled up with copies of the last example, so that all have one size.

    Args:
        function: Called with tensors of a group, and which of its examples belong to the batch.
            Returns sums, one per variable, and tensors with a first axis for the examples.
        batch: Tensors, whose first axis is that of the batch.
        variables: The variables.
        at_once: The size of a group; None: the whole batch.
        model: The model, whose seeds and metrics `function` may assign.

    Returns:
        The sums over all groups, and the other results for the batch.

    Raises:
        ValueError: If `function` assigns any other variable; the message names it.
    """
    if at_once is None:
        return function(batch, None)
    size = ops.shape(batch[0])[0]
    if isinstance(size, int):
        at_once = min(at_once, max(size, 1))
    count = (size + at_once - 1) // at_once
    position = ops.arange(count * at_once)
    valid = ops.reshape(position < size, (count, at_once))
    filled = [ops.take(t, ops.minimum(position, size - 1), axis=0) for t in batch]
    groups = [ops.reshape(t, (count, at_once, *ops.shape(t)[1:])) for t in filled]
    state = _assignable(model)

    def of_group(carry: Any, group: Any) -> tuple[Any, Any]:
        values, totals = carry
        tensors, valid = group
        with ValueScope(zip(state, values, strict=True)) as scope:
            sums, results = function(tensors, valid)
        _require_known(scope.assigned, state)
        news = [scope.get_current_value(variable) for variable in state]
        return (news, [total + s for total, s in zip(totals, sums, strict=True)]), results

    before = [ops.convert_to_tensor(variable.value) for variable in state]
    zeros = [upcast(ops.zeros_like(variable.value)) for variable in variables]
    (news, totals), results = backend().loop(of_group, (before, zeros), (groups, valid))
    for variable, value in zip(state, news, strict=True):
        keras_private.assign(Assigned(variable, value, by_layer=False))

    def of_batch(tensor: Any) -> Any:
        return ops.reshape(tensor, (count * at_once, *ops.shape(tensor)[2:]))[:size]

    return totals, keras.tree.map_structure(of_batch, results)


def _assignable(model: Any) -> list[keras.Variable]:
    """Return the seeds of a model's layers, and the variables of its metrics."""
    seed = keras_private.global_seed()
    metrics = [variable for metric in model.metrics for variable in metric.variables]
    found = [*keras_private.seeds(model), *([] if seed is None else [seed]), *metrics]
    return list({id(variable): variable for variable in found}.values())


def _require_known(assigned: Sequence[Assigned], known: Sequence[keras.Variable]) -> None:
    ids = {id(variable) for variable in known}
    strangers = [each.variable.path for each in assigned if id(each.variable) not in ids]
    if strangers:
        raise ValueError(
            f"The loss of an example assigns {', '.join(map(repr, strangers))}. If examples are "
            "differentiated in groups, it can only assign the model's metrics and the seeds of its "
            "layers."
        )


def _is_shared(assigned: Assigned) -> bool:
    return not keras.backend.is_float_dtype(assigned.variable.dtype)


def _refuse_weights(assigned: Sequence[Assigned], model: Any) -> None:
    weights = {id(weight) for weight in model.weights}
    bad = [each.variable.path for each in assigned if id(each.variable) in weights]
    if bad:
        raise ValueError(
            f"Layers assign {', '.join(bad)}, which is not possible for each example apart. Call "
            "them with `training=False`, or freeze them."
        )
