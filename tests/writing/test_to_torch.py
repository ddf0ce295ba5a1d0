"""Weights of Keras in modules of PyTorch, with equal outputs; all of them, or none."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import torch

import keras_trainops as kt
from tests.helpers import randomise, value
from tests.writing.helpers import network, rules

pytestmark = pytest.mark.once


class Module(torch.nn.Module):
    """The module of `network`, with a table that Keras lacks and a count of batches."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        names = ("query", "key", "value", "out")
        attention = torch.nn.ModuleDict({name: torch.nn.Linear(6, 6) for name in names})
        self.enc = torch.nn.ModuleDict({"attn": attention, "norm": torch.nn.LayerNorm(6, eps=1e-3)})
        self.head = torch.nn.Linear(6, 5)
        self.register_buffer("table", torch.ones(3))
        self.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attention = self.enc["attn"]
        q, k, v = (
            attention[name](x).unflatten(-1, (2, 3)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = attention["out"](mixed.transpose(1, 2).flatten(2))
        return self.head(self.enc["norm"](x))


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def test_outputs_are_equal() -> None:
    model, module = network(), Module()
    parameters = [*module.parameters()]
    report = kt.to_torch(model, module, **rules(model))
    x = np.random.default_rng(0).normal(size=(2, 4, 6)).astype("float32")
    ours = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(module(torch.tensor(x)).detach().numpy(), ours, atol=1e-5)
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    assert all(parameter.requires_grad for parameter in parameters)
    assert report.copied == ("table",)
    assert report.out == "module Module"


def test_there_and_back() -> None:
    model, module = network(), Module()
    before = state(module)
    restored = kt.restore(model, module.state_dict(), on_unexpected="ignore", **rules(model))
    kt.to_torch(model, module, report=restored)
    assert all(torch.equal(before[key], tensor) for key, tensor in module.state_dict().items())
    randomise(model, 4)
    kt.to_torch(model, module, report=restored)
    assert torch.equal(module.head.bias, torch.tensor(value(model.weights[-1])))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model, module = network(), Module(dtype)
    kt.to_torch(model, module, **rules(model))
    wanted = torch.tensor(value(model.weights[-1])).to(dtype)
    assert module.head.bias.dtype == dtype
    assert torch.equal(module.head.bias, wanted)


def unchanged(model: keras.Model, module: torch.nn.Module, match: str, **options: Any) -> None:
    before = state(module)
    with pytest.raises(ValueError, match=match):
        kt.to_torch(model, module, **{**rules(model), **options})
    assert all(torch.equal(before[key], tensor) for key, tensor in module.state_dict().items())


def test_all_or_nothing() -> None:
    model, module = network(), Module(torch.float16)
    model.get_layer("head").bias.assign(np.full(5, 1e6))  # the last
    unchanged(model, module, "outside the range of float16")
    unchanged(network(classes=3), Module(), r"head/kernel: \(6, 3\) in the model")
    unchanged(network(), Module(), "without a variable: table", on_unexpected="error")
    unchanged(
        network(), Module(), "missing: head", rename={"head.*": None, **rules(model)["rename"]}
    )
    with pytest.raises(ValueError, match=r"`module` must be a `torch\.nn\.Module`"):
        kt.to_torch(model, module.state_dict())


def test_one_parameter_gets_one_value() -> None:
    module = torch.nn.ModuleDict({"one": torch.nn.Linear(4, 3), "two": torch.nn.Linear(4, 3)})
    module["two"].weight = module["one"].weight
    inputs = keras.Input((4,))
    twins = [keras.layers.Dense(3, name=name)(inputs) for name in ("one", "two")]
    model = randomise(keras.Model(inputs, twins), 0)
    options = {
        "rename": {r"(one|two)\.(weight|bias)": r"\1/*"},
        "adapt": kt.adapt.from_torch(model),
    }
    unchanged(model, module, "one.weight and two.weight share memory", **options)
    model.get_layer("two").kernel.assign(model.get_layer("one").kernel)
    kt.to_torch(model, module, **options)
    assert torch.equal(module["two"].weight, torch.tensor(value(model.weights[0]).T))


def test_a_tied_parameter_is_said() -> None:
    module = torch.nn.ModuleDict({"one": torch.nn.Linear(4, 3), "two": torch.nn.Linear(4, 3)})
    module["two"].weight = module["one"].weight
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="one")])
    randomise(model, 0)
    report = kt.to_torch(
        model, module, rename={r"one\.(\w+)": "one/*"}, adapt=kt.adapt.from_torch(model)
    )
    assert torch.equal(module["two"].weight, torch.tensor(value(model.weights[0]).T))
    assert report.notes == (
        "two.weight equals one.weight in the source, so it gets the same values",
    )
