"""What the processes of `test_processes.py` do: they write a model that is sharded over them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import keras
import numpy as np

import keras_trainops as kt
from keras_trainops.errors import RestoreError
from tests.processes.member import Place

L = keras.layers
RULES: dict[str, Any] = {"rename": {r"(\w+)\.weight": r"\1/kernel", r"(\w+)\.bias": r"\1/bias"}}


def network() -> Any:
    inputs = keras.Input((8,))
    return keras.Model(inputs, L.Dense(4, name="b")(L.Dense(16, name="a")(inputs)), name="net")


def write(place: Place) -> dict[str, Any]:
    """Write a source, change the model, and write it back: merged, for PEFT, and in vain."""
    keras.utils.set_random_seed(1)  # as with Keras, all processes must start from the same weights
    distribute(place)
    model = network()
    rules = {**RULES, "adapt": kt.adapt.from_torch(model)}
    shapes = {v.path.replace("/kernel", ".weight").replace("/", "."): v for v in model.weights}
    template = {key: np.zeros(v.shape[::-1], "float32") for key, v in shapes.items()}
    source, out = place.directory / "source.safetensors", place.directory / "out.safetensors"
    assign(model.weights)
    base = kt.write_back(model, template, source, **rules)
    model.get_layer("a").enable_lora(2)
    assign(model.get_layer("a").trainable_weights[1:])
    merged = kt.write_back(model, source, out, verbose=1, **rules)
    report = kt.write_back(model, source, place.directory / "adapter", lora="peft", **rules)
    failure = ""
    try:
        kt.write_back(model, source, out, **rules)
    except RestoreError as error:
        failure = str(error)
    written = sorted(place.directory.rglob("*.safetensors"))
    return {
        "files": [f"{p.name} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in written],
        "reports": [json.dumps(each.to_dict()) for each in (base, merged, report)],
        "failure": failure,
        "module": module_of(model, rules),
    }


def distribute(place: Place) -> None:
    if place.count == 1:
        return
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((1, 2), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout["a/kernel"] = (None, "model")
    layout["b/kernel"] = ("model", None)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
    )


def assign(variables: Any) -> None:
    for i, variable in enumerate(variables):
        variable.assign(np.random.default_rng(i).integers(-4, 4, variable.shape) / 4)


def module_of(model: Any, rules: Any) -> np.ndarray:
    """Copy into a PyTorch module on every process, and return its parameters."""
    import torch

    module = torch.nn.Sequential()
    module.add_module("a", torch.nn.Linear(8, 16))
    module.add_module("b", torch.nn.Linear(16, 4))
    kt.to_torch(model, module, **rules)
    return np.concatenate([p.detach().numpy().reshape(-1) for p in module.parameters()])
