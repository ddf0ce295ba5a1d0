"""Save exclusions from weight decay in configurations, which Keras does not do."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import keras

from keras_trainops import keras_private

EXCLUDED = "excluded_from_weight_decay"  # its key in a configuration


def exclusions(optimizer: Any, variables: Sequence[keras.Variable]) -> dict[str, Any]:
    """Return the variables that optimizers exclude from weight decay.

    Args:
        optimizer: An optimizer, or one around others.
        variables: The variables that it trains.

    Returns:
        Under `EXCLUDED`, for each optimizer that makes steps, the positions among `variables` and a
        regular expression for names; empty if nothing is excluded.
    """
    found = []
    for part in _stepping_optimizers(optimizer):
        positions, names, others = keras_private.excluded_from_decay(part, variables)
        if others:
            warnings.warn(
                f"{part.name!r} excludes variables from weight decay that it does not train"
                f"{'' if variables else ', because it is not built'}. The file does not store "
                "these exclusions: call `exclude_from_weight_decay` again after loading.",
                stacklevel=2,
            )
        found.append({"variables": positions, "names": names})
    return {EXCLUDED: found} if any(each["variables"] or each["names"] for each in found) else {}


def exclude(
    optimizer: Any, found: Sequence[dict[str, Any]], variables: Sequence[keras.Variable]
) -> None:
    """Exclude variables as in a configuration; call it before the optimizer is built.

    Args:
        optimizer: An optimizer, or one around others.
        found: The value that `exclusions` returned under `EXCLUDED`.
        variables: The variables that it trains.
    """
    if not found:
        return
    parts = _stepping_optimizers(optimizer)
    last = max(itertools.chain(*(each["variables"] for each in found)), default=-1)
    if len(parts) != len(found) or last >= len(variables):
        warnings.warn(
            "The weight-decay exclusions in the file belong to other optimizers or variables than "
            "the model has now and are ignored: call `exclude_from_weight_decay` again.",
            stacklevel=2,
        )
        return
    for part, each in zip(parts, found, strict=True):
        names = [each["names"]] if each["names"] else None
        part.exclude_from_weight_decay([variables[i] for i in each["variables"]], names)


def _stepping_optimizers(optimizer: Any) -> list[Any]:
    """Return the optimizers that make steps: those that wrap no other."""
    everyone = keras_private.all_of(optimizer) if optimizer else []
    return [each for each in everyone if not keras_private.inside(each)]
