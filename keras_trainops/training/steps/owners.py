"""The optimizers of a model, and the variables that each of them trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_trainops.training.optimizers.group import OptimizerGroup
from keras_trainops.training.optimizers.transfer import built_for


def owners(model: Any) -> dict[int, str]:
    """Return the name of the optimizer that trains each variable, by the variables' `id`."""
    optimizer = model.optimizer
    trained: Mapping[str, Sequence[keras.Variable]]
    if not isinstance(optimizer, OptimizerGroup):
        trained = {
            "": [] if optimizer is None else built_for(optimizer) or model.trainable_variables
        }
    elif optimizer.built:
        trained = {name: built_for(each) for name, each in optimizer.by_name.items()}
    else:
        trained = optimizer.assigned(model.trainable_variables)
    return {id(v): name for name, variables in trained.items() for v in variables}


def owners_of(names: Mapping[int, str], variables: Sequence[keras.Variable]) -> list[str]:
    """Return the name of the optimizer that trains each of these variables.

    Args:
        names: What `owners` returned.
        variables: The variables.

    Raises:
        ValueError: If there is none for one of them; the message names it.
    """
    strangers = [v.path for v in variables if id(v) not in names]
    if strangers:
        raise ValueError(
            f"No optimizer trains {', '.join(map(repr, strangers))}. The model must be compiled "
            "with an optimizer, and own these variables, as weights of a layer that is its "
            "attribute; they must be trainable, and `variables_to_train` must choose them."
        )
    return [names[id(v)] for v in variables]


def the_one(names: Sequence[str]) -> str:
    """Return the name that all of these names are.

    Raises:
        ValueError: If they differ, or there is none.
    """
    different = list(dict.fromkeys(names))
    if len(different) != 1:
        found = " and ".join(map(repr, different)) or "none, because there are no variables"
        raise ValueError(
            "`step.apply` updates the variables of one optimizer at a time. Received variables of: "
            f"{found}"
        )
    return different[0]
