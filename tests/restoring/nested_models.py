"""Models within models whose paths repeat, and ways to save them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from keras_trainops.cli import main
from tests.helpers import value

Spec = tuple[Any, ...]  # (kind, name, parts) of a model, (name,) of a dense layer


@keras.saving.register_keras_serializable(package="nested_names")
class Parts(keras.Model):
    """A subclassed model that calls its parts in sequence."""

    def __init__(self, parts: list[Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = parts

    def call(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x

    def get_config(self) -> dict[str, Any]:
        parts = [keras.saving.serialize_keras_object(part) for part in self.parts]
        return {**super().get_config(), "parts": parts}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Parts:
        parts = [keras.saving.deserialize_keras_object(part) for part in config.pop("parts")]
        return cls(parts, **config)

    def build_from_config(self, config: dict[str, Any]) -> None:
        self(np.zeros((1, 2), "float32"))


def build(spec: Spec) -> Any:
    if len(spec) == 1:
        return keras.layers.Dense(2, name=spec[0])
    kind, name, parts = spec
    layers = [build(part) for part in parts]
    if kind == "sequential":
        return keras.Sequential([keras.Input((2,)), *layers], name=name)
    if kind == "subclassed":
        model = Parts(layers, name=name)
        model(np.zeros((1, 2), "float32"))
        return model
    inputs = x = keras.Input((2,))
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, name=name)


def made(spec: Spec, first: int = 0) -> keras.Model:
    """Build the model with a different value in each variable."""
    model = build(spec)
    for i, variable in enumerate(model.weights):
        variable.assign(np.full(variable.shape, first + i))
    return model


def places(model: Any, above: tuple[str, ...] = ()) -> dict[tuple[str, ...], keras.Variable]:
    """Return each variable by the names of the layers around it, from the objects themselves."""
    parts = getattr(model, "parts", None) or getattr(model, "layers", [])
    found = {}
    for layer in parts:
        if isinstance(layer, keras.layers.Dense):
            for leaf in ("kernel", "bias"):
                found[(*above, layer.name, leaf)] = getattr(layer, leaf)
        elif isinstance(layer, keras.Model):
            found |= places(layer, (*above, layer.name))
    return found


def npz(model: keras.Model) -> str:
    model.save("m.keras")
    assert main(["convert", "m.keras", "m.npz", "--model", "m.keras", "--force"]) == 0
    return "m.npz"


def safetensors(model: keras.Model) -> str:
    model.save_weights("m.weights.h5")
    assert main(["convert", "m.weights.h5", "m.safetensors", "--force"]) == 0
    return "m.safetensors"


def saved(name: str) -> Callable[[keras.Model], str]:
    def save(model: keras.Model) -> str:
        model.save_weights(name) if name.endswith(".weights.h5") else model.save(name)
        return name

    return save


def legacy(model: keras.Model) -> str:
    paths = [v.path for v in model.weights]
    if len({*paths}) < len(paths):  # Keras cannot write equal names
        return own_paths(model)
    return saved("m.h5")(model)


def own_paths(model: keras.Model) -> str:
    arrays = {v.path: value(v) for v in model.weights}
    np.savez("paths.npz", **(arrays if len(arrays) == len(model.weights) else {"none": 0}))
    return "paths.npz"


def tensorflow(model: keras.Model) -> str:
    import tensorflow as tf

    return str(tf.train.Checkpoint(model=model).write("tf/ckpt"))


FORMATS: dict[str, Callable[[keras.Model], Any]] = {
    "model": lambda model: model,
    ".keras": saved("m.keras"),
    ".weights.h5": saved("m.weights.h5"),
    ".h5": legacy,
    ".npz": npz,
    ".safetensors": safetensors,
    "paths": own_paths,
    "tf": tensorflow,
}


WRITTEN = [
    pytest.param(name, marks=pytest.mark.backends("tensorflow")) if name == "tf" else name
    for name in FORMATS
]


def net(kind: str, inner: str, name: str = "net", head: str = "dense") -> Spec:
    backbone = (inner, "backbone", (("dense",),))
    return (kind, name, (backbone, (head,)))


NAMES = ["a", "b", "dense"]


def random_spec(rng: random.Random, depth: int, name: str | None = None) -> Spec:
    kind = rng.choice(
        ["sequential", "functional", "subclassed"] if depth == 2 else ["sequential", "functional"]
    )
    taken = rng.sample(NAMES, rng.randint(1, 3))
    parts = [
        random_spec(rng, depth - 1, part) if depth and rng.random() < 0.5 else (part,)
        for part in taken
    ]
    return (kind, name or rng.choice(["net", *NAMES]), tuple(parts))
