"""Low-rank updates, merged into the weights or as an adapter of PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import safetensors.numpy

import keras_trainops as kt
from tests.helpers import randomise, value
from tests.writing.helpers import arrays_in, assert_equal_files, network, rules, saved

pytestmark = pytest.mark.once


def with_updates(model: keras.Model, *names: str, rank: int = 2) -> None:
    """Enable LoRA, with updates that are not zero."""
    rng = np.random.default_rng(5)
    for name in names:
        layer = model.get_layer(name) if isinstance(name, str) else name
        layer.enable_lora(rank, lora_alpha=3)
        for matrix in (layer.lora_kernel_a, layer.lora_kernel_b):
            matrix.assign(rng.normal(size=matrix.shape))


def test_updates_are_merged() -> None:
    theirs, model = saved("theirs.npz"), network()
    kt.restore(model, theirs, **rules(model))
    options = rules(model)
    x = np.random.default_rng(1).normal(size=(3, 4, 6)).astype("float32")
    with_updates(model, "head")
    report = kt.write_back(model, theirs, "ours.npz", **options)
    assert report.missing == ()
    found, before = arrays_in("ours.npz"), arrays_in(theirs)
    assert {key for key in found if (found[key] != before[key]).any()} == {"head.weight"}
    head = model.get_layer("head")
    update = value(head.lora_kernel_a) @ value(head.lora_kernel_b) * 3 / 2
    np.testing.assert_allclose(found["head.weight"].T, before["head.weight"].T + update, atol=1e-5)
    plain = network(seed=7)
    kt.restore(plain, "ours.npz", **rules(plain))
    np.testing.assert_allclose(plain.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)


def test_updates_of_heads_are_merged() -> None:
    theirs, model = saved("theirs.npz"), network()
    kt.restore(model, theirs, **rules(model))
    options = rules(model)
    attention = model.get_layer("attention")
    for dense in (attention.query_dense, attention.value_dense, attention.output_dense):
        with_updates(model, dense)
    kt.write_back(model, theirs, "ours.npz", **options)
    plain, x = network(seed=7), np.ones((1, 4, 6), "float32")
    kt.restore(plain, "ours.npz", **rules(plain))
    np.testing.assert_allclose(plain.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-4)


def test_updates_of_embeddings_and_convolutions_are_merged() -> None:
    words = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(7, 4, name="words")(words)
    model = randomise(keras.Model(words, keras.layers.Conv1D(3, 2, name="conv")(x)), 0)
    model.save_weights("theirs.weights.h5")
    kt.restore(model, "theirs.weights.h5")
    np.savez("theirs.npz", **{v.path: value(v) for v in model.weights})
    model.get_layer("words").enable_lora(2)
    model.get_layer("words").lora_embeddings_b.assign(np.ones((2, 4)))
    with_updates(model, "conv")
    kt.write_back(model, "theirs.npz", "ours.npz")
    x = np.arange(5)[None]
    before = model.predict(x, verbose=0)
    plain = keras.Model(
        words,
        keras.layers.Conv1D(3, 2, name="conv")(keras.layers.Embedding(7, 4, name="words")(words)),
    )
    kt.restore(plain, "ours.npz")
    np.testing.assert_allclose(plain.predict(x, verbose=0), before, atol=1e-5)


def test_a_source_with_updates_gets_them_apart() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
    randomise(model, 0)
    with_updates(model, "head")
    np.savez("theirs.npz", **{v.path: np.zeros(v.shape, "float32") for v in model.weights})
    kt.write_back(model, "theirs.npz", "ours.npz")
    for variable in model.weights:
        np.testing.assert_array_equal(arrays_in("ours.npz")[variable.path], value(variable))


def test_an_adapter_of_peft_has_the_two_matrices() -> None:
    theirs, model = saved("theirs.safetensors"), network()
    kt.restore(model, theirs, **rules(model))
    options = rules(model)
    with_updates(model, "head")
    attention = model.get_layer("attention")
    with_updates(model, attention.output_dense, rank=3)
    report = kt.write_back(model, theirs, "adapter", lora="peft", **options)
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["enc.attn.out", "head"]
    assert (config["peft_type"], config["modules_to_save"]) == ("LORA", None)
    ranks = {"head": config["r"], "enc.attn.out": config["r"], **config["rank_pattern"]}
    assert ranks == {"head": 2, "enc.attn.out": 3}
    found = safetensors.numpy.load_file("adapter/adapter_model.safetensors")
    kt.write_back(model, theirs, "merged.safetensors", **options)
    merged, base = arrays_in("merged.safetensors"), arrays_in(theirs)
    for module, rank in ranks.items():
        a = found[f"base_model.model.{module}.lora_A.weight"]
        b = found[f"base_model.model.{module}.lora_B.weight"]
        key = f"{module}.weight"
        np.testing.assert_allclose(merged[key], base[key] + b @ a * 3 / rank, atol=1e-5)
    assert len(found) == 4
    assert report.out == "adapter"
    assert sorted(report.written) == sorted(found)
    assert report.bytes == sum(array.nbytes for array in found.values())


def test_other_modules_that_have_changed_are_saved_whole() -> None:
    theirs, model = saved("theirs.safetensors"), network()
    kt.restore(model, theirs, **rules(model))
    options = rules(model)
    with_updates(model, "head")
    model.get_layer("norm").beta.assign(np.ones(6))
    report = kt.write_back(model, theirs, "adapter", lora="peft", **options)
    assert "modules_to_save: enc.norm" in report.notes
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert config["modules_to_save"] == ["enc.norm"]
    found = safetensors.numpy.load_file("adapter/adapter_model.safetensors")
    np.testing.assert_array_equal(found["base_model.model.enc.norm.bias"], np.ones(6))
    assert "base_model.model.enc.norm.weight" in found
    model.get_layer("head").bias.assign(np.ones(5))
    with pytest.raises(kt.RestoreError, match=r"'head\.bias' has changed.*lora=\"merge\""):
        kt.write_back(model, theirs, "other", lora="peft", **options)
    assert not Path("other").exists()


def test_what_peft_cannot_represent() -> None:
    theirs, model = saved("theirs.safetensors"), network()

    def refused(message: str, **options: Any) -> None:
        with pytest.raises((kt.RestoreError, ValueError), match=message):
            kt.write_back(model, theirs, "adapter", lora="peft", **{**rules(model), **options})
        assert not Path("adapter").exists()

    refused("has no low-rank updates: no layer called `enable_lora`")
    kt.restore(model, theirs, **rules(model)).save("plan.json")
    with_updates(model, model.get_layer("attention").query_dense)
    refused("query: the update of several heads is no product of two matrices")
    with pytest.raises(ValueError, match="needs the original file as `like`"):
        kt.write_back(model, "plan.json", "adapter", lora="peft", on_unexpected="ignore")


def test_modules_whose_names_end_alike() -> None:
    """PEFT finds modules by the end of their names."""
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, name="inner")(inputs)
    model = randomise(keras.Model(inputs, keras.layers.Dense(4, name="outer")(x)), 0)
    rng = np.random.default_rng(0)
    arrays = {
        f"{name}.{leaf}": rng.normal(size=shape).astype("float32")
        for name in ("fc", "encoder.fc")
        for leaf, shape in (("weight", (4, 4)), ("bias", 4))
    }
    theirs = saved("theirs.safetensors", arrays)
    options: dict[str, Any] = {
        "rename": {r"fc\.(\w+)": "outer/*", r"encoder\.fc\.(\w+)": "inner/*"},
        "adapt": kt.adapt.from_torch(model),
    }
    kt.restore(model, theirs, **options)
    with_updates(model, "outer")
    kt.write_back(model, theirs, "adapter", lora="peft", **options)
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert config["target_modules"] == "(?:fc)"  # a text is matched as a whole
    with_updates(model, "inner", rank=3)
    kt.write_back(model, theirs, "both", lora="peft", **options)
    config = json.loads(Path("both/adapter_config.json").read_text())
    assert {**config["rank_pattern"]} in ({r"^encoder\.fc": 3}, {"^fc": 2})


def test_a_module_that_peft_would_confuse_is_refused() -> None:
    theirs, model = saved("theirs.safetensors"), network()
    kt.restore(model, theirs, **rules(model))
    options = rules(model)
    with_updates(model, "head")
    arrays = {**arrays_in(theirs), "other.enc.norm.weight": np.ones(6, "float32")}
    saved("more.safetensors", arrays)
    model.get_layer("norm").beta.assign(np.ones(6))
    with pytest.raises(kt.RestoreError, match=r"cannot store it without 'other\.enc\.norm'"):
        kt.write_back(model, "more.safetensors", "adapter", lora="peft", **options)


def test_a_kernel_that_has_changed_itself() -> None:
    theirs, model = saved("theirs.safetensors"), network()
    kt.restore(model, theirs, **rules(model))
    options = rules(model)
    with_updates(model, "head")
    kernel = next(v for v in model.get_layer("head").weights if v.name == "kernel")
    kernel.assign(value(kernel) + 1)
    with pytest.raises(kt.RestoreError, match="head: its kernel has changed beside the update"):
        kt.write_back(model, theirs, "adapter", lora="peft", **options)


def test_merging_zero_updates_changes_no_byte() -> None:
    theirs, model = saved("theirs.npz"), network()
    kt.restore(model, theirs, **rules(model))
    options = rules(model)
    model.get_layer("head").enable_lora(2)  # the second matrix is zero
    kt.write_back(model, theirs, "ours.npz", **options)
    assert_equal_files("ours.npz", theirs, without=("global_step",))
