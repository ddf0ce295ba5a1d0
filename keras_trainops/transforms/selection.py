"""Transforms applied to some of the variables, or in some of the weight updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_trainops import keras_private, paths
from keras_trainops.transforms.base import Gradient
from keras_trainops.transforms.chain import Transforms, as_transform
from keras_trainops.transforms.functions import as_function
from keras_trainops.transforms.pending import Gradients
from keras_trainops.transforms.rescaling import PendingTransform
from keras_trainops.transforms.scope import (
    skip_update_if,
    update_scope,
    updates_before,
    value_of,
)


class _Selection(PendingTransform):
    """Base class of transforms that apply another one in some cases."""

    def __init__(self, transform: Transforms) -> None:
        if isinstance(transform, dict):
            transform = keras.saving.deserialize_keras_object(transform)
        self.transform = as_transform(transform)
        self.children = (self.transform,)

    @property
    def clips(self) -> bool:  # type: ignore[override]
        return self.transform.clips

    @property
    def row_sparse(self) -> bool:  # type: ignore[override]
        return self.transform.row_sparse

    def get_config(self) -> dict[str, Any]:
        return {"transform": keras.saving.serialize_keras_object(self.transform)}


@keras.saving.register_keras_serializable(package="keras_trainops")
class Only(_Selection):
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
        self.patterns = paths.as_list(patterns)
        if not self.patterns:
            raise ValueError(f"`patterns` must name variables. Received: patterns={patterns!r}")
        super().__init__(transform)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        mine = paths.selected(self.patterns, variables)
        self._mine = {id(v) for v in mine}
        self.transform.build(mine)

    def _positions(self, variables: Sequence[keras.Variable]) -> list[int]:
        return [i for i, v in enumerate(variables) if id(v) in self._mine]

    def changed(self, gradients: Gradients) -> Gradients:
        mine = [part for part in gradients.parts if id(part.variables[0]) in self._mine]
        others = [part for part in gradients.parts if id(part.variables[0]) not in self._mine]
        variables = [v for v in gradients.variables if id(v) in self._mine]
        transformed = self.transform.run_in_chain(Gradients(mine, variables))
        return gradients.with_parts([*others, *transformed.parts])

    def leaves_out(self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]) -> Any:
        at = self._positions(variables)
        return self.transform.leaves_out([gradients[i] for i in at], [variables[i] for i in at])

    def step_factors(self, variables: Sequence[keras.Variable]) -> Sequence[Any]:
        at = self._positions(variables)
        out: list[Any] = [None] * len(variables)
        factors = self.transform.step_factors([variables[i] for i in at])
        for i, factor in zip(at, factors, strict=True):
            out[i] = factor
        return out

    def get_config(self) -> dict[str, Any]:
        return {"patterns": paths.serializable(self.patterns), **super().get_config()}


@keras.saving.register_keras_serializable(package="keras_trainops")
class When(_Selection):
    """Applies a transform in those weight updates for which a condition holds.

    `g' = transform(g)` if `condition(t)`, else `g`, where `t` is the number of weight updates
    before this one. In the other updates the transform's state keeps its values, its factors on the
    step are 1, and it skips nothing.

    Args:
        condition: `fn(t) -> bool`, of an integer scalar tensor, with `keras.ops`; its result is a
            boolean scalar. To be saved in a `.keras` file it must be registered with
            `keras.saving.register_keras_serializable`.
        transform: A transform, a callable, or a list of these.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: If `condition` is not callable or, in the first update, does not return a
            boolean scalar.

    Example:
        >>> import keras_trainops as kt
        >>> clip_early = kt.transforms.When(lambda t: t < 1000, kt.transforms.ClipByGlobalNorm(1.0))

    References: `optax.conditionally_transform`.
    """

    def __init__(self, condition: Callable[[Any], Any], transform: Any) -> None:
        self.condition = as_function("condition", condition)
        super().__init__(transform)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        self.transform.build(variables)

    def _applies(self, updates: Any) -> Any:
        applies = ops.convert_to_tensor(self.condition(ops.convert_to_tensor(updates)))
        dtype = keras.backend.standardize_dtype(applies.dtype)
        if dtype != "bool" or tuple(applies.shape) != ():
            raise ValueError(
                "`condition` must return a boolean scalar. It returned a tensor of shape "
                f"{tuple(applies.shape)} and dtype {dtype}."
            )
        return applies

    def changed(self, gradients: Gradients) -> Gradients:
        updates, state = updates_before("A condition"), self.variables
        applies, before = self._applies(updates), [ops.copy(v.value) for v in state]
        with update_scope(lambda: updates) as scope:
            transformed = self.transform.run_in_chain(gradients).values()
            skip = scope.skip()
        if skip is not None:
            skip_update_if(ops.logical_and(applies, skip))
        for variable, value in zip(state, before, strict=True):
            variable.assign(ops.where(applies, variable.value, value))
        selected = [
            None if g is None else ops.where(applies, new, g)
            for g, new in zip(gradients.values(), transformed, strict=True)
        ]
        return Gradients.of(selected, gradients.variables)

    def leaves_out(self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]) -> Any:
        left_out = self.transform.leaves_out(gradients, variables)
        if left_out is None:
            return None
        return ops.logical_and(self._applies(updates_before("A condition")), left_out)

    def step_factors(self, variables: Sequence[keras.Variable]) -> Sequence[Any]:
        factors = self.transform.step_factors(variables)
        if all(factor is None for factor in factors):
            return factors
        applies = self._applies(updates_before("A condition"))
        return [None if c is None else ops.where(applies, value_of(c), 1.0) for c in factors]

    def get_config(self) -> dict[str, Any]:
        condition = keras_private.serialized_function(self.condition)
        return {"condition": condition, **super().get_config()}
