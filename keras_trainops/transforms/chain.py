"""Chains of transforms, and the conversion of user arguments to transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import keras
from keras import ops

from keras_trainops.arguments import is_list, misplaced
from keras_trainops.transforms.base import Gradient, GradientTransform, TransformFn
from keras_trainops.transforms.functions import FromFunction
from keras_trainops.transforms.scope import value_of

Transform: TypeAlias = "GradientTransform | TransformFn"
Transforms: TypeAlias = "Transform | Sequence[Transform]"


@keras.saving.register_keras_serializable(package="keras_trainops")
class Chain(GradientTransform):
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

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        for transform in self.transforms:
            transformed = transform(gradients, variables)
            gradients = _checked(transform, gradients, transformed, variables)
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


def _checked(
    transform: GradientTransform,
    before: Sequence[Gradient],
    after: Any,
    variables: Sequence[keras.Variable],
) -> Sequence[Gradient]:
    """Return the transformed gradients if they match the given ones; runs once per trace.

    Args:
        transform: The transform, for messages.
        before: The gradients it was given.
        after: Its result.
        variables: The variables.

    Raises:
        ValueError: If the result differs in length, shapes, dtypes or Nones.
    """
    name = _name(transform)
    if not isinstance(after, (list, tuple)):
        raise ValueError(f"{name} must return a list of gradients. Received: {after!r}")
    if len(after) != len(before):
        raise ValueError(f"{name} returned {len(after)} gradients for {len(before)} variables.")
    for old, new, variable in zip(before, after, variables, strict=True):
        if (old is None) != (new is None):
            raise ValueError(
                f"{name} returned {_description(new)} for {variable.path!r}, whose gradient was "
                f"{_description(old)}. None must stay None."
            )
        if old is not None and _description(old) != _description(new):
            raise ValueError(
                f"{name} returned a gradient of {_description(new)} for {variable.path!r}, which "
                f"was of {_description(old)}."
            )
    return after


def _description(gradient: Gradient) -> str:
    if not hasattr(gradient, "dtype"):
        return repr(gradient)
    dtype = keras.backend.standardize_dtype(gradient.dtype)
    return f"shape {tuple(gradient.shape)} and dtype {dtype}"


def _name(transform: GradientTransform) -> str:
    kind, function = type(transform).__name__, getattr(transform, "function", None)
    return f"{kind}({getattr(function, '__name__', function)})" if function else kind


def _snake_case(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
