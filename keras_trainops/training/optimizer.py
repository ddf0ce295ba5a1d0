"""The engine: an optimizer that runs a chain of gradient transforms at the one right moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_trainops.training.steps import backend_steps
from keras_trainops.transforms.base import Chain, Gradient, iteration_scope


@keras.saving.register_keras_serializable(package="keras_trainops")
class TransformedOptimizer(keras.optimizers.Optimizer):
    """Runs gradient transforms inside another optimizer, right before its update.

    The transforms see the gradients unscaled, accumulated, reduced over replicas and with the
    duplicate rows of embeddings summed, once per weight update. `compile(gradient_transforms=...)`
    of a model with `TrainOpsMixin` makes one; use it by hand with a plain `keras.Model`.

    Args:
        inner_optimizer: Any Keras optimizer but `LossScaleOptimizer`, which goes around this one,
            and `MultiOptimizer`. Its learning rate and iteration count are this optimizer's.
        transforms: A transform, a callable, or a list of these (see `keras_trainops.transforms`).
        name: The optimizer's name.

    Raises:
        ValueError: If `inner_optimizer` is none of these, or clips gradients itself beside a
            clipping transform.
        NotImplementedError: On a backend other than TensorFlow.

    Example:
        >>> import keras, keras_trainops as kt
        >>> optimizer = kt.TransformedOptimizer(
        ...     keras.optimizers.Adam(1e-3), kt.transforms.ClipByGlobalNorm(1.0))
    """

    def __init__(
        self, inner_optimizer: keras.optimizers.Optimizer, transforms: Any, name: str | None = None
    ) -> None:
        chain = Chain(transforms)
        _check_inner(inner_optimizer, chain)
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer
        self.chain = chain
        backend_steps().install_chain(inner_optimizer, self._transform, row_sparse=chain.row_sparse)

    def _transform(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> Sequence[Gradient]:
        with iteration_scope(lambda: self.inner_optimizer.iterations):
            return self.chain(gradients, variables)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Builds the inner optimizer and the transforms for the variables to train."""
        if self.built:
            return
        if not self.inner_optimizer.built:
            self.inner_optimizer.build(variables)
        self.chain.build(variables)
        for variable in self.chain.variables:
            self._track_variable(variable)
        super().build(variables)

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """Applies one batch's gradients through the inner optimizer."""
        if not self.built:
            with keras.name_scope(self.name):
                self.build(list(trainable_variables))
        self.inner_optimizer.apply(grads, trainable_variables)

    @property
    def variables(self) -> list[keras.Variable]:
        """The transforms' state, then the inner optimizer's variables."""
        return [*self._variables, *self.inner_optimizer.variables]

    @property
    def learning_rate(self) -> Any:
        """The inner optimizer's learning rate."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> Any:
        """The inner optimizer's count of weight updates."""
        return self.inner_optimizer.iterations

    @property
    def loss_scale_factor(self) -> float | None:
        """The inner optimizer's fixed loss scale; it unscales what it scaled."""
        return self.inner_optimizer.loss_scale_factor if self._has_inner() else None

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: float | None) -> None:
        if self._has_inner():  # the base constructor and LossScaleOptimizer both set it
            self.inner_optimizer.loss_scale_factor = factor

    def _has_inner(self) -> bool:
        return "inner_optimizer" in self.__dict__

    def scale_loss(self, loss: Any) -> Any:
        """Scales the loss as the inner optimizer does."""
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list: Any) -> None:
        """Writes the inner optimizer's averages into the weights, where it keeps some."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as Keras serialises them."""
        return {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "transforms": self.chain.get_config()["transforms"],
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> TransformedOptimizer:
        """The optimizer with these constructor arguments, without state."""
        deserialize = keras.saving.deserialize_keras_object
        return cls(
            deserialize(config["inner_optimizer"], custom_objects=custom_objects),
            [deserialize(t, custom_objects=custom_objects) for t in config["transforms"]],
            name=config["name"],
        )


def with_transforms(optimizer: Any, transforms: Any) -> keras.optimizers.Optimizer:
    """`optimizer` with `transforms` in it, where the chain belongs.

    A `TransformedOptimizer` gets the new transforms in place of its own; inside a
    `LossScaleOptimizer` the optimizer that it wraps is transformed.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer.inner_optimizer = with_transforms(optimizer.inner_optimizer, transforms)
        return optimizer
    if isinstance(optimizer, TransformedOptimizer):
        optimizer = optimizer.inner_optimizer
    return TransformedOptimizer(optimizer, transforms)


def _check_inner(inner: Any, chain: Chain) -> None:
    if isinstance(inner, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "`inner_optimizer` must be the optimizer inside the LossScaleOptimizer: "
            "LossScaleOptimizer(TransformedOptimizer(optimizer, transforms)). Transforms outside "
            "would see scaled gradients."
        )
    if isinstance(inner, getattr(keras.optimizers, "MultiOptimizer", ())):
        raise ValueError(
            "`inner_optimizer` must not be a MultiOptimizer: its optimizers see only their own "
            "variables, so that a global norm would be wrong."
        )
    if not isinstance(inner, keras.optimizers.Optimizer) or isinstance(inner, TransformedOptimizer):
        raise ValueError(f"`inner_optimizer` must be a plain Keras optimizer. Received: {inner!r}")
    for argument in ("clipnorm", "global_clipnorm", "clipvalue"):
        value = getattr(inner, argument)
        if value is not None and chain.clips:
            raise ValueError(
                f"The optimizer clips gradients itself ({argument}={value}) and so does a "
                "transform. Clip in one place: leave the optimizer's argument out."
            )
