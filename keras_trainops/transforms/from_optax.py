"""Transformations of optax as transforms, on JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.transforms.base import Gradient, GradientTransform
from keras_trainops.transforms.functions import as_function


@keras.saving.register_keras_serializable(package="keras_trainops")
class FromOptax(GradientTransform):
    """Runs an optax `GradientTransformation`, on JAX.

    `g', s = update(g, s, w)`, with `s = init(w)` for the weights `w` at the first build. Gradients
    and weights are passed as one mapping from a variable's path to its array, so masks and labels
    of optax (`masked`, `partition`) name variables by their paths. The arrays in `s` are variables:
    saved and resumed with the optimizer, and kept if an update is skipped. A variable whose
    gradient is `None` is transformed as if it were zero.

    A Keras optimizer subtracts `r · g'`, so pass transformations such as `optax.scale_by_adam()`,
    and the learning rate to `keras.optimizers.SGD`. An optimizer of optax, such as `optax.adam(r)`,
    contains the factor `-r`: follow it by `optax.scale(-1.0)`, and use `SGD(1.0)`.

    Args:
        transformation: The transformation or, so that a `.keras` file can name it, a function
            without arguments that returns it and that is registered with
            `keras.saving.register_keras_serializable`.

    Returns:
        Gradients with the shapes and dtypes they came with; `None` stays `None`. The gradient of
        an embedding is dense.

    Raises:
        NotImplementedError: If Keras does not run on JAX.
        ValueError: If it is not such a transformation; at the first build, if it needs extra
            arguments, such as the loss, or changes the layout of its state; when the model is
            saved, if it is not given by a registered function.

    Example:
        >>> import keras, keras_trainops as kt, optax
        >>> @keras.saving.register_keras_serializable(package="my_package")
        ... def lamb():
        ...     return optax.chain(optax.scale_by_adam(), optax.scale_by_trust_ratio())
        >>> optimizer = kt.TransformedOptimizer(  # doctest: +SKIP
        ...     keras.optimizers.SGD(1e-3), kt.transforms.FromOptax(lamb))

    References: https://optax.readthedocs.io, "Gradient transformations".
    """

    def __init__(self, transformation: Any) -> None:
        if backend().name != "jax":
            raise NotImplementedError(
                "`FromOptax` runs on JAX, as optax does (`KERAS_BACKEND=jax`); this is "
                f"{backend().name!r}. Use a counterpart in `keras_trainops.transforms`."
            )
        made = transformation
        if not _is_transformation(transformation):
            transformation = as_function("transformation", transformation)
            made = transformation()
        if not _is_transformation(made):
            raise ValueError(
                "`transformation` must be an optax `GradientTransformation`, or a function without "
                f"arguments that returns one. Received: {transformation!r}, which returned {made!r}"
            )
        self.transformation, self._optax = transformation, made

    def build(self, variables: Sequence[keras.Variable]) -> None:
        import jax

        self._trained = dict(zip(_unique_paths(variables), variables, strict=True))
        weights = self._weights()
        state = self._optax.init(weights)
        self._check(weights, state)
        leaves, self._structure = jax.tree_util.tree_flatten_with_path(state)
        self.use_as_state(())
        self._leaves = [self._leaf(path, value) for path, value in leaves]

    def _weights(self) -> dict[str, Any]:
        return {path: ops.convert_to_tensor(v) for path, v in self._trained.items()}

    def _check(self, weights: dict[str, Any], state: Any) -> None:
        """Run the transformation on shapes, to raise before training what would fail in it."""
        import jax

        try:
            _, after = jax.eval_shape(self._optax.update, weights, state, weights)
        except TypeError as error:
            raise ValueError(
                f"The optax transformation fails: {error}. It gets gradients, its state and the "
                "weights; one that needs extra arguments, such as the loss, cannot be used."
            ) from error
        if _layout(state) != _layout(after):
            raise ValueError(
                "The optax transformation changes the layout of its state, which variables cannot "
                f"follow: from {_layout(state)} to {_layout(after)}"
            )

    def _leaf(self, path: tuple[Any, ...], value: Any) -> _Leaf:
        import jax

        data = _data(value)
        name, like = jax.tree_util.keystr(path), self._variable_of(path, data.shape)
        variable = self.add_variable(name, data.shape, data.dtype.name, like=like)
        variable.assign(ops.copy(data))  # a step donates the weights' arrays
        return _Leaf(variable, _key_type(value))

    def _variable_of(self, path: tuple[Any, ...], shape: Sequence[int]) -> keras.Variable | None:
        """Return the variable that an array of the state belongs to, element by element."""
        names = [getattr(step, "key", None) for step in path]
        found = [self._trained[name] for name in names if name in self._trained]
        return found[0] if found and tuple(found[0].shape) == tuple(shape) else None

    def __call__(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        import jax

        given = {id(v): g for g, v in zip(gradients, variables, strict=True) if g is not None}
        weights = self._weights()
        dense = {
            path: given.get(id(v), ops.zeros_like(weights[path]))
            for path, v in self._trained.items()
        }
        state = jax.tree.unflatten(self._structure, [leaf.read() for leaf in self._leaves])
        transformed, state = self._optax.update(dense, state, weights)
        for leaf, value in zip(self._leaves, jax.tree.leaves(state), strict=True):
            leaf.write(value)
        new = {id(v): transformed[path] for path, v in self._trained.items()}
        return [
            None if g is None else ops.cast(new[id(v)], g.dtype)
            for g, v in zip(gradients, variables, strict=True)
        ]

    def get_config(self) -> dict[str, Any]:
        if _is_transformation(self.transformation):
            raise ValueError(
                "An optax transformation consists of functions without names, which a "
                "configuration cannot store. Pass `FromOptax` a function that returns it, and "
                "register that with `keras.saving.register_keras_serializable(package=...)`, or "
                "save the weights alone with `save_weights`."
            )
        return {"transformation": keras_private.serialized_function(self.transformation)}


class _Leaf(NamedTuple):
    """One array of optax's state.

    Attributes:
        variable: Keeps the array, or the integers of a random key.
        key_type: The implementation of a random key; None for other arrays.
    """

    variable: keras.Variable
    key_type: Any

    def read(self) -> Any:
        """Return the array, or the random key."""
        import jax

        data = ops.convert_to_tensor(self.variable)
        return data if self.key_type is None else jax.random.wrap_key_data(data, impl=self.key_type)

    def write(self, value: Any) -> None:
        """Assign an array or a random key."""
        self.variable.assign(_data(value))


def _layout(state: Any) -> tuple[Any, list[tuple[int, ...]]]:
    """Return the structure of a state, and the shapes of its arrays."""
    import jax

    return jax.tree.structure(state), [np.shape(leaf) for leaf in jax.tree.leaves(state)]


def _key_type(value: Any) -> Any:
    import jax

    is_key = jax.numpy.issubdtype(jax.numpy.result_type(value), jax.dtypes.prng_key)
    return jax.random.key_impl(value) if is_key else None


def _data(value: Any) -> Any:
    import jax

    return jax.numpy.asarray(value) if _key_type(value) is None else jax.random.key_data(value)


def _is_transformation(value: Any) -> bool:
    """Return whether `value` has the two functions of an optax transformation."""
    functions = (getattr(value, name, None) for name in ("init", "update"))
    return not isinstance(value, type) and all(map(callable, functions))


def _unique_paths(variables: Sequence[keras.Variable]) -> list[str]:
    """Return the variables' paths; a number follows one that repeats."""
    found: list[str] = []
    for variable in variables:
        path, count = variable.path, 1
        while path in found:
            path, count = f"{variable.path}_{count}", count + 1
        found.append(path)
    return found
