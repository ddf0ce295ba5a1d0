"""Layers that one side fuses: query, key and value, gate and up, experts, tables of positions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_trainops as kt
from tests.helpers import refused, value
from tests.restoring.guessing.layouts import Placed, linear, norm, parallel, tensors_of, torch_norm

Sizes = dict[str, tuple[int, ...]]


def saved(folder: Path, tensors: dict[str, Any], config: dict[str, Any] | None) -> Path:
    """Save tensors, and a configuration beside them."""
    save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder / "model.safetensors"


def restored(model: keras.Model, source: Any) -> dict[str, np.ndarray]:
    """Restore by the suggestion and return the values by path, without the model's name."""
    suggestion = kt.suggest_rename(model, source)
    kt.restore(model, source, rename=suggestion.rules, adapt=suggestion.adapt, on_missing="ignore")
    return {v.path.removeprefix("net/"): value(v) for v in model.weights}


def attention() -> keras.Model:
    x = inputs = keras.Input((5, 6))
    for i in range(2):
        layer = keras.layers.MultiHeadAttention(2, 3, use_bias=False, name=f"block{i}_attention")
        x = layer(x, x)
    return keras.Model(inputs, x, name="net")


def fused(name: str = "query_key_value") -> dict[str, Any]:
    sizes: Sizes = {f"h.{i}.attention.{name}.weight": (18, 6) for i in range(2)}
    return tensors_of(sizes | {f"h.{i}.attention.dense.weight": (6, 6) for i in range(2)})


def test_a_fused_tensor_of_unknown_order_is_a_question() -> None:
    suggestion = kt.suggest_rename(attention(), fused())
    assert list(suggestion.rules) == [r"h\.(\d+)\.attention\.dense\.weight"]
    (question,) = suggestion.questions
    for part in range(3):
        blocks = f"kt.adapt.Split({part}, 3), kt.adapt.Transpose(), kt.adapt.Reshape()"
        heads = f"kt.adapt.Reshape([-1, 2, 9]), kt.adapt.Split({part}, 3, axis=-1)"
        assert blocks in question
        assert heads in question
    assert f"# question: {question}" in str(suggestion)
    assert not suggestion.is_certain


def test_the_answer_to_a_question_restores() -> None:
    model, theirs = attention(), fused()
    suggestion = kt.suggest_rename(model, theirs)
    first = "`[kt.adapt.Split(0, 3), kt.adapt.Transpose(), kt.adapt.Reshape()]`"
    assert first in suggestion.questions[0]
    answer = eval(first.strip("`"), {"kt": kt})
    rename = {r"h\.(\d+)\.attention\.query_key_value\.weight": r"block\1_attention/query/kernel"}
    kt.restore(
        model,
        theirs,
        rename=rename | suggestion.rules,
        adapt={"query/kernel": answer} | suggestion.adapt,
    )
    query = value(model.get_layer("block1_attention").query_dense.kernel)
    expected = theirs["h.1.attention.query_key_value.weight"][:6].T.reshape(6, 2, 3)
    np.testing.assert_array_equal(query, expected)


@pytest.mark.parametrize(
    ("config", "per_head"), [({"model_type": "bloom"}, True), ({"model_type": "falcon"}, False)]
)
def test_a_configuration_beside_the_file_answers(
    tmp_path: Path, config: dict[str, Any], per_head: bool
) -> None:
    theirs = fused()
    file = saved(tmp_path, theirs, config)
    assert kt.suggest_rename(attention(), file).is_certain
    values = restored(attention(), file)
    tensor = theirs["h.1.attention.query_key_value.weight"]
    for part, name in enumerate(("query", "key", "value")):
        rows = tensor.reshape(2, 3, 3, 6)[:, part] if per_head else tensor.reshape(3, 2, 3, 6)[part]
        kernel = values[f"block1_attention/{name}/kernel"]
        np.testing.assert_array_equal(kernel, rows.transpose(2, 0, 1))


def test_names_tell_the_order_of_timm() -> None:
    theirs = fused("qkv")
    assert kt.suggest_rename(attention(), theirs).is_certain
    values = restored(attention(), theirs)
    expected = theirs["h.0.attention.qkv.weight"][6:12].T.reshape(6, 2, 3)
    np.testing.assert_array_equal(values["block0_attention/key/kernel"], expected)


def test_a_fused_tensor_leads_to_kernels_with_lora() -> None:
    model, theirs = attention(), fused("qkv")
    for i in range(2):
        layer = model.get_layer(f"block{i}_attention")
        layer.query_dense.enable_lora(1)
        layer.value_dense.enable_lora(1)
    suggestion = kt.suggest_rename(model, theirs)
    assert suggestion.rules == kt.suggest_rename(attention(), theirs).rules
    assert len(suggestion.missing) == 2 * 2 * 2  # two factors of two kernels in two blocks
    values = restored(model, theirs)
    expected = theirs["h.1.attention.qkv.weight"][:6].T.reshape(6, 2, 3)
    np.testing.assert_array_equal(values["block1_attention/query/kernel"], expected)


def test_gate_and_up_are_halves() -> None:
    layers: list[Placed] = []
    sizes: Sizes = {}
    for i in range(2):
        layers += [linear(f"block{i}_gate_dense", 6, 8)]
        layers += [linear(f"block{i}_intermediate_dense", 6, 8)]
        layers += [linear(f"block{i}_output_dense", 8, 6)]
        sizes |= {f"layers.{i}.mlp.gate_up_proj.weight": (16, 6)}
        sizes |= {f"layers.{i}.mlp.down_proj.weight": (6, 8)}
    theirs = tensors_of(sizes)
    model = parallel(layers)
    assert kt.suggest_rename(model, theirs).is_certain
    values = restored(model, theirs)
    tensor = theirs["layers.1.mlp.gate_up_proj.weight"]
    np.testing.assert_array_equal(values["block1_gate_dense/kernel"], tensor[:8].T)
    np.testing.assert_array_equal(values["block1_intermediate_dense/kernel"], tensor[8:].T)


class Experts(keras.layers.Layer):
    """The kernels of several experts in one variable."""

    def __init__(self, count: int, inputs: int, outputs: int, name: str) -> None:
        super().__init__(name=name)
        self.sizes = (count, inputs, outputs)

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(self.sizes, name="kernel")

    def call(self, inputs: Any) -> Any:
        return keras.ops.matmul(inputs, self.kernel[0])


def test_lists_of_experts_become_stacks() -> None:
    """The tenth expert comes after the ninth, in whatever order the file has them."""
    layers: list[Placed] = []
    sizes: Sizes = {}
    for i in range(2):
        for name, (inputs, outputs) in {"gate": (6, 8), "up": (6, 8), "down": (8, 6)}.items():
            layers += [(Experts(11, inputs, outputs, f"block{i}_experts_{name}_proj"), (inputs,))]
            for expert in range(11):
                key = f"layers.{i}.mlp.experts.{expert}.{name}_proj.weight"
                sizes[key] = (outputs, inputs)
    theirs = dict(sorted(tensors_of(sizes).items()))
    model = parallel(layers)
    assert kt.suggest_rename(model, theirs).is_certain
    values = restored(model, theirs)
    for name in ("gate", "up", "down"):
        stack = [theirs[f"layers.1.mlp.experts.{e}.{name}_proj.weight"].T for e in range(11)]
        found = values[f"block1_experts_{name}_proj/kernel"]
        np.testing.assert_array_equal(found, np.stack(stack))


class FusedAttention(keras.layers.Layer):
    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.qkv = keras.layers.Dense(18, name="qkv")
        self.proj = keras.layers.Dense(6, name="proj")

    def call(self, inputs: Any) -> Any:
        return self.proj(self.qkv(inputs)[..., :6])


def separate() -> dict[str, Any]:
    sizes: Sizes = {}
    for i in range(2):
        for name in "qkvo":
            sizes |= {f"layers.{i}.attention.{name}_proj.weight": (6, 6)}
            sizes |= {f"layers.{i}.attention.{name}_proj.bias": (6,)}
        sizes |= {f"layers.{i}.mlp.fc1.weight": (8, 6), f"layers.{i}.mlp.fc2.weight": (6, 8)}
        sizes |= torch_norm(f"layers.{i}.norm1", 6) | torch_norm(f"layers.{i}.norm2", 6)
    return tensors_of(sizes)


def feed_forward(i: int) -> list[Placed]:
    layers = [linear(f"blocks_{i}_mlp_fc1", 6, 8), linear(f"blocks_{i}_mlp_fc2", 8, 6)]
    return [*layers, norm(f"blocks_{i}_norm1", 6), norm(f"blocks_{i}_norm2", 6)]


def test_separate_projections_are_joined() -> None:
    layers: list[Placed] = []
    for i in range(2):
        layers += [(FusedAttention(f"blocks_{i}_attn"), (6,)), *feed_forward(i)]
    theirs, model = separate(), parallel(layers)
    assert kt.suggest_rename(model, theirs).is_certain
    values = restored(model, theirs)
    parts = [theirs[f"layers.1.attention.{name}_proj.weight"].T for name in "qkv"]
    np.testing.assert_array_equal(values["blocks_1_attn/qkv/kernel"], np.concatenate(parts, 1))
    biases = [theirs[f"layers.0.attention.{name}_proj.bias"] for name in "qkv"]
    np.testing.assert_array_equal(values["blocks_0_attn/qkv/bias"], np.concatenate(biases))


def test_a_fused_variable_of_unknown_order_is_a_question() -> None:
    layers: list[Placed] = []
    for i in range(2):
        layers += [linear(f"blocks_{i}_attn_qkv", 6, 18, bias=True)]
        layers += [linear(f"blocks_{i}_attn_proj", 6, 6, bias=True), *feed_forward(i)]
    suggestion = kt.suggest_rename(parallel(layers), separate())
    (question,) = suggestion.questions
    assert "'blocks_0_attn_qkv/kernel' holds a query, key and value" in question
    assert "`[kt.adapt.Concat(), kt.adapt.Transpose()]`" in question
    assert not any("qkv" in str(path) for path in suggestion.pairs.values())
    assert suggestion.pairs["layers.0.attention.o_proj.bias"] == "blocks_0_attn_proj/bias"


def embeddings() -> keras.Model:
    sizes = {"token": 12, "position": 5, "segment": 2}
    names = {
        name: keras.layers.Embedding(n, 4, name=f"{name}_embedding") for name, n in sizes.items()
    }
    return parallel([(layer, (3,)) for layer in names.values()])


EMBEDDINGS: Sizes = {
    "embeddings.word_embeddings.weight": (12, 4),
    "embeddings.position_embeddings.weight": (7, 4),
    "embeddings.token_type_embeddings.weight": (2, 4),
}


def test_a_longer_table_of_positions_is_a_question(tmp_path: Path) -> None:
    theirs = tensors_of(EMBEDDINGS)
    for config in (None, {"model_type": "bert", "pad_token_id": 1}):
        suggestion = kt.suggest_rename(embeddings(), saved(tmp_path, theirs, config))
        assert len(suggestion.pairs) == 2
        (question,) = suggestion.questions
        assert "kt.adapt.Split(1, [2, 5])" in question
        assert "kt.adapt.Crop()" in question
        with refused(embeddings(), "1 variables are ambiguous", kt.RestoreError):
            kt.restore(embeddings(), tmp_path / "model.safetensors", rename="auto")


def test_a_configuration_tells_the_first_position(tmp_path: Path) -> None:
    theirs = tensors_of(EMBEDDINGS)
    file = saved(tmp_path, theirs, {"model_type": "roberta", "pad_token_id": 1})
    assert kt.suggest_rename(embeddings(), file).is_certain
    values = restored(embeddings(), file)
    expected = theirs["embeddings.position_embeddings.weight"][2:]
    np.testing.assert_array_equal(values["position_embedding/embeddings"], expected)
    other = saved(tmp_path, theirs, {"model_type": "roberta", "pad_token_id": 4})
    assert kt.suggest_rename(embeddings(), other).questions  # five rows are not two
