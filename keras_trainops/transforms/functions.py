"""Transforms made from plain functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_trainops import keras_private
from keras_trainops.transforms.base import Gradient, GradientTransform, TransformFn


def as_function(argument: str, value: Any) -> Callable[..., Any]:
    """Return a user's function, or the registered one that a saved configuration names.

    Args:
        argument: The argument's name, for the message.
        value: The argument's value.

    Raises:
        ValueError: If it cannot be called.
    """
    if isinstance(value, dict):
        value = keras.saving.deserialize_keras_object(value)
    if not callable(value):
        raise ValueError(f"`{argument}` must be callable. Received: {value!r}")
    function: Callable[..., Any] = value
    return function


class _FunctionTransform(GradientTransform):
    """Base class of transforms with a function, which is saved by its registered name."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = as_function("function", function)

    def get_config(self) -> dict[str, Any]:
        return {"function": keras_private.serialized_function(self.function)}


@keras.saving.register_keras_serializable(package="keras_trainops")
class FromFunction(_FunctionTransform):
    """Wraps a plain callable as a transform; passing the callable itself means the same.

    Args:
        function: `fn(gradients, variables) -> gradients`, lists of equal length. To be saved in a
            `.keras` file it must be registered with `keras.saving.register_keras_serializable`.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: If `function` is not callable.

    Example:
        >>> import keras_trainops as kt
        >>> halve = kt.transforms.FromFunction(
        ...     lambda gs, vs: [None if g is None else g * 0.5 for g in gs])
    """

    def __init__(self, function: TransformFn) -> None:
        super().__init__(function)

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        return self.function(list(gradients), list(variables))


@keras.saving.register_keras_serializable(package="keras_trainops")
class FromPairs(_FunctionTransform):
    """Wraps a function on (gradient, variable) pairs, the form of `tf.contrib.training`.

    Args:
        function: `fn(grads_and_vars) -> grads_and_vars`, lists of `(gradient, variable)`. It may
            return the pairs in a different order, with each variable once.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`.

    Raises:
        ValueError: If the function does not return pairs, or not each variable once.

    Example:
        >>> import keras_trainops as kt
        >>> halve = kt.transforms.FromPairs(
        ...     lambda pairs: [(None if g is None else g * 0.5, v) for g, v in pairs])

    References: `transform_grads_fn` of `tf.contrib.training.create_train_op`.
    """

    def __init__(self, function: Callable[[list[tuple[Gradient, keras.Variable]]], Any]) -> None:
        super().__init__(function)

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        pairs = list(self.function(list(zip(gradients, variables, strict=True))))
        if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            raise ValueError("A function of `FromPairs` must return (gradient, variable) pairs.")
        by_variable = {id(variable): gradient for gradient, variable in pairs}
        if len(pairs) != len(variables) or by_variable.keys() != {id(v) for v in variables}:
            raise ValueError(
                f"A function of `FromPairs` must return each of its {len(variables)} variables "
                f"once. It returned {len(pairs)} pairs with {len(by_variable)} different variables."
            )
        return [by_variable[id(variable)] for variable in variables]
