"""What the names and rows of PyTorch's tensors tell counts; what they do not tell is refused."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers
from torch import nn

import keras_trainops as kt
from keras_trainops.adapt.torch_adapters import is_torch_key
from tests.helpers import numpy, refused, two_layers, value

PARTS = ("query", "key", "value")


def randomised(module: nn.Module) -> dict[str, np.ndarray]:
    """Gives all tensors of a module random values, and returns them."""
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(torch.tensor(rng.uniform(-0.5, 0.5, tensor.shape)))
    return {key: tensor.numpy() for key, tensor in module.eval().state_dict().items()}


def called(module: nn.Module, *arrays: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        result = module(*map(torch.tensor, arrays))
    return (result[0] if isinstance(result, tuple) else result).numpy()


def assert_close(model: keras.Model, inputs: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(numpy(model(inputs)), expected, rtol=1e-5, atol=1e-5)


def recurrent_model(layer: keras.layers.Layer, width: int = 4) -> keras.Model:
    inputs = keras.Input((5, width))
    return keras.Model(inputs, layer(inputs))


CELL = {
    "weight_ih": "layer/{}_cell/kernel",
    "weight_hh": "layer/{}_cell/recurrent_kernel",
    "bias_ih": "layer/{}_cell/bias",
    "bias_hh": "layer/{}_cell/bias",
}


@pytest.mark.parametrize("prefix", ["", "encoder.rnn.", "ih.hh."])
@pytest.mark.parametrize("order", list(itertools.permutations(CELL))[::5], ids=str)
def test_biases_of_a_gru_are_told_by_their_names_in_any_order_of_rules(
    order: tuple[str, ...], prefix: str
) -> None:
    module = nn.GRU(4, 3, batch_first=True)
    state = {f"{prefix}{key}": array for key, array in randomised(module).items()}
    model = recurrent_model(layers.GRU(3, return_sequences=True, name="layer"))
    rename = {re.escape(f"{prefix}{key}_l0"): CELL[key].format("gru") for key in order}
    report = kt.restore(model, state, rename=rename, adapt=kt.adapt.from_torch(model))
    x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype("f4")
    assert_close(model, x, called(module, x))
    bias = next(path for path in report.restored if path.endswith("/bias"))
    assert report.restored[bias] == f"{prefix}bias_ih_l0 + {prefix}bias_hh_l0"


def test_biases_that_one_rule_leads_there_in_the_order_of_a_sorted_file() -> None:
    module = nn.GRU(4, 3, batch_first=True, bidirectional=True)
    state = dict(sorted(randomised(module).items()))
    gru = layers.GRU(3, return_sequences=True, name="gru")
    model = recurrent_model(layers.Bidirectional(gru, name="layer"))
    leaves = {"weight_ih": "kernel", "weight_hh": "recurrent_kernel", "bias_[ih]h": "bias"}
    rename = {
        f"{key}_l0{suffix}": f"layer/{way}_gru/gru_cell/{leaf}"
        for key, leaf in leaves.items()
        for suffix, way in (("", "forward"), ("_reverse", "backward"))
    }
    kt.restore(model, state, rename=rename, adapt=kt.adapt.from_torch(model))
    x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype("f4")
    assert_close(model, x, called(module, x))


@pytest.mark.parametrize(
    ("keys", "kinds"),
    [
        (("bias_ih_l0", "bias_hh_l0_reverse"), ("gru", "lstm")),
        (("bias_ih_l0", "bias_ih_l1"), ("gru", "lstm")),
        (("a.bias_ih", "b.bias_hh"), ("gru", "lstm")),
        (("bias_ih_l0", "bias_hh_l0", "bias_ih_l1", "bias_hh_l1"), ("gru", "lstm")),
        (("bias_ih_l0", "other"), ("gru", "lstm")),
        (("b1", "b2"), ("gru",)),  # of an LSTM they are added, whichever is which
        (("b1", "b2", "b3"), ("lstm",)),
    ],
)
def test_biases_that_are_no_pair_are_refused(keys: tuple[str, ...], kinds: tuple[str]) -> None:
    for kind in kinds:
        layer = {"gru": layers.GRU, "lstm": layers.LSTM}[kind](3, name="layer")
        model = recurrent_model(layer)
        arrays = {key: np.ones(9 if kind == "gru" else 12) for key in keys}
        rename = dict.fromkeys(keys, f"layer/{kind}_cell/bias")
        with refused(model, "do not tell which is the bias of the input", kt.RestoreError):
            kt.restore(model, arrays, rename=rename, adapt=kt.adapt.from_torch(model))


def test_biases_of_an_lstm_may_have_any_names() -> None:
    model = recurrent_model(layers.LSTM(3, name="layer"))
    arrays = {"b1": np.arange(12.0), "b2": np.ones(12)}
    rename = dict.fromkeys(arrays, "layer/lstm_cell/bias")
    kt.restore(model, arrays, rename=rename, adapt=kt.adapt.from_torch(model))
    np.testing.assert_array_equal(value(model.layers[1].cell.bias), np.arange(12.0) + 1)


def attention_model(heads: int = 3, size: int = 2, width: int = 6) -> keras.Model:
    inputs = keras.Input((5, width))
    layer = layers.MultiHeadAttention(heads, size, name="attention")
    return keras.Model(inputs, layer(inputs, inputs))


class Separate(nn.Module):
    """Attention as BERT, ViT, Whisper and CLIP have it: a `Linear` for each part."""

    def __init__(self, heads: int, size: int, width: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        for part in PARTS:
            setattr(self, part, nn.Linear(width, heads * size))
        self.out = nn.Linear(heads * size, width)

    def parts(self, x: torch.Tensor) -> list[torch.Tensor]:
        shape = (*x.shape[:2], self.heads, self.size)
        return [getattr(self, part)(x).view(shape).transpose(1, 2) for part in PARTS]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attended = nn.functional.scaled_dot_product_attention(*self.parts(x))
        return self.out(attended.transpose(1, 2).flatten(2))


class FusedByHead(Separate):
    """Attention as BLOOM and GPT-NeoX have it: each head has its query, key and value."""

    def __init__(self, heads: int, size: int, width: int) -> None:
        super().__init__(heads, size, width)
        for part in PARTS:
            delattr(self, part)
        self.query_key_value = nn.Linear(width, 3 * heads * size)

    def parts(self, x: torch.Tensor) -> list[torch.Tensor]:
        fused = self.query_key_value(x).view(*x.shape[:2], self.heads, 3, self.size)
        return [fused[..., part, :].transpose(1, 2) for part in range(3)]


class FusedByPart(FusedByHead):
    """The same with all queries first, as timm's `qkv`."""

    def parts(self, x: torch.Tensor) -> list[torch.Tensor]:
        fused = self.query_key_value(x).view(*x.shape[:2], 3, self.heads, self.size)
        return [fused[:, :, part].transpose(1, 2) for part in range(3)]


def names(leaves: dict[str, str]) -> dict[str, str]:
    return {
        rf"{theirs}\.{leaf}": f"attention/{ours}/{name}"
        for theirs, ours in leaves.items()
        for leaf, name in (("weight", "kernel"), ("bias", "bias"))
    }


@pytest.mark.parametrize(("heads", "size", "width"), [(3, 2, 6), (2, 2, 6), (3, 4, 5), (1, 4, 4)])
def test_attention_with_a_linear_for_each_part(heads: int, size: int, width: int) -> None:
    module, model = Separate(heads, size, width), attention_model(heads, size, width)
    rename = names({**{part: part for part in PARTS}, "out": "attention_output"})
    state = randomised(module)
    report = kt.restore(model, state, rename=rename, adapt=kt.adapt.from_torch(model))
    assert len(report.restored) == 8
    x = np.random.default_rng(1).normal(size=(2, 5, width)).astype("f4")
    assert_close(model, x, called(module, x))


def test_the_hint_for_such_attention_is_right_when_it_is_followed() -> None:
    module, model = Separate(3, 2, 6), attention_model()
    rename = names({**{part: part for part in PARTS}, "out": "attention_output"})
    state = randomised(module)
    report = kt.plan_restore(model, state, rename=rename)
    assert {m.suggestion for m in report.mismatched} == {"adapt=kt.adapt.from_torch(model)"}
    assert "attention_output/kernel" in report.mismatched[-1].path
    kt.restore(model, state, rename=rename, adapt=kt.adapt.from_torch(model))
    x = np.random.default_rng(1).normal(size=(2, 5, 6)).astype("f4")
    assert_close(model, x, called(module, x))


def fused(key: str = "query_key_value") -> dict[str, Any]:
    return {
        rf"{key}\.weight": [f"attention/{part}/kernel" for part in PARTS],
        rf"{key}\.bias": [f"attention/{part}/bias" for part in PARTS],
        **names({"out": "attention_output"}),
    }


@pytest.mark.parametrize("key", ["query_key_value", "qkv", "c_attn", "Wqkv", "in_proj"])
def test_fused_attention_of_other_names_is_refused(key: str) -> None:
    model = attention_model()
    state = {
        name.replace("query_key_value", key): array
        for name, array in randomised(FusedByHead(3, 2, 6)).items()
    }
    with refused(model, f"'{key}.weight' has three times the 6 rows", kt.RestoreError):
        kt.restore(model, state, rename=fused(key), adapt=kt.adapt.from_torch(model))
    report = kt.plan_restore(model, state, rename=fused(key))
    assert {m.suggestion for m in report.mismatched} <= {"", "adapt=kt.adapt.from_torch(model)"}
    assert not any(m.suggestion for m in report.mismatched if m.key.startswith(key))


@pytest.mark.parametrize(("kind", "which"), [(FusedByPart, 0), (FusedByHead, 1)])
def test_what_the_refusal_says_is_right_when_it_is_followed(
    kind: Callable[[int, int, int], nn.Module], which: int
) -> None:
    module, model = kind(3, 2, 6), attention_model()
    state, layouts = randomised(module), kt.adapt.from_torch(model)
    problems = kt.plan_restore(model, state, rename=fused(), adapt=layouts).problems
    assert len(problems) == 6
    own = {}
    for problem in problems:
        path = re.match(r"! (\S+):", problem)
        advice = re.findall(r"`(\[.*?\])`", problem)
        assert path is not None
        assert len(advice) == 2
        own[path[1]] = eval(advice[which], {"kt": kt})
    kt.restore(model, state, rename=fused(), adapt={**layouts, **own})
    x = np.random.default_rng(1).normal(size=(2, 5, 6)).astype("f4")
    assert_close(model, x, called(module, x))


def test_tensors_in_another_order_of_axes_are_no_linear() -> None:
    """They have as many elements; to reshape them all the same would mix the axes."""
    model = attention_model(2, 6, 4)
    arrays = {"q.weight": np.ones((4, 12)), "out.weight": np.ones((12, 4))}
    rename = {r"q\.weight": "attention/query/kernel", r"out.*": "attention/attention_output/kernel"}
    with refused(model, r"first axes are \(4, 12\), not \(12, 4\)", kt.RestoreError):
        kt.restore(model, arrays, rename=rename, adapt=kt.adapt.from_torch(model))
    depth = keras.Sequential(
        [keras.Input((7, 9, 3)), layers.DepthwiseConv2D((2, 4), depth_multiplier=2, name="depth")]
    )
    arrays = {"depth/kernel": np.ones((2, 4, 3, 2))}
    with refused(depth, r"first axes are \(6, 1, 2, 4\), not", kt.RestoreError):
        kt.restore(depth, arrays, adapt=kt.adapt.from_torch(depth))
    inputs = keras.Input((6, 8, 2))
    x = layers.Flatten()(layers.Conv2D(3, (2, 4), name="conv")(inputs))
    flat = keras.Model(inputs, layers.Dense(5, name="head")(x))
    arrays = {"head/kernel": np.ones((75, 5))}  # not of PyTorch's
    with refused(flat, r"first axes are \(75,\), not \(5, 75\)", kt.RestoreError):
        kt.restore(flat, arrays, adapt=kt.adapt.from_torch(flat))


EQUATIONS = {
    "ab,bc->ac": (4, None),
    "abc,cd->abd": ((5, 4), None),
    "abc,dc->abd": ((5, 4), None),
    "abc,cde->abde": ((5, 2, 3), "de"),
    "abc,dce->abde": ((5, 2, 3), "de"),
    "abcd,cde->abe": ((5, 4), "e"),
    "abcd,dce->abe": ((5, 4), "e"),
    "abc,c...->ab...": None,
}


@pytest.mark.parametrize("equation", [e for e, what in EQUATIONS.items() if what])
def test_einsum_dense_is_a_linear(equation: str) -> None:
    shape, bias_axes = EQUATIONS[equation]
    given = equation.partition(",")[0]
    size = {"a": 2, "b": 4 if len(given) == 2 else 5, "c": 4, "d": 3}
    size["c"] = 4 if len(given) < 4 else 2
    x = np.random.default_rng(1).normal(size=[size[axis] for axis in given]).astype("f4")
    layer = layers.EinsumDense(equation, shape, bias_axes=bias_axes, name="layer")
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, layer(inputs))
    features = x.reshape(*x.shape[: len(given) - (2 if len(given) == 4 else 1)], -1)
    module = nn.Linear(features.shape[-1], int(np.prod(shape if len(given) == 2 else shape[1:])))
    state = randomised(module)
    if bias_axes is None:
        state["bias"][:] = 0
        del state["bias"]
    rename = {"weight": "layer/kernel", "bias": "layer/bias"}
    rename = {key: rename[key] for key in state}
    kt.restore(model, state, rename=rename, adapt=kt.adapt.from_torch(model))
    found = numpy(model(x))
    np.testing.assert_allclose(
        found, called(module, features).reshape(found.shape), rtol=1e-5, atol=1e-5
    )


def test_a_square_einsum_kernel_that_suggested_rules_find() -> None:
    inputs = keras.Input((5, 4))
    x = layers.EinsumDense("abc,cd->abd", (5, 4), bias_axes="d", name="proj")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    module = nn.Sequential()
    module.add_module("proj", nn.Linear(4, 4))
    module.add_module("head", nn.Linear(4, 2))
    state = randomised(module)
    suggestion = kt.suggest_rename(model, state)
    assert suggestion.from_torch
    kt.restore(model, state, rename=suggestion.rules, adapt=kt.adapt.from_torch(model))
    x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype("f4")
    assert_close(model, x, called(module, x))


class Own(layers.Layer):
    """A layer whose counterpart nobody knows."""

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.units = units

    def build(self, shape: tuple[int, ...]) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, self.kernel)


def test_a_square_kernel_of_an_unknown_layer_is_refused() -> None:
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Own(3, name="second")(Own(4, name="first")(inputs)))
    weights = {"first.weight": np.arange(16.0).reshape(4, 4), "second.weight": np.ones((4, 3))}
    suggestion = kt.suggest_rename(model, {"first.weight": weights["first.weight"]})
    rename = {r"(\w+)\.weight": r"\1/kernel"}
    assert suggestion.pairs == {"first.weight": "first/kernel"}
    layouts = kt.adapt.from_torch(model)
    match = r"does not know how PyTorch keeps what 'first' \(Own\) has"
    with refused(model, match, kt.RestoreError):
        kt.restore(model, weights, rename=rename, adapt=layouts)
    own = {"first/kernel": kt.adapt.Transpose()}
    kt.restore(model, weights, rename=rename, adapt={**layouts, **own})
    first, second = map(value, model.weights)
    np.testing.assert_array_equal(first, weights["first.weight"].T)
    np.testing.assert_array_equal(second, 1)


def test_square_kernels_of_gpt2_are_refused() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="c_proj")])
    arrays = {"h.0.attn.c_proj.weight": np.ones((4, 4))}
    rename = {".*": "c_proj/kernel"}
    with refused(model, r"may be of GPT-2's `Conv1D`", kt.RestoreError):
        kt.restore(model, arrays, rename=rename, adapt=kt.adapt.from_torch(model))
    arrays = {"h.0.attn.o_proj.weight": np.ones((4, 4))}
    assert kt.restore(model, arrays, rename=rename, adapt=kt.adapt.from_torch(model)).restored


def test_an_entry_of_from_torch_may_be_gone_on_with() -> None:
    model = two_layers()
    entry = kt.adapt.from_torch(model)["^head/kernel$"]
    weight = np.random.default_rng(0).normal(size=(5, 3))
    adapt = {"head/kernel": [entry, kt.adapt.Crop(axis=1)]}
    report = kt.restore(model, {"head/kernel": weight}, adapt=adapt)
    assert dict(report.adapted) == {"head/kernel": "Chain(Transpose(), Crop(axis=1))"}
    np.testing.assert_allclose(value(model.get_layer("head").kernel), weight.T[:, :2], rtol=1e-6)
    gru = recurrent_model(layers.GRU(3, name="layer"))
    entry = kt.adapt.from_torch(gru)["^layer/gru_cell/bias$"]
    arrays = {"bias_hh": np.zeros(9), "bias_ih": np.ones(9)}
    rename = dict.fromkeys(arrays, "layer/gru_cell/bias")
    kt.restore(gru, arrays, rename=rename, adapt={"bias": [entry, kt.adapt.Reshape()]})
    np.testing.assert_array_equal(value(gru.layers[1].cell.bias)[0], 1)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("fc.weight", True),
        ("model/fc.weight", True),
        ("in_proj_weight", True),
        ("rnn.weight_ih_l0_reverse", True),
        ("weight", False),
        ("fc/weight", False),
        ("fc/kernel", False),
        ("fc.weights", False),
        ("fc.bias", False),
    ],
)
def test_what_is_called_as_pytorch_does(key: str, expected: bool) -> None:
    assert is_torch_key(key) == expected
