"""Check that the same layers and weights are trainable as when the model was compiled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras

from keras_trainops import keras_private, paths


class Trainability:
    """The layers and weights of a model that are trainable at this moment."""

    def __init__(self, model: Any) -> None:
        self._layers = [(layer, layer.trainable) for layer in keras_private.all_layers(model)]
        self._weights = [(weight, weight.trainable) for weight in model.weights]

    def holds(self) -> bool:
        """Return whether every layer and weight is still as trainable as it was."""
        return not self._changed(self._layers) and not self._changed(self._weights)

    def restore(self) -> None:
        """Make every layer and weight as trainable as it was."""
        while changed := self._changed(self._layers):  # a layer sets those in it, shared ones too
            for layer, flag in changed:
                layer.trainable = flag
        for weight, flag in self._changed(self._weights):
            weight.trainable = flag

    def changed_unbuilt(self, model: Any) -> list[str]:
        """Return the names of changed layers that will have weights but have none yet."""
        unbuilt = set(map(id, keras_private.unbuilt_layers(model)))
        return [layer.name for layer, _ in self._changed(self._layers) if id(layer) in unbuilt]

    @staticmethod
    def _changed(flags: list[tuple[Any, bool]]) -> list[tuple[Any, bool]]:
        return [(owner, flag) for owner, flag in flags if owner.trainable != flag]


def chosen(patterns: Any, variables: list[keras.Variable]) -> list[keras.Variable]:
    """Return the variables that `variables_to_train` chooses.

    Args:
        patterns: Patterns; with several optimizers, by name.
        variables: The trainable variables.
    """
    several = patterns.values() if isinstance(patterns, Mapping) else [patterns]
    return paths.selected([p for each in several for p in paths.as_list(each)], variables)


@contextmanager
def as_compiled(model: Any) -> Iterator[None]:
    """Train the variables that were trainable when `model` was compiled.

    A model may have been frozen as a whole since then, inside another one: a GAN does that with its
    discriminator. It is unfrozen while it is trained itself.

    Raises:
        ValueError: If other variables are trainable now, and the model was not compiled again.
    """
    compiled: Trainability | None = model.train_ops.compiled.trainability
    if compiled is None or compiled.holds():
        yield
        return
    now, trainable_now = Trainability(model), _trainable(model)
    try:
        compiled.restore()
        trainable_then = _trainable(model)
        either = [*trainable_then, *without(trainable_now, trainable_then)]
        to_train = model._to_train(either)
    finally:
        now.restore()
    gone = without(trainable_then, trainable_now)
    come = without(trainable_now, trainable_then)
    changed = [v.path for v in to_train if any(v is other for other in (*gone, *come))]
    changed += compiled.changed_unbuilt(model)
    if not changed:
        yield
        return
    if trainable_now or any(layer.trainable for layer in keras_private.unbuilt_layers(model)):
        raise changed_since(changed)
    compiled.restore()
    try:
        yield
    finally:
        now.restore()


def changed_since(names: list[str]) -> ValueError:
    """Return the error for variables frozen, unfrozen or chosen without a new `compile`."""
    return ValueError(
        f"The variables to train have changed since the model was compiled: {', '.join(names)}. "
        "Compile again; with the same optimizer, as in `model.compile(model.optimizer, ...)`, its "
        "state is kept for the others."
    )


def _trainable(model: Any) -> list[keras.Variable]:
    """Return the trainable weights, whether or not `variables_to_train` chooses them."""
    return [weight for weight in model.weights if weight.trainable] if model.trainable else []


def without(variables: list[keras.Variable], others: list[keras.Variable]) -> list[keras.Variable]:
    """Return the variables that are not among `others`."""
    ids = {id(variable) for variable in others}
    return [variable for variable in variables if id(variable) not in ids]
