"""Tensors that are wrong without other tensors beside them are refused alone."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.cli import main
from tests.helpers import assert_same, randomise, refused, two_layers, value, weights

pytestmark = pytest.mark.once


def net(seed: int = 0) -> keras.Model:
    inputs = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(5, 4, name="emb")(inputs)
    x = keras.layers.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d", name="ein")(x)
    return randomise(keras.Model(inputs, keras.layers.Dense(4, name="dense")(x), name="net"), seed)


def quantized(mode: str = "int8") -> keras.Model:
    model = net(1)
    for layer in model.layers[1:]:
        if mode != "float8" or not isinstance(layer, keras.layers.Embedding):
            layer.quantize(mode)
    return model


def with_lora(seed: int = 1) -> keras.Model:
    model = net(seed)
    for layer in model.layers[1:]:
        layer.enable_lora(2)
    return randomise(model, seed)


def converted(model: keras.Model, name: str = "q.safetensors") -> str:
    model.save("q.keras")
    if any("lora" in v.path for v in model.weights):  # Keras merges LoRA when it saves
        import safetensors.numpy

        arrays = {v.path: value(v) for v in model.weights}
        safetensors.numpy.save_file(arrays, name)
        return name
    assert main(["convert", "q.keras", name, "--model", "q.keras", "--force"]) == 0
    return name


REACTIONS = ["ignore", "warn", "error"]


@pytest.mark.parametrize("on_unexpected", REACTIONS)
@pytest.mark.parametrize("source", ["model", "q.safetensors", "q.npz"])
def test_quantised_kernels_are_not_assigned_to_floats(source: str, on_unexpected: Any) -> None:
    theirs = quantized() if source == "model" else converted(quantized(), source)
    lines = (
        "dense/kernel.*is quantised, and useless without.*dense/kernel_scale",
        "ein/kernel_scale",
        "emb/embeddings_scale",
    )
    for line in lines:
        with refused(net(), f"(?s){line}", kt.RestoreError):
            kt.restore(net(), theirs, on_unexpected=on_unexpected)
    problems = kt.plan_restore(net(), theirs, on_unexpected=on_unexpected).problems
    assert any("quantised" in line for line in problems)


@pytest.mark.parametrize("source", ["model", "q.safetensors"])
def test_packed_kernels_get_no_hint_about_shapes(source: str) -> None:
    theirs = quantized("int4") if source == "model" else converted(quantized("int4"), source)
    problems = "\n".join(kt.plan_restore(net(), theirs).problems)
    assert "! dense/kernel: (4, 4) in the model, (4, 2) under key" in problems
    line = next(line for line in problems.splitlines() if "is quantised, and useless" in line)
    assert "dense/kernel" in line
    assert "ein/kernel" in line
    assert "would fit" not in problems


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("name", ["q.keras", "q.weights.h5"])
def test_a_file_of_a_quantised_model_is_refused(mode: str, name: str) -> None:
    model = quantized(mode)
    model.save(name) if name.endswith(".keras") else model.save_weights(name)
    with refused(net(), "Cannot restore", kt.RestoreError):
        kt.restore(net(), name, on_missing="ignore", on_unexpected="ignore")


def test_other_variables_of_quantised_models_restore() -> None:
    report = kt.restore(net(), quantized(), include="bias")
    assert len(report.restored) == 2
    source, same = quantized(), net(2)
    for layer in same.layers[1:]:
        layer.quantize("int8")
    kt.restore(same, source)
    assert_same(weights(same), weights(source))


def test_an_adapter_may_dequantise() -> None:
    rules = {r".*_scale": None}
    model, source = net(), quantized()
    with refused(model, "integers of one byte are quantised weights", kt.RestoreError):
        kt.restore(model, source, rename=rules)
    scale = value(source.get_layer("dense").kernel_scale)
    kt.restore(
        model,
        source,
        rename=rules,
        include="dense",
        adapt={"dense/kernel": lambda kernel: kernel / scale},
    )
    np.testing.assert_allclose(
        value(model.get_layer("dense").kernel), value(net(1).get_layer("dense").kernel), atol=0.02
    )


def test_bare_int8_is_refused_only_from_files() -> None:
    arrays = {"trunk/kernel": np.ones((4, 3), "int8")}
    np.savez("b.npz", **arrays)
    model = two_layers()
    with refused(model, r"integers of one byte .* `adapt=`", kt.RestoreError):
        kt.restore(model, "b.npz", include="trunk/kernel")
    kt.restore(model, arrays)
    assert (value(model.get_layer("trunk").kernel) == 1).all()


@pytest.mark.parametrize("source", ["model", "lora.safetensors"])
def test_a_lora_delta_is_not_dropped(source: str) -> None:
    theirs = with_lora() if source == "model" else converted(with_lora(), source)
    with refused(net(), "(?s)has a LoRA delta beside it.*lora_kernel_a", kt.RestoreError):
        kt.restore(net(), theirs)
    report = kt.restore(net(), theirs, rename={r".*lora_.*": None})
    assert len(report.ignored) == 6


def test_the_advice_for_lora_gives_the_same_outputs() -> None:
    source, model = with_lora(), net()
    source.save_weights("merged.weights.h5")
    kt.restore(model, "merged.weights.h5")
    x = np.arange(4)[None] % 5
    np.testing.assert_allclose(model.predict(x, verbose=0), source.predict(x, verbose=0), rtol=1e-4)


def test_lora_goes_into_lora() -> None:
    source, model = with_lora(1), with_lora(2)
    kt.restore(model, source)
    assert_same(weights(model), weights(source))


@pytest.mark.parametrize("written", ["model", "base.weights.h5"])
def test_the_hint_excludes_only_missing_lora_variables(written: str) -> None:
    source, model = net(1), with_lora(2)
    source.save_weights("base.weights.h5")
    with pytest.raises(kt.RestoreError, match="missing") as raised:
        kt.restore(model, source if written == "model" else written)
    patterns = re.search(r"`exclude=(\[.*?\])`", str(raised.value))
    assert patterns is not None
    hint = [text.strip("' ") for text in patterns[1].strip("[]").split(",")]
    report = kt.restore(model, source if written == "model" else written, exclude=hint)
    assert sorted(report.restored) == sorted(v.path for v in source.weights)
    assert all("lora" in path for path in report.excluded)


def test_float8_keeps_its_kernel() -> None:
    source, model = quantized("float8"), net()
    kt.restore(model, source)
    np.testing.assert_array_equal(
        value(model.get_layer("dense").kernel), value(net(1).get_layer("dense").kernel)
    )


W, B = np.ones((4, 3)), np.ones(3)
FOREIGN: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "weight_norm": ({"fc.weight_v": W, "fc.weight_g": np.ones((4, 1))}, "fc.weight_v"),
    "spectral_norm": ({"fc.weight_orig": W, "fc.weight_u": np.ones(4)}, "fc.weight_orig"),
    "parametrized": (
        {f"fc.parametrizations.weight.original{i}": W for i in (0, 1)},
        "fc.parametrizations.weight.original1",
    ),
    "bitsandbytes": ({"fc.weight": W.astype("int8"), "fc.SCB": np.ones(4)}, "fc.weight"),
    "bitsandbytes 4": ({"fc.weight": W, "fc.weight.absmax": np.ones(4)}, "fc.weight"),
    "fp8": ({"fc.weight": W, "fc.weight_scale_inv": np.ones((1, 1))}, "fc.weight"),
    "gptq": ({"fc.qweight": W.astype("int32"), "fc.scales": np.ones(4)}, "fc.qweight"),
    "peft": ({"fc.base_layer.weight": W, "fc.lora_A.default.weight": W}, "fc.base_layer.weight"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_parts_of_foreign_weights_are_refused_alone(case: str) -> None:
    arrays, key = FOREIGN[case]
    np.savez("foreign.npz", **arrays)
    rules: dict[str, Any] = {re.escape(key): "trunk/kernel"}
    model = two_layers()
    siblings = [re.escape(other) for other in arrays if other != key]
    with refused(model, f"! trunk/kernel: the tensor .*{siblings[0][-3:]}", kt.RestoreError):
        kt.restore(model, "foreign.npz", rename=rules, include="trunk/kernel")
    rules |= dict.fromkeys(siblings)
    adapt = {"trunk/kernel": lambda kernel: kernel * 1.0}
    report = kt.restore(model, "foreign.npz", rename=rules, include="trunk/kernel", adapt=adapt)
    assert list(report.restored) == ["trunk/kernel"]


def test_similar_names_are_just_unexpected() -> None:
    more = {"logit_scale": np.ones(()), "trunk/scales": B, "trunk/scale": B, "head/other_g": B}
    np.savez("more.npz", **{"trunk/kernel": W, "trunk/bias": B}, **more)
    report = kt.restore(two_layers(), "more.npz", include="trunk")
    assert sorted(report.unexpected) == sorted(more)
