"""An optimizer that runs a chain of gradient transforms right before another one's step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.training.optimizers.state import ModelState
from keras_trainops.training.optimizers.weight_decay import EXCLUDED, exclude, exclusions
from keras_trainops.training.optimizers.weight_update import WeightUpdate, parts
from keras_trainops.transforms.base import GradientTransform
from keras_trainops.transforms.chain import Chain, Transforms
from keras_trainops.transforms.layouts import owners_scope


@keras.saving.register_keras_serializable(package="keras_trainops")
class TransformedOptimizer(keras_private.OptimizerWrapper):
    """Run gradient transforms inside another optimizer, right before its update.

    The transforms see the gradients unscaled, accumulated, reduced over replicas and with the
    duplicate rows of embeddings summed, once per weight update. `compile(gradient_transforms=...)`
    of a model with `TrainOpsMixin` makes one; use it by hand with a plain `keras.Model`.

    It looks like the inner optimizer: hyperparameters, `learning_rate`, `iterations` and the
    `optimizers` of a `MultiOptimizer` are read and set there. `variables` are those of the inner
    optimizer, then the state of the transforms.

    Args:
        inner_optimizer: Any Keras optimizer, including a `MultiOptimizer`, except a
            `LossScaleOptimizer`: that one goes around this one. Its learning rate and iteration
            count are shared.
        transforms: A transform, a callable, or a list of these (see `keras_trainops.transforms`).
        name: The optimizer's name.

    Raises:
        ValueError: If `inner_optimizer` is not such an optimizer, clips gradients itself although
            a transform clips them, or accumulates them inside a `MultiOptimizer`.

    Example:
        >>> import keras, keras_trainops as kt
        >>> optimizer = kt.TransformedOptimizer(
        ...     keras.optimizers.Adam(1e-3), kt.transforms.ClipByGlobalNorm(1.0))
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        transforms: Transforms | None,
        name: str | None = None,
    ) -> None:
        chain = Chain(transforms)
        _check_inner(inner_optimizer, chain)
        super().__init__(inner_optimizer, name)
        self.chain = chain
        self._state = ModelState()
        self._applied = 0
        self._exclusions: list[dict[str, Any]] = []  # as read from a file, until it is built

    def attach(self, model: Any) -> None:
        """Remember the model, so that transforms can look up the layer of a variable."""
        self._state.attach(model)
        if transformed_in(getattr(model, "optimizer", None)) is self:
            keras_private.track_apart(model)

    @property
    def state(self) -> ModelState:
        """The state of updates and seeds, which is saved with the optimizer's."""
        return self._state

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Build the inner optimizer and the transforms for the variables to train."""
        if self.built:
            return
        inner = self.inner_optimizer
        exclude(inner, self._exclusions, variables)
        if not inner.built:
            inner.build(variables)
        for part in parts(inner):
            _check_part(part, self.chain, keras_private.is_multi(inner))
        self._build_chain(variables)
        self._exclusions, self.built = [], True

    def _build_chain(self, variables: Sequence[keras.Variable]) -> None:
        model = self._state.model
        for transform in self.chain.walk():
            if type(transform).build is not GradientTransform.build:  # otherwise it has no state
                transform.bind_to(variables if model is None else model.weights)
        with owners_scope(keras_private.all_layers(model) if model is not None else []):
            self.chain.build(variables)
        self.track(self.chain.variables)

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """Apply the gradients of one batch through the inner optimizer."""
        self._applied += 1
        if not self.built:
            with keras.name_scope(self.name):
                self.build(list(trainable_variables))
        WeightUpdate(self.inner_optimizer, self.chain).apply(grads, trainable_variables)

    @property
    def applied(self) -> int:
        """How often `apply` was called or, in compiled steps, traced."""
        return self._applied

    @property
    def variables(self) -> list[keras.Variable]:
        """The inner optimizer's variables, then the transforms' state."""
        return [*self.inner_optimizer.variables, *self.own_variables()]

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

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assign values to `variables`, in their order.

        Args:
            weights: Arrays of the variables' shapes.

        Raises:
            ValueError: If the optimizer is not built, or the shapes differ.
        """
        if not self.built:
            raise ValueError(
                "You are calling `set_weights()` on an optimizer that has not yet been built. Call "
                "`optimizer.build(trainable_variables)` before it."
            )
        wanted = [tuple(v.shape) for v in self.variables]
        if [tuple(np.shape(w)) for w in weights] != wanted:
            raise ValueError(
                f"`weights` must be {len(wanted)} arrays of the shapes of the optimizer's "
                f"`variables`: {wanted}. Received shapes: {[tuple(np.shape(w)) for w in weights]}"
            )
        for variable, value in zip(self.variables, weights, strict=True):
            variable.assign(value)

    def exclude_from_weight_decay(self, *args: Any, **kwargs: Any) -> None:
        """Exclude variables as in Keras; the inner optimizer decays weights."""
        for part in parts(self.inner_optimizer):
            part.exclude_from_weight_decay(*args, **kwargs)

    def scale_loss(self, loss: Any) -> Any:
        """Scale the loss as the inner optimizer does."""
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list: Any) -> None:
        """Write the averages of `use_ema` into the weights, if the inner optimizer keeps some."""
        self.inner_optimizer.finalize_variable_values(var_list)
        if getattr(self.inner_optimizer, "use_ema", False):
            backend().unshare_values([*var_list, *self.inner_optimizer.variables])

    def save_own_variables(self, store: Any) -> None:
        """Store the state and the seeds of the model's layers, which Keras does not save."""
        super().save_own_variables(store)
        self._state.save(store)

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` stored; seeds and updates may be absent."""
        keys = list(store.keys())
        super().load_own_variables(self._in_order({k: store[k] for k in keys if k.isdigit()}))
        self._state.load(store)

    def _in_order(self, stored: dict[str, Any]) -> dict[str, Any]:
        """Return the stored values of `variables`, in their order.

        Files of version 0.1 begin with two unused values, then the transforms' state.
        """
        state = len(self.own_variables())
        if len(stored) != len(self.variables) + 2 or any(np.shape(stored[k]) for k in "01"):
            return stored
        values = [stored[str(i)] for i in range(2, len(stored))]
        return {str(i): value for i, value in enumerate([*values[state:], *values[:state]])}

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments and the exclusions from weight decay."""
        inner = self.inner_optimizer
        config = {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(inner),
            "transforms": self.chain.get_config()["transforms"],
        }
        trained = keras_private.trained_by(inner) if inner.built else []
        waiting = {EXCLUDED: self._exclusions} if self._exclusions else {}
        return {**config, **(waiting or exclusions(inner, trained))}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> TransformedOptimizer:
        """Create the optimizer from its constructor's arguments, without state."""
        deserialize = keras.saving.deserialize_keras_object
        optimizer = cls(
            deserialize(config["inner_optimizer"], custom_objects=custom_objects),
            [deserialize(t, custom_objects=custom_objects) for t in config["transforms"]],
            name=config["name"],
        )
        optimizer._exclusions = config.get(EXCLUDED, [])
        return optimizer


def transformed_in(optimizer: Any) -> TransformedOptimizer | None:
    """Return the `TransformedOptimizer` in an optimizer, or itself; None if there is none."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer if isinstance(optimizer, TransformedOptimizer) else None


def _check_inner(inner: Any, chain: Chain) -> None:
    if isinstance(inner, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "`inner_optimizer` must be the optimizer inside the LossScaleOptimizer: "
            "LossScaleOptimizer(TransformedOptimizer(optimizer, transforms)). Transforms outside "
            "would see scaled gradients."
        )
    if not isinstance(inner, keras.optimizers.Optimizer) or isinstance(inner, TransformedOptimizer):
        raise ValueError(f"`inner_optimizer` must be a Keras optimizer. Received: {inner!r}")
    for part in parts(inner):
        _check_part(part, chain, part is not inner)


def _check_part(part: keras.optimizers.Optimizer, chain: Chain, of_several: bool) -> None:
    for argument in ("clipnorm", "global_clipnorm", "clipvalue"):
        value = getattr(part, argument)
        if value is not None and chain.clips:
            raise ValueError(
                f"The optimizer {part.name!r} clips gradients itself ({argument}={value}) and so "
                "does a transform. Clip in one place: leave the optimizer's argument out."
            )
    if of_several and part.gradient_accumulation_steps:
        raise ValueError(
            f"The optimizer {part.name!r} inside a MultiOptimizer has gradient_accumulation_steps="
            f"{part.gradient_accumulation_steps}. Transforms see the gradients of all variables "
            "together, before each part accumulates its own: leave the argument out."
        )
