"""Rebuild a trained optimizer for a new set of variables, keeping its state."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainops import keras_private
from keras_trainops.training.optimizers.transformed import transformed_in
from keras_trainops.values import assign_copies, copies_of


def is_built_for(before: list[keras.Variable], variables: list[keras.Variable]) -> bool:
    """Return whether what an optimizer was `built_for` is exactly these variables, or nothing."""
    return not before or {id(v) for v in before} == {id(v) for v in variables}


def built_for(optimizer: Any) -> list[keras.Variable]:
    """Return the variables that an optimizer, or the one inside it, was built for."""
    optimizer = keras_private.innermost(optimizer)
    built = optimizer is not None and optimizer.built
    return keras_private.trained_by(optimizer) if built else []


def transferred(optimizer: Any, model: Any, variables: list[keras.Variable]) -> Any:
    """Return the optimizer, or a new one if it was built for other variables than it will train.

    The new one has the state of the old one for variables that both train. It keeps iterations, the
    learning rate, the loss scale, the state of transforms and everything that users set on the
    optimizer. Variables that were not trained before start with fresh slots.

    Args:
        optimizer: An optimizer, built or not.
        model: The model to train.
        variables: The variables that it will train; empty if the model is not built.

    Raises:
        ValueError: If the optimizer was built for another model, or keeps state that cannot be
            carried over.
    """
    before = built_for(optimizer)
    if not model.built or is_built_for(before, variables):
        return optimizer
    own = {id(v) for v in model.weights}
    if not any(id(v) in own for v in before):
        raise ValueError(
            f"The optimizer {optimizer.name!r} has trained another model: it was built for "
            f"{before[0].path!r} and other variables that do not belong to {model.name!r}. "
            "Compile with a new optimizer."
        )
    new = keras_private.unbuilt(optimizer)
    transformed = transformed_in(new)
    if transformed is not None:
        transformed.attach(model)
    new.build(variables)
    _copy(optimizer, new)
    return new


def _copy(old: Any, new: Any) -> None:
    """Copy state from one optimizer to another made from it, inner ones first."""
    for before, after in zip(keras_private.inside(old), keras_private.inside(new), strict=False):
        _copy(before, after)  # a new MultiOptimizer may have more parts
    keras_private.take_over(new, old)
    if old.built and new.built:
        _copy_slots(old, new)
        _copy_singles(_singles(old), _singles(new), old.name)


def _copy_slots(old: Any, new: Any) -> None:
    """Copy the slots of variables that both optimizers train."""
    before = {(slot.attribute, id(slot.weight)): slot for slot in keras_private.slots(old)}
    for slot in keras_private.slots(new):
        same = before.get((slot.attribute, id(slot.weight)))
        if same is not None:
            assign_copies(slot.variable, copies_of(same.variable))


def _copy_singles(
    before: list[keras.Variable], after: list[keras.Variable], optimizer: str
) -> None:
    """Copy variables that belong to no trained variable, such as counters.

    Args:
        before: The variables to copy.
        after: Their counterparts in the new optimizer, in the same order.
        optimizer: The optimizer's name, for the message.

    Raises:
        ValueError: If names or shapes differ.
    """
    if [(v.name, tuple(v.shape)) for v in before] != [(v.name, tuple(v.shape)) for v in after]:
        raise ValueError(
            f"{optimizer!r} keeps state that depends on which variables are trained, and those "
            "have changed. It cannot be carried over: compile with a new optimizer and new "
            "transforms."
        )
    for mine, theirs in zip(before, after, strict=True):
        assign_copies(theirs, copies_of(mine))


def _singles(optimizer: Any) -> list[keras.Variable]:
    """Return the optimizer's own variables that belong to no trained variable."""
    taken = {id(slot.variable) for slot in keras_private.slots(optimizer)}
    return [v for v in keras_private.optimizer_variables(optimizer) if id(v) not in taken]
