"""Chains of transforms, and the conversion of user arguments to transforms."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import keras
from keras import ops

from keras_trainops.arguments import is_list, misplaced
from keras_trainops.backends import backend
from keras_trainops.transforms.base import Gradient, GradientTransform, TransformFn
from keras_trainops.transforms.functions import FromFunction
from keras_trainops.transforms.pending import Gradients
from keras_trainops.transforms.rescaling import PendingTransform, Stackable
from keras_trainops.transforms.scope import value_of

Transform: TypeAlias = "GradientTransform | TransformFn"
Transforms: TypeAlias = "Transform | Sequence[Transform]"


@keras.saving.register_keras_serializable(package="keras_trainops")
class Chain(PendingTransform):
    """Applies transforms one after the other; a list of transforms means the same.

    Args:
        transforms: Transforms or callables, in the order in which they apply.

    Raises:
        ValueError: If one of them is not a transform, returns gradients of a different number,
            shape or dtype, or changes which gradients are None; the message names it.

    Example:
        >>> import keras_trainops as kt
        >>> chain = kt.transforms.Chain([kt.transforms.Scale({"head": 10.0}),
        ...                              kt.transforms.ClipByGlobalNorm(1.0)])

    References: `optax.chain`.
    """

    def __init__(self, transforms: Transforms | None) -> None:
        self.transforms = [as_transform(transform) for transform in as_sequence(transforms)]
        self.children = self.transforms

    @property
    def clips(self) -> bool:  # type: ignore[override]
        return any(transform.clips for transform in self.transforms)

    @property
    def row_sparse(self) -> bool:  # type: ignore[override]
        return all(transform.row_sparse for transform in self.transforms)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        for transform in self.transforms:
            with keras.name_scope(_snake_case(type(transform).__name__)):
                transform.build(variables)

    def changed(self, gradients: Gradients) -> Gradients:
        for stackable, group in itertools.groupby(self.transforms, _is_stackable):
            transforms = list(group)
            is_stacked = stackable and len(transforms) > 1 and backend().operations_cost
            if is_stacked:
                gradients = gradients.stacked(functools.partial(_kinds, transforms))
            for transform in transforms:
                gradients = transform.run_in_chain(gradients)
            gradients = gradients.apart() if is_stacked else gradients
        return gradients

    def leaves_out(self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]) -> Any:
        found = [transform.leaves_out(gradients, variables) for transform in self.transforms]
        flags = [flag for flag in found if flag is not None]
        return ops.any(ops.stack(flags)) if flags else None

    def step_factors(self, variables: Sequence[keras.Variable]) -> Sequence[Any]:
        product: list[Any] = [None] * len(variables)
        for transform in self.transforms:
            for i, factor in enumerate(transform.step_factors(variables)):
                if factor is not None:
                    number = value_of(factor)
                    product[i] = number if product[i] is None else product[i] * number
        return product

    def get_config(self) -> dict[str, Any]:
        saved = [transform for transform in self.transforms if transform.is_saved]
        return {"transforms": [keras.saving.serialize_keras_object(t) for t in saved]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Chain:
        return cls([keras.saving.deserialize_keras_object(t) for t in config["transforms"]])


def as_sequence(value: Any) -> list[Any]:
    """Return None, one value or several as a list."""
    if value is None:
        return []
    return list(value) if is_list(value) else [value]


def as_transform(value: Any) -> GradientTransform:
    """Return a user's transform, callable, or list of these as one transform.

    Raises:
        ValueError: If `value` is none of them.
    """
    if isinstance(value, GradientTransform):
        return value
    if is_list(value):
        return Chain(value)
    why = misplaced(value)
    if why is None and callable(value):
        return FromFunction(cast("TransformFn", value))
    raise ValueError(
        "A gradient transform must be a `GradientTransform`, a callable "
        "`fn(gradients, variables) -> gradients`, or a list of these. "
        + (why or f"Received: {value!r}")
    )


def _is_stackable(transform: GradientTransform) -> bool:
    return isinstance(transform, Stackable) and not transform.is_overridden


def _kinds(transforms: Sequence[Any], variable: keras.Variable) -> tuple[Any, ...]:
    return tuple(transform.kind(variable) for transform in transforms)


def _snake_case(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
