"""The optimizer of a model, as the arguments of `compile` describe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from keras_trainops import keras_private, paths
from keras_trainops.backends import backend
from keras_trainops.training.optimizers.group import OptimizerGroup
from keras_trainops.training.optimizers.transfer import transferred
from keras_trainops.training.optimizers.wrapping import ensure_transformed, with_transforms

DEFAULT = "rmsprop"  # Keras's default for `optimizer`


@dataclass(frozen=True)
class OptimizerArguments:
    """The arguments of `compile` that describe the optimizer.

    Attributes:
        optimizer: One optimizer, or an `OptimizerGroup`.
        optimizers: Several optimizers by name, or None.
        gradient_transforms: The transforms; with several optimizers, by name.
        variables_to_train: Patterns; with several optimizers, by name.
    """

    optimizer: Any
    optimizers: Any
    gradient_transforms: Any
    variables_to_train: Any

    @property
    def names(self) -> list[str]:
        """The names of several optimizers; empty for one."""
        several = self.optimizers
        if isinstance(self.optimizer, OptimizerGroup) and several is None:
            several = self.optimizer.by_name
        return list(several) if isinstance(several, Mapping) else []

    def create(self, *, keeps_state: bool) -> Any:
        """Return the optimizer, with the transforms; the user's own are not changed.

        Args:
            keeps_state: Whether the optimizer has to keep the state of updates.

        Raises:
            ValueError: If an argument is not valid.
        """
        if self._are_several:
            return self._group()
        optimizer = keras.optimizers.get(self.optimizer)
        if isinstance(self.variables_to_train, Mapping):
            raise ValueError(
                "`variables_to_train` may only be a dictionary together with `optimizers`. "
                f"Received: variables_to_train={self.variables_to_train!r}"
            )
        paths.as_list(self.variables_to_train)
        if self.gradient_transforms is not None:
            optimizer = with_transforms(optimizer, self.gradient_transforms)
        return ensure_transformed(optimizer) if keeps_state and optimizer is not None else optimizer

    @property
    def _are_several(self) -> bool:
        return self.optimizers is not None or isinstance(self.optimizer, OptimizerGroup)

    def _group(self) -> OptimizerGroup:
        optimizers, patterns = self.optimizers, self.variables_to_train
        if isinstance(self.optimizer, OptimizerGroup) and optimizers is None:
            group = self.optimizer
            if patterns is not None:
                group = group.with_patterns(patterns)
        elif self.optimizer == DEFAULT:
            if isinstance(optimizers, Mapping):
                optimizers = {n: keras.optimizers.get(each) for n, each in optimizers.items()}
            group = OptimizerGroup(optimizers, patterns)
        else:
            raise ValueError(
                "Pass either `optimizer` or `optimizers`. Received: "
                f"optimizer={self.optimizer!r}, optimizers={self.optimizers!r}"
            )
        return group.with_optimizers(self._prepared(group.by_name))

    def _prepared(self, optimizers: Mapping[str, Any]) -> dict[str, Any]:
        """Return the optimizers with their transforms and, if wanted, loss scales."""
        transforms = self.gradient_transforms
        transforms = {} if transforms is None else transforms
        if not isinstance(transforms, Mapping) or not transforms.keys() <= optimizers.keys():
            raise ValueError(
                "With several optimizers, `gradient_transforms` must be a dictionary from their "
                f"names ({', '.join(map(repr, optimizers))}) to transforms. Received: "
                f"gradient_transforms={transforms!r}"
            )
        prepared = {n: with_transforms(optimizers[n], each) for n, each in transforms.items()}
        return {name: prepared.get(name, each) for name, each in optimizers.items()}


def with_loss_scales(optimizer: Any) -> Any:
    """Return the optimizer; from a loss scale around a group, the group with one around each."""
    group = getattr(optimizer, "inner_optimizer", None)
    if not isinstance(group, OptimizerGroup):
        return optimizer
    return group.with_optimizers(
        {name: _with_loss_scale(each, optimizer.name) for name, each in group.by_name.items()}
    )


def _with_loss_scale(optimizer: Any, name: str) -> Any:
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer, name=name)


def for_replicas(optimizer: Any) -> Any:
    """Return the optimizer, with a `TransformedOptimizer` inside if the backend needs one.

    See `Backend.must_transform`.
    """
    if isinstance(optimizer, OptimizerGroup):
        each = {name: for_replicas(one) for name, one in optimizer.by_name.items()}
        is_same = all(each[name] is one for name, one in optimizer.by_name.items())
        return optimizer if is_same else optimizer.with_optimizers(each)
    innermost = keras_private.innermost(optimizer)
    wanted = innermost is not None and backend().must_transform(innermost)
    return ensure_transformed(optimizer) if wanted else optimizer


def fitted(optimizer: Any, model: Any) -> Any:
    """Return the optimizer for the variables that a model trains now.

    Args:
        optimizer: An optimizer, built or not; it is not changed.
        model: The model.

    Raises:
        ValueError: If it was built for another model, or keeps state that cannot be carried over.
    """
    variables = model.trainable_variables if model.built else []
    if not isinstance(optimizer, OptimizerGroup):
        return transferred(optimizer, model, variables)
    chosen = optimizer.assigned(variables) if model.built else {}
    return optimizer.with_optimizers(
        {n: transferred(o, model, chosen.get(n, [])) for n, o in optimizer.by_name.items()}
    )
