"""Transforms that multiply gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
from keras import ops

from keras_trainops import paths
from keras_trainops.scalars import (
    Number,
    check_number,
    deserialize_number,
    is_number,
    serialize_number,
)
from keras_trainops.transforms.base import Gradient, GradientTransform
from keras_trainops.transforms.scope import value_of

Factors: TypeAlias = "Number | Mapping[str, Number] | Iterable[tuple[paths.Pattern, Number]]"


class _Factors(GradientTransform):
    """What the two share: factors by pattern, and their configuration."""

    row_sparse = True

    def __init__(self, factors: Factors) -> None:
        self.factors = _as_pairs(factors)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        chosen = paths.first_match(self.factors, paths.by_path(variables))
        self._factor_of = {id(v): c for v, c in zip(variables, chosen, strict=True)}

    def get_config(self) -> dict[str, Any]:
        rules = [(pattern, serialize_number(factor)) for pattern, factor in self.factors]
        return {"factors": paths.serializable_rules(rules)}


@keras.saving.register_keras_serializable(package="keras_trainops")
class Scale(_Factors):
    """Scales each gradient by the factor of the first pattern its variable's path matches.

    `g' = c · g`; variables that no pattern matches keep `c = 1`.

    Under optimizers that normalise the gradient (Adam and its kin) a constant factor changes next
    to nothing; it is no learning rate, which is what `ScaleStep` multiplies. It matters under SGD,
    and before a global clip.

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

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        return [
            _scaled(gradient, self._factor_of[id(variable)])
            for gradient, variable in zip(gradients, variables, strict=True)
        ]


@keras.saving.register_keras_serializable(package="keras_trainops")
class ScaleStep(_Factors):
    """Multiplies the learning rate of variables: scales the step that the optimizer makes.

    `w' = w + c · (u - w)`, where `u` is what the optimizer made of the weights `w`, its weight
    decay included; variables that no pattern matches keep `c = 1`. It works under every optimizer
    (under plain SGD it is the same as `Scale`), and stands anywhere in the chain.

    To freeze variables use `variables_to_train`, which spares their gradients and slots, too.

    Args:
        factors: As in `Scale`.

    Returns:
        The gradients.

    Raises:
        ValueError: As in `Scale`.

    Example:
        >>> import keras_trainops as kt
        >>> slow_backbone = kt.transforms.ScaleStep({"backbone": 0.1})

    References: learning-rate multipliers of Caffe's `lr_mult` and of PyTorch's parameter groups.
    """

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        return gradients

    def step_factors(self, variables: Sequence[keras.Variable]) -> Sequence[Number | None]:
        return [self._factor_of[id(variable)] for variable in variables]


@keras.saving.register_keras_serializable(package="keras_trainops")
class LayerwiseDecay(ScaleStep):
    """Multiplies the learning rate of each layer by a power that falls from output to input.

    The variables of the `i`-th of `L` layers, counted from 1, take a step scaled by
    `max(min_scale, d^(L - i))`: the last its whole step. Variables of no layer in the list take
    their whole step, too.

    Args:
        decay: The base `d`, `0 < d <= 1`.
        layers: Patterns, variables or layers, or lists of these, from the input to the output.
        min_scale: The least factor, >= 0.

    Returns:
        The gradients.

    Raises:
        ValueError: If a number does not fit; at the first build, if a pattern matches no variable
            or never wins.

    Example:
        >>> import keras_trainops as kt
        >>> blocks = [f"block{i}" for i in range(12)]
        >>> decay = kt.transforms.LayerwiseDecay(0.75, ["embedding", *blocks, "head"])

    References: Bao et al. 2021, "BEiT: BERT Pre-Training of Image Transformers"; timm's
    `param_groups_layer_decay`.
    """

    def __init__(
        self, decay: float, layers: Sequence[paths.Patterns], min_scale: float = 0
    ) -> None:
        self.decay = check_number("decay", decay, "above 0 and at most 1", lambda d: 0 < d <= 1)
        self.min_scale = check_number("min_scale", min_scale, ">= 0", lambda x: x >= 0)
        self.layers = [paths.as_list(patterns) for patterns in layers]
        last = len(self.layers) - 1
        super().__init__(
            [
                (pattern, max(min_scale, decay ** (last - i)))
                for i, patterns in enumerate(self.layers)
                for pattern in patterns
            ]
        )

    def get_config(self) -> dict[str, Any]:
        layers = [paths.serializable(patterns) for patterns in self.layers]
        return {"decay": self.decay, "layers": layers, "min_scale": self.min_scale}


def _scaled(gradient: Gradient, factor: Number | None) -> Gradient:
    if gradient is None or factor is None:
        return gradient
    return gradient * ops.cast(value_of(factor), gradient.dtype)


def _as_pairs(factors: Any) -> list[tuple[paths.Pattern, Number]]:
    if not isinstance(factors, (Mapping, list, tuple)):
        factors = [(".*", factors)]
    pairs = [(pattern, deserialize_number(factor)) for pattern, factor in paths.as_rules(factors)]
    if not pairs:
        raise ValueError("`factors` must name at least one pattern. Received: an empty mapping")
    for pattern, factor in pairs:
        if not is_number(factor):
            raise ValueError(
                "A factor must be a finite number or a `LearningRateSchedule`. Received: "
                f"{factor!r} for {paths.describe(pattern)}"
            )
    return pairs
