"""The engine: an optimizer that runs a chain of gradient transforms at the one right moment."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.state import Stateful
from keras_trainops.training.weight_decay import EXCLUDED, exclude, exclusions
from keras_trainops.transforms.base import Gradient, GradientTransform
from keras_trainops.transforms.chain import Chain
from keras_trainops.transforms.scope import owners_scope, update_scope
from keras_trainops.values import copy_of

# How the keys of what is saved beside the optimizers' own variables begin.
_SEED, _UPDATE = "seed_", "update_"


@keras.saving.register_keras_serializable(package="keras_trainops")
class TransformedOptimizer(keras_private.InFront):
    """Runs gradient transforms inside another optimizer, right before its update.

    The transforms see the gradients unscaled, accumulated, reduced over replicas and with the
    duplicate rows of embeddings summed, once per weight update. `compile(gradient_transforms=...)`
    of a model with `TrainOpsMixin` makes one; use it by hand with a plain `keras.Model`.

    It looks like the optimizer inside: hyperparameters, `learning_rate`, `iterations`, `optimizers`
    of a `MultiOptimizer` are read and set there. `variables` are the inner optimizer's, then the
    state of the transforms.

    Args:
        inner_optimizer: Any Keras optimizer, a `MultiOptimizer` too, but no `LossScaleOptimizer`,
            which goes around this one. Its learning rate and iteration count are this one's.
        transforms: A transform, a callable, or a list of these (see `keras_trainops.transforms`).
        name: The optimizer's name.

    Raises:
        ValueError: If `inner_optimizer` is none of these, clips gradients itself beside a clipping
            transform, or accumulates them inside a `MultiOptimizer`.

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
        super().__init__(inner_optimizer, name)
        self.chain = chain
        self._attached: Any = None
        self._updates = Stateful()  # no list of variables: Keras would track it as its own
        self._awaited: list[np.ndarray] = []
        self._applied = 0
        self._exclusions: list[dict[str, Any]] = []  # as a file tells them, until it is built

    def attach(self, model: Any) -> None:
        """Says whose variables are trained: some transforms ask for the layers they are of."""
        self._attached = weakref.ref(model)
        if engine_of(getattr(model, "optimizer", None)) is self:
            keras_private.track_apart(model)

    def track_updates(self, updates: Stateful) -> None:
        """Saves and resumes the state of updates with the optimizer's.

        What a file held of it, where the updates were not there yet when it was loaded, they get.
        """
        self._updates = updates
        if updates.variables and self._awaited:
            _assign_all(updates.variables, self._awaited)
            self._awaited = []

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Builds the inner optimizer and the transforms for the variables to train."""
        if self.built:
            return
        exclude(self.inner_optimizer, self._exclusions, variables)
        if not self.inner_optimizer.built:
            self.inner_optimizer.build(variables)
        for leaf in _leaves(self.inner_optimizer):
            _check_leaf(leaf, self.chain, self._of_several())
        model = self._attached() if self._attached is not None else None
        for transform in self.chain.walk():
            if type(transform).build is not GradientTransform.build:  # else it keeps nothing
                transform.bind_to(variables if model is None else model.weights)
        with owners_scope(keras_private.all_layers(model) if model is not None else []):
            self.chain.build(variables)
        for variable in self.chain.variables:
            self._track_variable(variable)
        self._exclusions, self.built = [], True

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """Applies one batch's gradients through the inner optimizer."""
        self._applied += 1
        if not self.built:
            with keras.name_scope(self.name):
                self.build(list(trainable_variables))
        gradients = backend().dense_if_divided(grads, self.inner_optimizer)
        if not self._of_several():
            with keras_private.applying(self.inner_optimizer, self._apply_batch):
                self.inner_optimizer.apply(gradients, trainable_variables)
            return
        scale = self.inner_optimizer.loss_scale_factor or 1.0
        self._update_weights(
            [None if g is None else g / scale for g in gradients],
            list(self._trainable_variables if trainable_variables is None else trainable_variables),
        )

    @property
    def applied(self) -> int:
        """How often `apply` was called or, in compiled steps, traced."""
        return self._applied

    def _of_several(self) -> bool:
        """Whether the inner optimizer is a MultiOptimizer, whose parts see only their variables."""
        return isinstance(self.inner_optimizer, getattr(keras.optimizers, "MultiOptimizer", ()))

    def _apply_batch(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> None:
        """What the inner optimizer does with unscaled gradients: it accumulates, or updates."""
        inner = self.inner_optimizer
        count = inner.gradient_accumulation_steps
        if not count:
            self._update_weights(gradients, variables)
            return
        sums = keras_private.accumulators(inner, variables)

        def update(*gradients: Gradient) -> None:
            means = [(g + s) / count for g, s in zip(gradients, sums, strict=True)]
            self._update_weights(means, variables)
            for total in sums:  # Keras's own reset on PyTorch multiplies by 0, and NaN stays NaN
                total.assign(ops.zeros(total.shape, dtype=total.dtype))

        def accumulate(*gradients: Gradient) -> None:
            keras_private.accumulate(inner, list(gradients), sums)
            self._update_averages()

        backend().conditionally(
            ops.equal((keras_private.batch_count(inner) + 1) % count, 0),
            update,
            accumulate,
            gradients,
            changes=[*variables, *self.variables],
        )

    def _update_weights(
        self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]
    ) -> None:
        """One weight update: reduces over replicas, runs the chain and, unless it skips, steps."""
        held = self.chain.held_variables
        before = [ops.copy(v.value) for v in held]
        with update_scope(lambda: self.inner_optimizer.iterations) as scope:
            gradients = backend().reduce_and_transform(gradients, variables, self.chain)
            skip = scope.skip()
        if skip is None:
            self._step(gradients, variables)
            return
        for variable, value in zip(held, before, strict=True):
            variable.assign(ops.where(skip, value, variable.value))
        backend().conditionally(
            ops.logical_not(skip),
            lambda *gradients: self._step(gradients, variables),
            self._leave_uncounted,
            gradients,
            changes=[*variables, *self.inner_optimizer.variables],
        )

    def _step(self, gradients: Sequence[Gradient], variables: Sequence[keras.Variable]) -> None:
        """The inner optimizer's step, scaled where a transform says so."""
        inner = self.inner_optimizer
        with update_scope(lambda: inner.iterations):
            factors = self.chain.step_factors(variables)
        scaled = [(v, c) for v, c in zip(variables, factors, strict=True) if c is not None]
        starts = [ops.copy(v.value) for v, _ in scaled]
        with contextlib.ExitStack() as reduced:
            for leaf in _leaves(inner):
                reduced.enter_context(backend().without_reduction(leaf))
            if self._of_several():
                scale = inner.loss_scale_factor or 1.0
                inner.apply([None if g is None else g * scale for g in gradients], variables)
            else:
                keras_private.step(inner, list(gradients), list(variables))
        backend().assign_weights(
            [v for v, _ in scaled],
            [w + ops.cast(c, w.dtype) * (v - w) for w, (v, c) in zip(starts, scaled, strict=True)],
        )
        if not self._of_several():
            self._update_averages()

    def _update_averages(self) -> None:
        """The inner optimizer's `use_ema`, as in Keras."""
        inner = self.inner_optimizer
        if not inner.use_ema:
            return
        keras_private.update_averages(inner)
        if inner.ema_overwrite_frequency:
            backend().conditionally(
                ops.equal((inner.iterations + 1) % inner.ema_overwrite_frequency, 0),
                lambda: keras_private.overwrite_with_averages(inner),
                lambda: None,
                (),
                changes=keras_private.trained_by(inner),
            )

    def _leave_uncounted(self, *_: Gradient) -> None:
        """Takes the count back that the inner optimizer is about to add for a skipped update."""
        inner = self.inner_optimizer
        if not self._of_several():
            keras_private.batch_count(inner).assign_sub(inner.gradient_accumulation_steps or 1)

    @property
    def variables(self) -> list[keras.Variable]:
        """The inner optimizer's variables, then the transforms' state."""
        return [*self.inner_optimizer.variables, *self._variables]

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
        """Assigns values to `variables`, in their order.

        Raises:
            ValueError: If it is not built, or they are of other variables.
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
        """As in Keras: the inner optimizer is the one that decays weights."""
        for leaf in _leaves(self.inner_optimizer):
            leaf.exclude_from_weight_decay(*args, **kwargs)

    def scale_loss(self, loss: Any) -> Any:
        """Scales the loss as the inner optimizer does."""
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list: Any) -> None:
        """Writes the inner optimizer's averages into the weights, where it keeps some."""
        self.inner_optimizer.finalize_variable_values(var_list)
        if getattr(self.inner_optimizer, "use_ema", False):
            backend().unshare_values([*var_list, *self.inner_optimizer.variables])

    def save_own_variables(self, store: Any) -> None:
        """Stores the state and, as Keras keeps them nowhere, the seeds of the model's layers."""
        super().save_own_variables(store)
        updates = list(self._awaited) or [copy_of(v) for v in self._updates.variables]
        for start, values in ((_SEED, map(copy_of, self._seeds())), (_UPDATE, updates)):
            for i, value in enumerate(values):
                store[f"{start}{i}"] = value

    def load_own_variables(self, store: Any) -> None:
        """The inverse, of files without seeds and updates too."""
        keys = list(store.keys())
        super().load_own_variables(self._in_order({k: store[k] for k in keys if k.isdigit()}))

        def values(start: str) -> list[np.ndarray]:
            count = sum(key.startswith(start) for key in keys)
            return [np.asarray(store[f"{start}{i}"]) for i in range(count)]

        seeds, self._awaited = values(_SEED), values(_UPDATE)
        if len(seeds) == len(self._seeds()):
            _assign_all(self._seeds(), seeds)
        self.track_updates(self._updates)

    def _in_order(self, stored: dict[str, Any]) -> dict[str, Any]:
        """What a file holds of `variables`, in their order.

        Files of version 0.1 begin with two that were never used, and the transforms' state.
        """
        state = len(self._variables)
        if len(stored) != len(self.variables) + 2 or any(np.shape(stored[k]) for k in "01"):
            return stored
        values = [stored[str(i)] for i in range(2, len(stored))]
        return {str(i): value for i, value in enumerate([*values[state:], *values[:state]])}

    def _seeds(self) -> list[keras.Variable]:
        model = self._attached() if self._attached is not None else None
        return keras_private.seeds(model) if model is not None else []

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, and what is excluded from weight decay."""
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
        """The optimizer with these constructor arguments, without state."""
        deserialize = keras.saving.deserialize_keras_object
        optimizer = cls(
            deserialize(config["inner_optimizer"], custom_objects=custom_objects),
            [deserialize(t, custom_objects=custom_objects) for t in config["transforms"]],
            name=config["name"],
        )
        optimizer._exclusions = config.get(EXCLUDED, [])
        return optimizer


def _assign_all(variables: Sequence[keras.Variable], values: Sequence[np.ndarray]) -> None:
    """Assigns values from a file, or none of them where they are of other variables."""
    if [tuple(v.shape) for v in variables] != [value.shape for value in values]:
        warnings.warn(
            f"The file holds the state of other updates ({len(values)} variables) than the model "
            f"has ({len(variables)}): they start anew.",
            stacklevel=2,
        )
        return
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def engine_of(optimizer: Any) -> TransformedOptimizer | None:
    """The `TransformedOptimizer` that `optimizer` is, or that a LossScaleOptimizer wraps."""
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
    for leaf in _leaves(inner):
        _check_leaf(leaf, chain, leaf is not inner)


def _leaves(inner: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    """The optimizers that make the steps; a MultiOptimizer may know some only when it is built."""
    return list(getattr(inner, "optimizers", [inner]))


def _check_leaf(leaf: keras.optimizers.Optimizer, chain: Chain, of_several: bool) -> None:
    for argument in ("clipnorm", "global_clipnorm", "clipvalue"):
        value = getattr(leaf, argument)
        if value is not None and chain.clips:
            raise ValueError(
                f"The optimizer {leaf.name!r} clips gradients itself ({argument}={value}) and so "
                "does a transform. Clip in one place: leave the optimizer's argument out."
            )
    if of_several and leaf.gradient_accumulation_steps:
        raise ValueError(
            f"The optimizer {leaf.name!r} inside a MultiOptimizer has gradient_accumulation_steps="
            f"{leaf.gradient_accumulation_steps}. Transforms see the gradients of all variables "
            "together, before they are accumulated apart: leave the argument out."
        )
