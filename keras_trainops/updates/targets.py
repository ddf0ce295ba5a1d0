"""Target networks: slowly updated copies of a part of the model."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_trainops import keras_private, paths
from keras_trainops.scalars import check_number
from keras_trainops.updates.base import On, Update
from keras_trainops.values import tensor_of


@keras.saving.register_keras_serializable(package="keras_trainops")
class TargetNetwork(Update):
    """Updates a target layer from a source layer, softly or by a copy every few steps.

    `t ← τ · s + (1 − τ) · t`; with `every` alone `t ← s`. Integers are copied. When training
    begins, after a warm start, the target takes the source's values.

    The target must not be trained: set `target.trainable = False`, or leave it out of
    `variables_to_train`.

    Args:
        source: The source layer, such as a nested model, or its name.
        target: The target layer, or its name. Its weights have the same names and shapes as those
            of the source, in the same order.
        tau: The share `τ` of the source, `0 < τ <= 1`. None, if `every` is given, means 1.
        every: The number of weight updates or batches from one run to the next. None, if `tau` is
            given, means 1.
        on: `"update"` or `"batch"`, the unit of `every`; see `Update`.

    Raises:
        ValueError: If an argument is not valid; at the first build, if the model has no such layer,
            the weights of source and target differ in number, names or shapes, or the target is
            trained.

    Example:
        >>> import keras_trainops as kt
        >>> soft = kt.updates.TargetNetwork("online", "target", tau=0.005)
        >>> copied = kt.updates.TargetNetwork("online", "target", every=1000)

    References: Lillicrap et al. 2016 (soft) and Mnih et al. 2015 (copies);
    `optax.incremental_update`, `optax.periodic_update`.
    """

    def __init__(
        self,
        source: keras.layers.Layer | str,
        target: keras.layers.Layer | str,
        tau: float | None = None,
        every: int | None = None,
        on: On = "update",
    ) -> None:
        if tau is None and every is None:
            raise ValueError(
                "Pass `tau` or `every`, which define how the target follows. Received: neither"
            )
        super().__init__(1 if every is None else every, on)
        self.tau = check_number(
            "tau", 1.0 if tau is None else tau, "above 0 and at most 1", lambda t: 0 < t <= 1
        )
        for name, layer in (("source", source), ("target", target)):
            if not isinstance(layer, (keras.layers.Layer, str)):
                raise ValueError(
                    f"`{name}` must be a layer or the name of one. Received: {name}={layer!r}"
                )
        self.source, self.target = source, target
        self._pairs: list[tuple[keras.Variable, keras.Variable]] = []

    def build(self, model: keras.Model) -> None:
        source, target = (_weights(model, layer) for layer in (self.source, self.target))
        _check_alike(source, target)
        trained = {id(v) for v in model.trainable_variables}
        trained_paths = [v.path for v in target if id(v) in trained]
        if trained_paths:
            raise ValueError(
                "The target's variables must not be trained, but these are: "
                f"{', '.join(trained_paths)}. Set `trainable = False` on the target, or leave it "
                "out of `variables_to_train`."
            )
        self._pairs = list(zip(source, target, strict=True))

    def start(self, model: keras.Model) -> None:
        for source, target in self._pairs:
            target.assign(tensor_of(source))

    def __call__(self, model: keras.Model, loss: Any) -> None:
        for source, target in self._pairs:
            new = ops.convert_to_tensor(source)
            if self.tau < 1 and keras.backend.is_float_dtype(target.dtype):
                new = self.tau * new + (1 - self.tau) * target
            target.assign(new)

    def get_config(self) -> dict[str, Any]:
        return {
            "source": getattr(self.source, "name", self.source),
            "target": getattr(self.target, "name", self.target),
            "tau": self.tau,
            **super().get_config(),
        }


def _weights(model: keras.Model, wanted: keras.layers.Layer | str) -> list[keras.Variable]:
    """Return the weights of a layer of `model`, at any depth.

    A layer identifies them, not a pattern: variables of two nested models may share a path.

    Raises:
        ValueError: If no layer or several layers have the name.
    """
    layers = keras_private.all_layers(model)
    found = [la for la in layers if la is wanted or la.name == wanted]
    name = wanted if isinstance(wanted, str) else wanted.name
    if not found:
        near = paths.closest_phrase(name, [la.name for la in layers], "layer")
        raise ValueError(f"{model.name!r} has no layer {name!r} to take weights from. {near}")
    if len(found) > 1:
        raise ValueError(
            f"{model.name!r} has {len(found)} layers named {name!r}: pass the layer itself, or "
            "give them unique names."
        )
    return found[0].weights


def _check_alike(source: list[keras.Variable], target: list[keras.Variable]) -> None:
    """Raise if the two lists of weights differ in number, names or shapes, or share variables."""
    differences = [*_shared(source, target), *_mismatches(source, target)]
    if differences:
        listed = "\n".join(f"  ! {line}" for line in differences)
        raise ValueError(
            f"Source and target of a TargetNetwork must have the same variables:\n{listed}"
        )


def _shared(source: list[keras.Variable], target: list[keras.Variable]) -> list[str]:
    targets = {id(v) for v in target}
    shared = [v.path for v in source if id(v) in targets]
    return [f"the same variables in both: {', '.join(shared)}"] if shared else []


def _mismatches(source: list[keras.Variable], target: list[keras.Variable]) -> list[str]:
    lines = []
    if len(source) != len(target):
        lines.append(f"{len(source)} variables and {len(target)}")
    for s, t in zip(source, target, strict=False):
        if tuple(s.shape) != tuple(t.shape) or s.name != t.name:
            lines.append(f"{s.path} {tuple(s.shape)} and {t.path} {tuple(t.shape)}")
    return lines
