"""Whether layers fit, whatever a library leaves out of them, and how their tensors are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

import keras_trainops as kt
from tests.helpers import value
from tests.restoring.guessing.layouts import (
    batch_norm,
    conv,
    linear,
    parallel,
    tensors_of,
    torch_batch_norm,
)


def test_a_batch_norm_without_gamma_leaves_the_files_out() -> None:
    layers = [batch_norm("a_bn", 4, scale=False), conv("a_conv", 3, 4)]
    theirs = tensors_of(torch_batch_norm("a.bn", 4) | {"a.conv.weight": (4, 3, 3, 3)})
    model = parallel(layers)
    suggestion = kt.suggest_rename(model, theirs)
    assert suggestion.pairs["a.bn.bias"] == "a_bn/beta"
    assert suggestion.unmatched == ("a.bn.weight",)
    kt.restore(
        model,
        theirs,
        rename=suggestion.rules,
        adapt=suggestion.adapt,
        on_unexpected="ignore",
    )
    beta, mean, _ = (value(v) for v in model.get_layer("a_bn").weights)
    np.testing.assert_array_equal(beta, theirs["a.bn.bias"])
    np.testing.assert_array_equal(mean, theirs["a.bn.running_mean"])


def test_a_file_may_lack_the_scale_of_a_batch_norm_and_biases() -> None:
    layers = [batch_norm("a_bn", 4), conv("a_conv", 3, 4), linear("fc", 4, 5, bias=True)]
    sizes = torch_batch_norm("a.bn", 4) | {"a.conv.weight": (4, 3, 3, 3), "fc.weight": (5, 4)}
    del sizes["a.bn.weight"]
    suggestion = kt.suggest_rename(parallel(layers), tensors_of(sizes))
    assert set(suggestion.missing) == {"a_bn/gamma", "fc/bias"}
    assert len(suggestion.pairs) == 5
    assert suggestion.by_order == suggestion.ambiguous == ()


@pytest.mark.parametrize("missing", ["running_var", "bias"])
def test_other_parts_of_a_layer_must_not_be_missing(missing: str) -> None:
    """A kernel is no scale, and a layer with one statistic is no BatchNorm of the model."""
    sizes = torch_batch_norm("a.bn", 4)
    del sizes[f"a.bn.{missing}"]
    suggestion = kt.suggest_rename(parallel([batch_norm("a_bn", 4)]), tensors_of(sizes))
    assert bool(suggestion.pairs) == (missing == "bias")


def test_a_bias_that_the_model_does_not_have_is_not_dropped() -> None:
    """The layer would compute something else without it."""
    theirs = tensors_of({"a.fc.weight": (4, 3), "a.fc.bias": (4,)})
    suggestion = kt.suggest_rename(parallel([linear("a_fc", 3, 4)]), theirs)
    assert suggestion.pairs == {}
    assert suggestion.unmatched == ("a.fc.weight", "a.fc.bias")


def test_statistics_belong_to_a_batch_norm_alone() -> None:
    layers = [(keras.layers.LayerNormalization(name="norm"), (4,))]
    theirs = tensors_of(torch_batch_norm("norm", 4))
    assert kt.suggest_rename(parallel(layers), theirs).pairs == {}


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_recurrent_layers_of_pytorch(kind: str, gates: int) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    x = inputs = keras.Input((5, 3))
    x = getattr(keras.layers, kind)(4, name="rnn")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="fc")(x))
    module = torch.nn.ModuleDict(
        {"rnn": getattr(torch.nn, kind)(3, 4, batch_first=True), "fc": torch.nn.Linear(4, 2)}
    )
    theirs = module.state_dict()
    suggestion = kt.suggest_rename(model, theirs)
    assert suggestion.is_certain
    assert suggestion.unmatched == ()
    kt.restore(model, theirs, rename=suggestion.rules, adapt=suggestion.adapt)
    images = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    with torch.no_grad():
        expected = module["fc"](module["rnn"](torch.from_numpy(images))[0][:, -1]).numpy()
    found = keras.ops.convert_to_numpy(model(images))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def gpt_2() -> keras.Model:
    layers = []
    for i in range(2):
        layers += [linear(f"layer_{i}_feedforward_intermediate_dense", 6, 6, bias=True)]
        layers += [linear(f"layer_{i}_feedforward_output_dense", 6, 6, bias=True)]
    return parallel(layers)


@pytest.mark.parametrize(("model_type", "transposed"), [("gpt2", False), ("starcoder2", True)])
def test_the_configuration_tells_transposed_kernels(
    tmp_path: Path, model_type: str, transposed: bool
) -> None:
    """`Conv1D` of transformers stores (inputs, outputs); the shapes here do not show it."""
    sizes: dict[str, tuple[int, ...]] = {}
    for i in range(2):
        for name in ("c_fc", "c_proj"):
            sizes |= {f"h.{i}.mlp.{name}.weight": (6, 6), f"h.{i}.mlp.{name}.bias": (6,)}
    theirs: dict[str, Any] = tensors_of(sizes)
    assert kt.suggest_rename(gpt_2(), theirs).pairs == {}  # nothing tells it
    save_file(theirs, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), "utf-8")
    model = gpt_2()
    kt.restore(model, tmp_path / "model.safetensors", rename="auto")
    kernel = value(model.get_layer("layer_1_feedforward_intermediate_dense").kernel)
    expected = theirs["h.1.mlp.c_fc.weight"]
    np.testing.assert_array_equal(kernel, expected.T if transposed else expected)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": 3}'])
def test_a_damaged_configuration_says_nothing(tmp_path: Path, text: str) -> None:
    save_file(tensors_of({"fc.weight": (4, 3)}), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text, "utf-8")
    suggestion = kt.suggest_rename(parallel([linear("fc", 3, 4)]), tmp_path / "model.safetensors")
    assert dict(suggestion.pairs) == {"fc.weight": "fc/kernel"}


def test_names_tell_the_layout_of_square_kernels() -> None:
    """Shapes that fit PyTorch's layout alone decide for kernels that fit both."""
    layers = [linear("a", 4, 4), linear("b", 4, 5)]
    for key, adapter in (("{}.weight", "Transpose()"), ("{}/kernel", None)):
        sizes = {key.format("a"): (4, 4), key.format("b"): (5, 4) if adapter else (4, 5)}
        model = parallel([(type(layer).from_config(layer.get_config()), s) for layer, s in layers])
        report = kt.restore(model, tensors_of(sizes), rename="auto")
        assert report.adapted.get("a/kernel") == adapter


def test_features_of_a_convolution_are_reordered_after_a_flatten() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    x = inputs = keras.Input((5, 9, 2))
    x = keras.layers.Flatten()(keras.layers.Conv2D(3, (2, 4), name="conv")(x))
    model = keras.Model(inputs, keras.layers.Dense(7, name="head")(x))
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, (2, 4)), torch.nn.Flatten(), torch.nn.Linear(72, 7)
    )
    kt.restore(model, net.state_dict(), rename="auto")
    images = np.random.default_rng(0).normal(size=(2, 5, 9, 2)).astype("float32")
    with torch.no_grad():
        expected = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(images)), expected, atol=1e-5)
