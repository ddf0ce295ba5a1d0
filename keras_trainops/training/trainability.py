"""What was trainable when a model was compiled, compared with what is as training begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_trainops import keras_private
from keras_trainops.training.optimizer_transfer import without


class Trainability:
    """Which layers and weights of a model are trainable at this moment."""

    def __init__(self, model: Any) -> None:
        self._layers = [(layer, layer.trainable) for layer in keras_private.all_layers(model)]
        self._weights = [(weight, weight.trainable) for weight in model.weights]

    def holds(self) -> bool:
        """Whether each layer and weight still is what it was."""
        return not self._changed(self._layers) and not self._changed(self._weights)

    def restore(self) -> None:
        """Makes each layer and weight what it was."""
        while changed := self._changed(self._layers):  # a layer sets those in it, shared ones too
            for layer, flag in changed:
                layer.trainable = flag
        for weight, flag in self._changed(self._weights):
            weight.trainable = flag

    def changed_unbuilt(self, model: Any) -> list[str]:
        """The names of layers that will have weights, and are not what they were."""
        unbuilt = set(keras_private.unbuilt_layers(model))
        return [layer.name for layer, _ in self._changed(self._layers) if layer.name in unbuilt]

    @staticmethod
    def _changed(flags: list[tuple[Any, bool]]) -> list[tuple[Any, bool]]:
        return [(owner, flag) for owner, flag in flags if owner.trainable != flag]


@contextmanager
def as_compiled(model: Any) -> Iterator[None]:
    """Training within it trains the variables that were trainable when `model` was compiled.

    A model that was frozen as a whole since, for another one that contains it (as a GAN does with
    its discriminator), is thawed for as long as it trains itself.

    Raises:
        ValueError: If other variables are trainable now, and the model was not compiled again.
    """
    compiled: Trainability | None = model.train_ops.compiled
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
    if trainable_now or any(layer.trainable for layer in _unbuilt(model)):
        raise changed_since(changed)
    compiled.restore()
    try:
        yield
    finally:
        now.restore()


def changed_since(names: list[str]) -> ValueError:
    """The error that names what was frozen, thawed or chosen anew without a `compile`."""
    return ValueError(
        f"The variables to train have changed since the model was compiled: {', '.join(names)}. "
        "Compile again; with the same optimizer, as in `model.compile(model.optimizer, ...)`, its "
        "state is kept for the others."
    )


def _trainable(model: Any) -> list[keras.Variable]:
    """The trainable weights, whatever is chosen of them."""
    return [weight for weight in model.weights if weight.trainable] if model.trainable else []


def _unbuilt(model: Any) -> list[Any]:
    names = set(keras_private.unbuilt_layers(model))
    return [layer for layer in keras_private.all_layers(model) if layer.name in names]
