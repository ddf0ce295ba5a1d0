"""Several optimizers as one, each for variables of its own."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from typing import Any, NoReturn

import keras
from keras import ops

from keras_trainops import keras_private, paths
from keras_trainops.backends import backend
from keras_trainops.training.optimizers.state import ModelState
from keras_trainops.training.optimizers.transfer import built_for
from keras_trainops.training.optimizers.transformed import TransformedOptimizer, transformed_in
from keras_trainops.transforms.base import GradientTransform
from keras_trainops.transforms.monitoring import Monitor


@keras.saving.register_keras_serializable(package="keras_trainops")
class OptimizerGroup(keras_private.OptimizerShell):
    """Several optimizers as one, which is `model.optimizer` after `compile(optimizers=...)`.

    So Keras's training loops, files and callbacks see one optimizer with the variables of all.

    Args:
        optimizers: The optimizers by name; each belongs to this group alone.
        variables: The patterns, variables or layers that each trains, by the same names.
        name: The name of the group.

    Attributes:
        by_name: The optimizers by name, read-only; their learning rates can be set there.

    Raises:
        ValueError: If there is no optimizer, or the names differ.

    Example:
        >>> import keras, keras_trainops as kt
        >>> group = kt.OptimizerGroup(
        ...     {"critic": keras.optimizers.Adam(1e-4), "actor": keras.optimizers.Adam(1e-3)},
        ...     {"critic": "critic/.*", "actor": "actor/.*"})
    """

    def __init__(
        self,
        optimizers: Mapping[str, keras.optimizers.Optimizer],
        variables: Mapping[str, paths.Patterns],
        name: str | None = None,
    ) -> None:
        _check(optimizers, variables)
        super().__init__(name)
        # In a holder: Keras's saving walk follows dictionaries, lists and optimizers among the
        # attributes, and would store the parts a second time.
        self._held = SimpleNamespace(optimizers=dict(optimizers), patterns=dict(variables))
        self._state = ModelState()

    @property
    def by_name(self) -> Mapping[str, Any]:
        return MappingProxyType(self._held.optimizers)

    @property
    def optimizers(self) -> Iterable[Any]:
        """The optimizers, as Keras's callbacks look for several."""
        return self.by_name.values()

    @property
    def patterns(self) -> Mapping[str, paths.Patterns]:
        """The patterns of the variables that each optimizer trains, by its name."""
        return MappingProxyType(self._held.patterns)

    @property
    def state(self) -> ModelState:
        """The state of updates and seeds, which is saved with the optimizers'."""
        return self._state

    def with_optimizers(self, optimizers: Mapping[str, Any]) -> OptimizerGroup:
        """Return a group like this one with other optimizers under the same names."""
        return self._like(optimizers, self.patterns)

    def with_patterns(self, variables: Mapping[str, paths.Patterns]) -> OptimizerGroup:
        """Return a group of the same optimizers, which train other variables."""
        return self._like(self.by_name, variables)

    def _like(
        self, optimizers: Mapping[str, Any], variables: Mapping[str, paths.Patterns]
    ) -> OptimizerGroup:
        group = OptimizerGroup(optimizers, variables, self.name)
        group._state = self._state
        return group

    def assigned(self, variables: Sequence[keras.Variable]) -> dict[str, list[keras.Variable]]:
        """Return the variables that each optimizer trains.

        Args:
            variables: The variables to train.

        Raises:
            ValueError: If a pattern matches no variable, or if several optimizers or none would
                train a variable; the message names it.
        """
        chosen = {n: paths.selected(self.patterns[n], variables) for n in self.by_name}
        for variable in variables:
            owners = [n for n, own in chosen.items() if any(variable is v for v in own)]
            if len(owners) != 1:
                by = " and ".join(map(repr, owners)) or "none of them"
                raise ValueError(
                    f"Each variable must be trained by one optimizer, but {variable.path!r} is "
                    f"chosen by {by}. Received: variables_to_train={_described(self.patterns)}"
                )
        return chosen

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Build each optimizer for its variables."""
        if self.built:
            return
        for name, own in self.assigned(variables).items():
            optimizer = self.by_name[name]
            if not optimizer.built:
                with keras.name_scope(name):  # the paths of two Adams' variables must differ
                    optimizer.build(own)
        self.set_trained(variables)

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of all optimizers."""
        found: list[keras.Variable] = []
        for optimizer in self.optimizers:
            found += optimizer.variables
        return found

    @property
    def iterations(self) -> Any:
        """The number of weight updates that all optimizers have made together, a tensor."""
        return functools.reduce(ops.add, [o.iterations for o in self.optimizers])

    @property
    def learning_rate(self) -> Any:
        """Each optimizer has its own, as in a Keras `MultiOptimizer`; the callbacks find them.

        Raises:
            AttributeError: Always.
        """
        raise self._no_rate()

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        raise self._no_rate()

    def _no_rate(self) -> AttributeError:
        first = next(iter(self.by_name))
        return AttributeError(
            "Several optimizers have no common learning rate. Read and set that of each, as in "
            f"`model.optimizer.by_name[{first!r}].learning_rate`."
        )

    def apply(self, grads: Any, trainable_variables: Any = None) -> NoReturn:
        """Raise: a training step names the variables, and so the optimizer, in `step.apply`.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            f"`self.optimizer` is several optimizers: {', '.join(self.by_name)}. Apply gradients "
            "with `step.apply(gradients, variables)` in `training_step`, which finds the optimizer "
            "of the variables."
        )

    def scale_loss(self, loss: Any) -> Any:
        """Return the loss as it is: each optimizer scales its own."""
        return loss

    def finalize_variable_values(self, var_list: Any) -> None:
        """Write the averages of `use_ema` into the weights, of those optimizers that keep some."""
        for optimizer in self.optimizers:
            optimizer.finalize_variable_values(built_for(optimizer))
        if any(getattr(optimizer, "use_ema", False) for optimizer in self.optimizers):
            backend().unshare_values([*var_list, *self.variables])

    def save_own_variables(self, store: Any) -> None:
        """Store the variables of each optimizer under its name, and the state of updates."""
        for name, optimizer in self.by_name.items():
            own: dict[str, Any] = {}
            optimizer.save_own_variables(own)
            for key, value in own.items():
                store[f"{name}.{key}"] = value
        self._state.save(store)

    def load_own_variables(self, store: Any) -> None:
        """Load what `save_own_variables` stored."""
        keys = list(store.keys())
        for name, optimizer in self.by_name.items():
            start = f"{name}."
            own = {key[len(start) :]: store[key] for key in keys if key.startswith(start)}
            optimizer.load_own_variables(own)
        self._state.load(store)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments; what is trained is named by its exact path."""
        return {
            "name": self.name,
            "optimizers": {
                name: keras.saving.serialize_keras_object(optimizer)
                for name, optimizer in self.by_name.items()
            },
            "variables": {name: self._serialized(name) for name in self.by_name},
        }

    def _serialized(self, name: str) -> list[str] | None:
        # The paths of a layer would include statistics, which nobody trains.
        trained = built_for(self.by_name[name]) if self.built else self.patterns[name]
        return paths.serializable(trained)

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> OptimizerGroup:
        """Create the optimizers from their constructors' arguments, without state."""
        optimizers = {
            name: keras.saving.deserialize_keras_object(each, custom_objects=custom_objects)
            for name, each in config["optimizers"].items()
        }
        return cls(optimizers, config["variables"], config["name"])


def all_transformed_in(optimizer: Any) -> list[TransformedOptimizer]:
    """Return every `TransformedOptimizer` in an optimizer, which may be a group of several."""
    found = map(transformed_in, keras_private.named_optimizers(optimizer).values())
    return [transformed for transformed in found if transformed is not None]


def transforms_of(optimizer: Any) -> list[GradientTransform]:
    """Return the transforms in an optimizer, and all of their parts."""
    found: list[GradientTransform] = []
    for transformed in all_transformed_in(optimizer):
        found += transformed.chain.walk()
    return found


def monitors_of(optimizer: Any) -> list[Monitor]:
    """Return the monitors among an optimizer's transforms."""
    return [t for t in transforms_of(optimizer) if isinstance(t, Monitor)]


def _check(optimizers: Any, variables: Any) -> None:
    if not isinstance(optimizers, Mapping) or not optimizers:
        raise ValueError(
            "`optimizers` must be a dictionary from names to Keras optimizers. "
            f"Received: optimizers={optimizers!r}"
        )
    for name, optimizer in optimizers.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(
                f"The names in `optimizers` must be valid Python names. Received: {name!r}"
            )
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            raise ValueError(
                f"`optimizers` must be Keras optimizers. Received: {optimizer!r} for {name!r}"
            )
    if len({id(optimizer) for optimizer in optimizers.values()}) < len(optimizers):
        raise ValueError(
            "Each name in `optimizers` must have an optimizer of its own, because each keeps state "
            "for its variables. Received one optimizer under several names."
        )
    if not isinstance(variables, Mapping) or variables.keys() != optimizers.keys():
        raise ValueError(
            "With several optimizers, `variables_to_train` must be a dictionary that says which "
            f"variables each of them trains: {', '.join(map(repr, optimizers))}. Received: "
            f"variables_to_train={variables!r}"
        )


def _described(patterns: Mapping[str, paths.Patterns]) -> dict[str, list[str]]:
    return {name: [*map(paths.describe, paths.as_list(each))] for name, each in patterns.items()}
