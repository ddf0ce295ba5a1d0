"""Transforms that multiply gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops import paths
from keras_trainops.transforms.base import Gradient, GradientTransform
from keras_trainops.transforms.scope import (
    Number,
    deserialize_number,
    serialize_number,
    value_of,
)


@keras.saving.register_keras_serializable(package="keras_trainops")
class Scale(GradientTransform):
    """Scales each gradient by the factor of the first pattern its variable's path matches.

    `g' = c · g`; variables that no pattern matches keep `c = 1`.

    Under optimizers that normalise the gradient (Adam and its kin) a constant factor changes next
    to nothing; it is no learning rate. It matters under SGD, and before a global clip.

    Args:
        factors: Mapping from pattern (see `keras_trainops.paths`) to factor, pairs of these where
            a pattern is a variable or a layer, or one factor for all. A factor is a number or a
            schedule of the weight updates.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: If a factor is no number; at the first build, if a pattern matches no variable
            (the message names the closest paths) or never wins.

    Example:
        >>> import keras_trainops as kt
        >>> scale = kt.transforms.Scale({"backbone": 0.1, "head": 10.0})

    References: `multiply_gradients` of tf.contrib.training.
    """

    row_sparse = True

    def __init__(
        self,
        factors: Number | Mapping[str, Number] | Iterable[tuple[paths.Pattern, Number]],
    ) -> None:
        self.factors = _as_pairs(factors)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        chosen = paths.first_match(self.factors, paths.by_path(variables))
        self._factor_of = {id(v): c for v, c in zip(variables, chosen, strict=True)}

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        return [
            _scaled(gradient, self._factor_of[id(variable)])
            for gradient, variable in zip(gradients, variables, strict=True)
        ]

    def get_config(self) -> dict[str, Any]:
        return {
            "factors": [
                [pattern, serialize_number(factor)]
                for patterns, factor in self.factors
                for pattern in paths.serializable(patterns) or []
            ]
        }


def _scaled(gradient: Gradient, factor: Number | None) -> Gradient:
    if gradient is None or factor is None:
        return gradient
    return gradient * ops.cast(value_of(factor), gradient.dtype)


def _as_pairs(factors: Any) -> list[tuple[paths.Pattern, Number]]:
    if isinstance(factors, Mapping):
        pairs = list(factors.items())
    elif isinstance(factors, (list, tuple)):
        pairs = [tuple(pair) for pair in factors]
    else:
        pairs = [(".*", factors)]
    pairs = [(pattern, deserialize_number(factor)) for pattern, factor in pairs]
    if not pairs:
        raise ValueError("`factors` must name at least one pattern. Received: an empty mapping")
    for pattern, factor in pairs:
        is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
        schedule = isinstance(factor, keras.optimizers.schedules.LearningRateSchedule)
        if not (schedule or (is_number and abs(factor) < float("inf"))):
            raise ValueError(
                "A factor must be a finite number or a `LearningRateSchedule`. Received: "
                f"{factor!r} for {paths.describe(pattern)}"
            )
    return pairs
