"""Kernels with the update that low-rank adapters (LoRA) add to them."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import keras

from keras_trainops import keras_private
from keras_trainops.errors import RestoreError


class LowRank(NamedTuple):
    """A layer with a low-rank update: `merged = kernel + scale · a · b`.

    Attributes:
        layer: The layer.
        kernel: The variable without the update: a kernel, or the embeddings.
        a: The first matrix, of shape (*inputs, rank).
        b: The second matrix, of shape (rank, *outputs).
        merged: Name of the layer's property that adds the update.
    """

    layer: Any
    kernel: keras.Variable
    a: keras.Variable
    b: keras.Variable
    merged: str

    def value(self) -> Any:
        """Return the kernel with the update added, as a tensor."""
        return getattr(self.layer, self.merged)

    @property
    def rank(self) -> int:
        """The rank of the update."""
        return int(self.layer.lora_rank)

    @property
    def alpha(self) -> float:
        """The numerator of the scale, `alpha / rank`."""
        return float(self.layer.lora_alpha)


def low_rank_layers(model: keras.Model) -> list[LowRank]:
    """Return the layers of a model that `enable_lora` has changed.

    Raises:
        RestoreError: If another layer has the same kernel, but not the update.
    """
    layers = list(keras_private.all_layers(model))
    changed = [layer for layer in layers if getattr(layer, "lora_enabled", False)]
    if not changed:
        return []
    owned = {id(layer): keras_private.own_variables(layer) for layer in layers}
    owners = Counter(id(variable) for variables in owned.values() for variable in variables)
    found: list[LowRank] = []
    for layer in changed:
        name = "embeddings" if hasattr(layer, "lora_embeddings_a") else "kernel"
        own = {variable.name: variable for variable in owned[id(layer)]}
        a, b = (getattr(layer, f"lora_{name}_{matrix}") for matrix in "ab")
        if name not in own:
            continue
        if owners[id(own[name])] > 1:
            raise RestoreError(
                f"{layer.path!r} has a low-rank update, and shares its {name} with another layer, "
                "so no value is that of both."
            )
        found.append(LowRank(layer, own[name], a, b, name))
    return found
