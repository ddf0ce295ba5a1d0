"""Adapters that lose something, and tensors that get the shape of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import randomise, value
from tests.writing.helpers import (
    CLASSES,
    arrays_in,
    assert_equal_files,
    hugging_face,
    network,
    rules,
    saved,
    tensors,
)

pytestmark = pytest.mark.once


def with_head(model: keras.Model, *adapters: Any) -> dict[str, Any]:
    """The rules, with other adapters for the head; a bias has no axis to transpose."""
    options = rules(model)
    options["adapt"] = {
        "head/kernel": [kt.adapt.Transpose(), *adapters],
        "head/bias": list(adapters),
        **options["adapt"],
    }
    return options


def head(path: str) -> np.ndarray:
    return arrays_in(path)["head.weight"]


def test_cropped_slices_go_back_among_the_others() -> None:
    theirs, model = saved("theirs.npz"), network(classes=2)
    options = with_head(model, kt.adapt.Crop(axis=-1, indices=[4, 1]))
    kt.restore(model, theirs, **options)
    kt.write_back(model, theirs, "same.npz", **options)
    assert_equal_files("same.npz", theirs, without=("global_step",))
    randomise(model, 3)
    kt.write_back(model, theirs, "ours.npz", **options)
    kernel = value(model.get_layer("head").kernel)
    np.testing.assert_array_equal(head("ours.npz")[[4, 1]], kernel.T)
    np.testing.assert_array_equal(head("ours.npz")[[0, 2, 3]], head(theirs)[[0, 2, 3]])
    kt.restore(model, theirs, **options).save("plan.json")
    with pytest.raises(kt.RestoreError, match="has only a part of it, and the rest is not in the"):
        kt.write_back(model, "plan.json", "x.npz", on_unexpected="ignore")


def test_rows_of_other_words_stay() -> None:
    old, new = ["a", "b", "c", "d"], ["d", "b"]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Embedding(2, 4, name="words")])
    theirs = saved("theirs.npz", {"w": np.arange(16, dtype="float32").reshape(4, 4)})
    options: dict[str, Any] = {
        "rename": {"w": "words/embeddings"},
        "adapt": {"words": kt.adapt.Rows(old, new)},
    }
    kt.restore(model, theirs, **options)
    kt.write_back(model, theirs, "same.npz", **options)
    assert_equal_files("same.npz", theirs)
    model.weights[0].assign(np.full((2, 4), -1.0))
    kt.write_back(model, theirs, "ours.npz", **options)
    found = arrays_in("ours.npz")["w"]
    assert found[:, 0].tolist() == [0.0, -1.0, 8.0, -1.0]


def test_new_classes_have_no_place() -> None:
    theirs, model = saved("theirs.npz"), network(classes=CLASSES + 2)
    options = with_head(model, kt.adapt.Pad(axis=-1))
    kt.restore(model, theirs, **options)
    with pytest.raises(kt.RestoreError, match=r'no room for 2 slices.*`exclude=`.*shape="model"'):
        kt.write_back(model, theirs, "ours.npz", **options)
    assert not Path("ours.npz").exists()
    report = kt.write_back(model, theirs, "ours.npz", shape="model", **options)
    assert report.reshaped == {"head.weight": (CLASSES + 2, 6), "head.bias": (CLASSES + 2,)}
    np.testing.assert_array_equal(head("ours.npz"), value(model.get_layer("head").kernel).T)
    kt.write_back(model, theirs, "copied.npz", exclude="head", **options)
    np.testing.assert_array_equal(head("copied.npz"), head(theirs))


def test_a_new_head_in_the_shape_of_the_model() -> None:
    """The usual case: the head was left out of the restore."""
    theirs, model = saved("theirs.npz"), network(classes=3)
    kt.restore(model, theirs, exclude="head", **rules(model))
    with pytest.raises(kt.RestoreError, match=r'(?s)head/kernel: .*shape="model"'):
        kt.write_back(model, theirs, "ours.npz", **rules(model))
    report = kt.write_back(model, theirs, "ours.npz", shape="model", **rules(model))
    assert report.reshaped == {"head.weight": (3, 6), "head.bias": (3,)}
    assert report.notes == ()
    again = network(classes=3, seed=9)
    kt.restore(again, "ours.npz", **rules(again))
    np.testing.assert_array_equal(value(again.weights[-1]), value(model.weights[-1]))
    before = arrays_in(theirs)
    for key, array in arrays_in("ours.npz").items():
        assert key.startswith("head") or array.tobytes() == before[key].tobytes()


def test_the_configuration_that_disagrees_is_named() -> None:
    directory = hugging_face("bert", num_labels=CLASSES, vocab_size=30522, id2label={"0": "x"})
    model = network(classes=3)
    out = kt.write_back(
        model, f"{directory}/model.safetensors", "ours.safetensors", shape="model", **rules(model)
    )
    assert out.notes == (
        "config.json: `num_labels` is 5, but not any more: head.weight (3, 6), head.bias (3,)",
    ) or out.notes == (
        "config.json: `num_labels` is 5, but not any more: head.bias (3,), head.weight (3, 6)",
    )
    config = {"model_type": "bert", "id2label": {str(i): "x" for i in range(CLASSES)}}
    Path(directory, "config.json").write_text(json.dumps(config))
    out = kt.write_back(
        model, f"{directory}/model.safetensors", "more.safetensors", shape="model", **rules(model)
    )
    assert any("`id2label` has 5 entries, but not any more: head" in line for line in out.notes)
    Path(directory, "config.json").write_text("{}")
    out = kt.write_back(
        model, f"{directory}/model.safetensors", "last.safetensors", shape="model", **rules(model)
    )
    assert any("no entry has the old length of head" in line for line in out.notes)


def positions(length: int) -> tuple[keras.Model, dict[str, Any]]:
    class Positions(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.table = self.add_weight(shape=(length, 4), name="table")

        def call(self, x: Any) -> Any:
            return x + self.table

    model = keras.Sequential([keras.Input((length, 4)), Positions(name="positions")])
    adapters = [kt.adapt.Reshape([6, 4]), kt.adapt.ResizePositions(new_grid=length)]
    return model, {"rename": {"p": "positions/table"}, "adapt": {"positions": adapters}}


def test_interpolated_positions() -> None:
    theirs = saved("theirs.npz", {"p": np.random.default_rng(0).normal(size=(1, 6, 4))})
    model, options = positions(9)
    kt.restore(model, theirs, **options)
    kt.write_back(model, theirs, "same.npz", **options)  # not trained
    assert_equal_files("same.npz", theirs)
    randomise(model, 1)
    with pytest.raises(kt.RestoreError, match=r'do not determine the original.*shape="model"'):
        kt.write_back(model, theirs, "ours.npz", **options)
    report = kt.write_back(model, theirs, "ours.npz", shape="model", **options)
    assert report.reshaped == {"p": (1, 9, 4)}
    np.testing.assert_array_equal(arrays_in("ours.npz")["p"][0], value(model.weights[0]))


def test_summed_channels() -> None:
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="stem", use_bias=False)(inputs))
    theirs = saved(
        "theirs.npz", {"w": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype("float32")}
    )
    options: dict[str, Any] = {
        "rename": {"w": "stem/kernel"},
        "adapt": {"stem": [kt.adapt.Transpose([2, 3, 1, 0]), kt.adapt.InputChannels()]},
    }
    kt.restore(model, theirs, **options)
    kt.write_back(model, theirs, "same.npz", **options)
    assert_equal_files("same.npz", theirs)
    randomise(model, 1)
    with pytest.raises(kt.RestoreError, match="sums of channels do not determine the channels"):
        kt.write_back(model, theirs, "ours.npz", **options)
    report = kt.write_back(model, theirs, "ours.npz", shape="model", **options)
    assert report.reshaped == {"w": (4, 1, 3, 3)}


def test_a_shape_that_the_file_cannot_have() -> None:
    """Part of a fused tensor, which has the lengths of all parts."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
    theirs = saved("theirs.npz", {"fused": np.ones((4, 10), "float32")})
    options: dict[str, Any] = {
        "rename": {"fused": "head/kernel"},
        "adapt": {"head/kernel": kt.adapt.Split(0, 2, axis=1)},
        "include": "head/kernel",
    }
    with pytest.raises(kt.RestoreError, match="it has no shape of its own in the file"):
        kt.write_back(model, theirs, "ours.npz", shape="model", **options)


def test_axes_in_another_order_are_no_new_shape() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
    theirs = saved("theirs.npz", {"w": np.ones((3, 4), "float32")})
    options: dict[str, Any] = {"rename": {"w": "head/kernel"}, "include": "head/kernel"}
    with pytest.raises(
        kt.RestoreError, match=r"\(4, 3\) has the axes of \(3, 4\) in another order"
    ):
        kt.write_back(model, theirs, "ours.npz", shape="model", **options)


def test_other_words_of_the_same_number() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Embedding(3, 4, name="words")])
    theirs = saved("theirs.npz", {"w": np.arange(12, dtype="float32").reshape(3, 4)})
    options: dict[str, Any] = {
        "rename": {"w": "words/embeddings"},
        "adapt": {"words": kt.adapt.Rows([*"abc"], [*"bcd"])},
    }
    kt.restore(model, theirs, **options)
    with pytest.raises(kt.RestoreError, match=r'no room for 1 slices.*shape="model"'):
        kt.write_back(model, theirs, "ours.npz", **options)
    kt.write_back(model, theirs, "ours.npz", shape="model", **options)
    np.testing.assert_array_equal(arrays_in("ours.npz")["w"], value(model.weights[0]))


def test_all_tensors_of_the_source_are_there() -> None:
    theirs, model = saved("theirs.npz"), network(classes=3)
    kt.write_back(model, theirs, "ours.npz", shape="model", **rules(model))
    assert [*arrays_in("ours.npz")] == [key for key in tensors() if key != "global_step"]
