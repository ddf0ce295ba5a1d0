"""Projections: constraints on weights that are enforced after each weight update."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainops import keras_private, paths
from keras_trainops.representation import CallRepr
from keras_trainops.scalars import check_number, check_positive, check_whole
from keras_trainops.state import Stateful
from keras_trainops.updates.base import On, Update


class Projection(CallRepr, Stateful):
    """Base class of projections with state; without state, use a function `fn(value) -> value`.

    Example:
        >>> import keras, keras_trainops as kt
        >>> class Box(kt.updates.Projection):
        ...     def __call__(self, value):
        ...         return keras.ops.clip(value, -1.0, 1.0)
        >>> update = kt.updates.Project("head/kernel", Box())
    """

    def build(self, variable: keras.Variable) -> None:
        """Create the state for one variable."""

    def start(self, variable: keras.Variable) -> None:
        """Initialise the state from the variable when training begins."""

    @abstractmethod
    def __call__(self, value: Any) -> Any:
        """Return the projected value, with the same shape and dtype."""

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as Keras serialises them."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Projection:
        """Create the projection from its constructor's arguments."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="keras_trainops")
class Project(Update):
    """Projects weights, each one on its own, after the weight update.

    Args:
        patterns: Patterns, variables or layers (see `keras_trainops.paths`).
        projection: A function `fn(value) -> value` that keeps the shape, such as a
            `keras.constraints` object (`UnitNorm(axis=0)`, `NonNeg()`), or a `Projection`.
        every: The number of weight updates or batches from one run to the next.
        on: `"update"` or `"batch"`, the unit of `every`; see `Update`.

    Raises:
        ValueError: If an argument is not valid; at the first build, if a pattern matches no weight
            or the projection does not fit one.

    Example:
        >>> import keras, keras_trainops as kt
        >>> unit = kt.updates.Project("dictionary/kernel", keras.constraints.UnitNorm(axis=0))
        >>> lipschitz = kt.updates.Project("critic/.*/kernel", kt.updates.SpectralNorm(1.0))

    References: `kernel_constraint` of Keras's layers, which must be set when a layer is created.
    """

    def __init__(
        self,
        patterns: paths.Patterns,
        projection: Callable[[Any], Any],
        every: int = 1,
        on: On = "update",
    ) -> None:
        super().__init__(every, on)
        if isinstance(projection, dict):
            projection = keras.saving.deserialize_keras_object(projection)
        if not paths.as_list(patterns):
            raise ValueError(f"`patterns` must name variables. Received: patterns={patterns!r}")
        if not callable(projection) or isinstance(projection, type):
            raise ValueError(f"`projection` must be callable. Received: {projection!r}")
        self.patterns, self.projection = patterns, projection
        self._projected: dict[int, tuple[keras.Variable, Callable[[Any], Any]]] = {}

    @property
    def name(self) -> str:
        function = self.projection
        return f"Project({getattr(function, '__name__', type(function).__name__)})"

    def build(self, model: keras.Model) -> None:
        variables = paths.selected(self.patterns, model.weights)
        self._projected = {
            id(v): self._projected.get(id(v)) or (v, self._projection_for(v)) for v in variables
        }
        self.children = [p for _, p in self._projected.values() if isinstance(p, Projection)]

    def _projection_for(self, variable: keras.Variable) -> Callable[[Any], Any]:
        """Return the projection of one variable; each variable gets its own state."""
        if not isinstance(self.projection, Projection):
            return self.projection
        own = type(self.projection).from_config(self.projection.get_config())
        try:
            own.build(variable)
        except ValueError as error:
            raise ValueError(f"{self.name} does not fit {variable.path!r}: {error}") from error
        own.start(variable)
        return own

    def start(self, model: keras.Model) -> None:
        for variable, projection in self._projected.values():
            if isinstance(projection, Projection):
                projection.start(variable)

    def __call__(self, model: keras.Model, loss: Any) -> None:
        for variable, projection in self._projected.values():
            variable.assign(projection(ops.convert_to_tensor(variable)))

    def get_config(self) -> dict[str, Any]:
        if hasattr(self.projection, "get_config"):
            projection = keras.saving.serialize_keras_object(self.projection)
        else:
            projection = keras_private.serialized_function(self.projection)
        return {
            "patterns": paths.serializable(self.patterns),
            "projection": projection,
            **super().get_config(),
        }


@keras.saving.register_keras_serializable(package="keras_trainops")
class SpectralNorm(Projection):
    """Keeps the largest singular value of a kernel at or below a limit.

    `w ← w · c / max(σ, c)`, with `σ = uᵀ W v` from the power iteration `v ← Wᵀ u / ‖Wᵀ u‖`,
    `u ← W v / ‖W v‖` on `W`, the kernel as a matrix of `(inputs, outputs)`; `u` continues from one
    update to the next.

    Args:
        limit: The limit `c`, > 0.
        iterations: Power iterations per update, >= 1. One is enough if weights change slowly.

    Raises:
        ValueError: If an argument is out of range, or a variable has fewer than two axes.

    Example:
        >>> import keras_trainops as kt
        >>> update = kt.updates.Project("dense/kernel", kt.updates.SpectralNorm(1.0))

    References: Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks";
    Gouk et al. 2021, "Regularisation of Neural Networks by Enforcing Lipschitz Continuity".
    """

    def __init__(self, limit: float = 1.0, iterations: int = 1) -> None:
        self.limit = check_positive("limit", limit)
        self.iterations = check_whole("iterations", iterations, 1)

    def build(self, variable: keras.Variable) -> None:
        shape = tuple(variable.shape)
        if len(shape) < 2:
            raise ValueError(f"a spectral norm needs a matrix, but the shape is {shape}")
        rows = int(np.prod(shape[:-1]))
        self._vector = self.add_variable("vector", (rows,))
        start = np.random.default_rng(rows).normal(size=rows)  # any but the zero vector
        self._vector.assign((start / np.linalg.norm(start)).astype("float32"))

    def __call__(self, value: Any) -> Any:
        matrix = ops.cast(ops.reshape(value, (-1, value.shape[-1])), "float32")
        u = v = ops.convert_to_tensor(self._vector)
        for _ in range(self.iterations):
            v = _unit(ops.matmul(ops.transpose(matrix), u))
            u = _unit(ops.matmul(matrix, v))
        # A kernel of zeros has no direction: keep the previous one.
        known = ops.sum(ops.square(u)) > 0.5
        self._vector.assign(ops.where(known, u, self._vector.value))
        sigma = ops.sum(u * ops.matmul(matrix, v))
        factor = self.limit / ops.maximum(sigma, self.limit)
        return value * ops.cast(factor, value.dtype)

    def get_config(self) -> dict[str, Any]:
        return {"limit": self.limit, "iterations": self.iterations}


def _unit(vector: Any) -> Any:
    return vector / ops.maximum(ops.norm(vector), 1e-12)


@keras.saving.register_keras_serializable(package="keras_trainops")
class FixedMask(Projection):
    """Keeps weights at zero that are zero when training starts, so pruned weights stay pruned.

    Args:
        sparsity: The fraction of weights, `0 < sparsity < 1`, to prune when training starts: those
            with the smallest magnitudes. None prunes no others.

    Raises:
        ValueError: If `sparsity` is out of range.

    Example:
        >>> import keras_trainops as kt
        >>> pruned = kt.updates.Project(".*/kernel", kt.updates.FixedMask(sparsity=0.8))

    References: Zhu and Gupta 2018, "To prune, or not to prune".
    """

    def __init__(self, sparsity: float | None = None) -> None:
        must = "above 0 and below 1"
        self.sparsity = check_number("sparsity", sparsity, must, lambda s: 0 < s < 1, optional=True)

    def build(self, variable: keras.Variable) -> None:
        self._mask = self.add_variable("mask", dtype="bool", like=variable)

    def start(self, variable: keras.Variable) -> None:
        value = ops.convert_to_tensor(variable)
        mask = ops.not_equal(value, 0)
        if self.sparsity is not None:
            ranks = ops.argsort(ops.argsort(ops.reshape(ops.abs(value), (-1,))))
            pruned = round(self.sparsity * math.prod(variable.shape))
            mask = ops.logical_and(mask, ops.reshape(ranks >= pruned, variable.shape))
        self._mask.assign(mask)

    def __call__(self, value: Any) -> Any:
        return ops.where(self._mask.value, value, ops.zeros_like(value))

    def get_config(self) -> dict[str, Any]:
        return {"sparsity": self.sparsity}
