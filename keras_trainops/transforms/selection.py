"""A transform applied to some of the variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_trainops import paths
from keras_trainops.scalars import Number
from keras_trainops.transforms.base import Gradient, GradientTransform
from keras_trainops.transforms.chain import Chain, Transforms, as_transform


@keras.saving.register_keras_serializable(package="keras_trainops")
class Only(GradientTransform):
    """Applies a transform to the gradients of some variables, as if there were no others.

    A global norm, for example, is then the norm over these variables.

    Args:
        patterns: Patterns, variables or layers (see `keras_trainops.paths`).
        transform: A transform, a callable, or a list of these.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: At the first build, if a pattern matches no variable to train.

    Example:
        >>> import keras_trainops as kt
        >>> clip_head = kt.transforms.Only("head", kt.transforms.ClipByGlobalNorm(1.0))

    References: `optax.masked`.
    """

    def __init__(self, patterns: paths.Patterns, transform: Transforms) -> None:
        if isinstance(transform, dict):
            transform = keras.saving.deserialize_keras_object(transform)
        self.patterns = paths.as_list(patterns)
        if not self.patterns:
            raise ValueError(f"`patterns` must name variables. Received: patterns={patterns!r}")
        self.transform = as_transform(transform)
        self.children = (self.transform,)
        self._checked = Chain([self.transform])  # a chain checks the result

    @property
    def clips(self) -> bool:  # type: ignore[override]
        return self.transform.clips

    @property
    def row_sparse(self) -> bool:  # type: ignore[override]
        return self.transform.row_sparse

    def build(self, variables: Sequence[keras.Variable]) -> None:
        mine = paths.selected(self.patterns, variables)
        self._mine = {id(v) for v in mine}
        self.transform.build(mine)

    def _positions(self, variables: Sequence[keras.Variable]) -> list[int]:
        return [i for i, v in enumerate(variables) if id(v) in self._mine]

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        at = self._positions(variables)
        out = list(gradients)
        transformed = self._checked([out[i] for i in at], [variables[i] for i in at])
        for i, gradient in zip(at, transformed, strict=True):
            out[i] = gradient
        return out

    def step_factors(self, variables: Sequence[keras.Variable]) -> Sequence[Number | None]:
        at = self._positions(variables)
        out: list[Number | None] = [None] * len(variables)
        factors = self.transform.step_factors([variables[i] for i in at])
        for i, factor in zip(at, factors, strict=True):
            out[i] = factor
        return out

    def get_config(self) -> dict[str, Any]:
        return {
            "patterns": paths.serializable(self.patterns),
            "transform": keras.saving.serialize_keras_object(self.transform),
        }
