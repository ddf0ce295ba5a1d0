"""Adapters of `from_torch` whose choice depends on the names and rows of tensors."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from torch import nn

import keras_trainops as kt
from keras_trainops.layouts.torch_adapters import is_torch_key
from tests.helpers import refused, two_layers, value
from tests.layouts.torch_models import (
    CELL,
    FusedByHead,
    FusedByPart,
    assert_close,
    attention_model,
    fused_rules,
    outputs,
    random_state,
    randomised,
    recurrent_model,
    recurrent_rules,
    state_of,
)


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
def test_recognises_key_names_of_pytorch(key: str, expected: bool) -> None:
    assert is_torch_key(key) == expected


@pytest.mark.parametrize("prefix", ["", "encoder.rnn.", "ih.hh."])
@pytest.mark.parametrize("order", list(itertools.permutations(CELL))[::5], ids=str)
def test_gru_biases_are_identified_by_name(order: tuple[str, ...], prefix: str) -> None:
    module = nn.GRU(4, 3, batch_first=True)
    state = {f"{prefix}{key}": array for key, array in random_state(module).items()}
    model = recurrent_model(layers.GRU(3, return_sequences=True, name="layer"))
    rename = {re.escape(f"{prefix}{key}_l0"): "layer/" + CELL[key].format("gru") for key in order}
    report = kt.restore(model, state, rename=rename, adapt=kt.adapt.from_torch(model))
    x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype("f4")
    assert_close(model, x, outputs(module, x))
    bias = next(path for path in report.restored if path.endswith("/bias"))
    assert report.restored[bias] == f"{prefix}bias_ih_l0 + {prefix}bias_hh_l0"


def test_one_rule_may_lead_to_both_biases() -> None:
    module = nn.GRU(4, 3, batch_first=True, bidirectional=True)
    state = dict(sorted(random_state(module).items()))
    gru = layers.GRU(3, return_sequences=True, name="gru")
    model = recurrent_model(layers.Bidirectional(gru, name="layer"))
    leaves = {"weight_ih": "kernel", "weight_hh": "recurrent_kernel", "bias_[ih]h": "bias"}
    rename = {}
    for key, leaf in leaves.items():
        rename[f"{key}_l0"] = f"layer/forward_gru/gru_cell/{leaf}"
        rename[f"{key}_l0_reverse"] = f"layer/backward_gru/gru_cell/{leaf}"
    kt.restore(model, state, rename=rename, adapt=kt.adapt.from_torch(model))
    x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype("f4")
    assert_close(model, x, outputs(module, x))


@pytest.mark.parametrize(
    ("keys", "kinds"),
    [
        (("bias_ih_l0", "bias_hh_l0_reverse"), ("gru", "lstm")),
        (("bias_ih_l0", "bias_ih_l1"), ("gru", "lstm")),
        (("a.bias_ih", "b.bias_hh"), ("gru", "lstm")),
        (("bias_ih_l0", "bias_hh_l0", "bias_ih_l1", "bias_hh_l1"), ("gru", "lstm")),
        (("bias_ih_l0", "other"), ("gru", "lstm")),
        (("b1", "b2"), ("gru",)),  # an LSTM adds them, in either order
        (("b1", "b2", "b3"), ("lstm",)),
    ],
)
def test_rejects_biases_that_are_not_a_pair(keys: tuple[str, ...], kinds: tuple[str]) -> None:
    for kind in kinds:
        layer = {"gru": layers.GRU, "lstm": layers.LSTM}[kind](3, name="layer")
        model = recurrent_model(layer)
        arrays = {key: np.ones(9 if kind == "gru" else 12) for key in keys}
        rename = dict.fromkeys(keys, f"layer/{kind}_cell/bias")
        with refused(model, "do not identify the input bias and the state bias", kt.RestoreError):
            kt.restore(model, arrays, rename=rename, adapt=kt.adapt.from_torch(model))


def test_lstm_biases_may_have_any_names() -> None:
    model = recurrent_model(layers.LSTM(3, name="layer"))
    arrays = {"b1": np.arange(12.0), "b2": np.ones(12)}
    rename = dict.fromkeys(arrays, "layer/lstm_cell/bias")
    kt.restore(model, arrays, rename=rename, adapt=kt.adapt.from_torch(model))
    np.testing.assert_array_equal(value(model.layers[1].cell.bias), np.arange(12.0) + 1)


def test_rejects_one_of_two_biases() -> None:
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, layers.LSTM(3, name="layer")(inputs))
    state = state_of(randomised(nn.LSTM(4, 3)))
    rename = {**recurrent_rules("lstm"), "bias_hh_l0": None}
    with refused(model, r"\(12,\) under key 'bias_ih_l0'; Sum\(\): it combines several tensors"):
        kt.restore(model, state, rename=rename, adapt=kt.adapt.from_torch(model))


@pytest.mark.parametrize("key", ["query_key_value", "c_attn", "in_proj", "stages.0.attn.qkv"])
def test_rejects_fused_attention_with_ambiguous_names(key: str) -> None:
    model = attention_model()
    state = {
        name.replace("query_key_value", key): array
        for name, array in random_state(FusedByHead(3, 2, 6)).items()
    }
    rename, adapt = fused_rules(re.escape(key)), kt.adapt.from_torch(model)
    with refused(model, f"'{key}.weight' is a fused tensor, but its name", kt.RestoreError):
        kt.restore(model, state, rename=rename, adapt=adapt)
    report = kt.plan_restore(model, state, rename=rename)
    assert {m.suggestion for m in report.mismatched} <= {"", "adapt=kt.adapt.from_torch(model)"}
    assert not any(m.suggestion for m in report.mismatched if m.key == f"{key}.weight")


@pytest.mark.parametrize("key", ["blocks.0.attn.qkv", "Wqkv", "self_attn.qkv_proj"])
def test_splits_fused_attention_with_known_names(key: str) -> None:
    module, model = FusedByPart(3, 2, 6), attention_model()
    state = {
        name.replace("query_key_value", key): array for name, array in random_state(module).items()
    }
    rename, adapt = fused_rules(re.escape(key)), kt.adapt.from_torch(model)
    kt.restore(model, state, rename=rename, adapt=adapt)
    x = np.random.default_rng(1).normal(size=(2, 5, 6)).astype("f4")
    assert_close(model, x, outputs(module, x))


@pytest.mark.parametrize(("kind", "which"), [(FusedByPart, 0), (FusedByHead, 1)])
def test_advice_for_fused_attention_is_right(
    kind: Callable[[int, int, int], nn.Module], which: int
) -> None:
    module, model = kind(3, 2, 6), attention_model()
    state, layouts = random_state(module), kt.adapt.from_torch(model)
    problems = kt.plan_restore(model, state, rename=fused_rules(), adapt=layouts).problems
    assert len(problems) == 6
    own = {}
    for problem in problems:
        path = re.match(r"! (\S+):", problem)
        advice = re.findall(r"`(\[.*?\])`", problem)
        assert path is not None
        assert len(advice) == 2
        own[path[1]] = eval(advice[which], {"kt": kt})
    kt.restore(model, state, rename=fused_rules(), adapt={**layouts, **own})
    x = np.random.default_rng(1).normal(size=(2, 5, 6)).astype("f4")
    assert_close(model, x, outputs(module, x))


def test_rejects_square_kernels_of_gpt2() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="c_proj")])
    arrays = {"h.0.attn.c_proj.weight": np.ones((4, 4))}
    rename = {".*": "c_proj/kernel"}
    with refused(model, r"may belong to GPT-2's `Conv1D`", kt.RestoreError):
        kt.restore(model, arrays, rename=rename, adapt=kt.adapt.from_torch(model))
    arrays = {"h.0.attn.o_proj.weight": np.ones((4, 4))}
    assert kt.restore(model, arrays, rename=rename, adapt=kt.adapt.from_torch(model)).restored


class Own(layers.Layer):
    """A layer without a known counterpart in PyTorch."""

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.units = units

    def build(self, shape: tuple[int, ...]) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, self.kernel)


def test_rejects_a_square_kernel_of_an_unknown_layer() -> None:
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Own(3, name="second")(Own(4, name="first")(inputs)))
    weights = {"first.weight": np.arange(16.0).reshape(4, 4), "second.weight": np.ones((4, 3))}
    suggestion = kt.suggest_rename(model, {"first.weight": weights["first.weight"]})
    rename = {r"(\w+)\.weight": r"\1/kernel"}
    assert suggestion.pairs == {"first.weight": "first/kernel"}
    layouts = kt.adapt.from_torch(model)
    match = r"does not know how PyTorch stores the weights of 'first' \(Own\)"
    with refused(model, match, kt.RestoreError):
        kt.restore(model, weights, rename=rename, adapt=layouts)
    own = {"first/kernel": kt.adapt.Transpose()}
    kt.restore(model, weights, rename=rename, adapt={**layouts, **own})
    first, second = map(value, model.weights)
    np.testing.assert_array_equal(first, weights["first.weight"].T)
    np.testing.assert_array_equal(second, 1)


def test_a_chain_may_extend_an_entry() -> None:
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
