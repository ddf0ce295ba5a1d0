from __future__ import annotations

import numpy as np

import keras_trainops as kt
from keras_trainops.restoring.guessing.units import (
    natural_order,
    units_of,
    without_automatic_numbers,
)
from tests.restoring.guessing.layouts import linear, parallel, tensors_of


def test_tensors_of_one_layer_are_one_unit() -> None:
    names = ("a.fc.weight", "a.fc.bias", "cls_token", "attn.in_proj_weight", "attn.in_proj_bias")
    units = units_of(dict.fromkeys(names, (2,)))
    assert [unit.owner for unit in units] == ["a.fc", "cls_token", "attn.in_proj"]
    assert [tensor.leaf for tensor in units[0].tensors] == ["weight", "bias"]
    assert units[1].tensors[0].leaf == ""
    assert [unit.position for unit in units] == [0, 1, 2]


def test_collections_of_flax_are_one_layer() -> None:
    names = ("params/bn/scale", "params/bn/bias", "batch_stats/bn/mean", "batch_stats/bn/var")
    (unit,) = units_of(dict.fromkeys(names, (2,)))
    assert unit.owner == "bn"
    assert unit.is_batch_norm
    assert [tensor.meaning for tensor in unit.tensors] == ["weight", "bias", "mean", "variance"]


def test_labels_leave_out_what_a_name_repeats() -> None:
    (unit,) = units_of({"stem/stem_1/stem_1_conv/kernel": (1,)})
    assert (unit.owner, unit.label) == ("stem/stem_1/stem_1_conv", "stem/1/conv")
    (unit,) = units_of({"stem/stemming/kernel": (1,)})
    assert unit.label == "stem/stemming"


def test_automatic_numbers_are_counted_among_siblings() -> None:
    names = ["block_1/norm_12", "block_1/norm_4", "block_1/dense"]
    assert without_automatic_numbers(names) == {
        "block_1/norm_12": "block#0/norm#1",
        "block_1/norm_4": "block#0/norm#0",
        "block_1/dense": "block#0/dense#0",
    }
    assert without_automatic_numbers([]) == {}


def test_numbers_are_compared_by_value() -> None:
    names = ["h.10.b", "h.9.c", "h.9.a", "h"]
    assert sorted(names, key=natural_order) == ["h", "h.9.a", "h.9.c", "h.10.b"]


def test_buffers_are_no_weights() -> None:
    """None of them is led anywhere, although one has the shape of a kernel."""
    theirs = tensors_of(
        {"fc.weight": (4, 3), "attn.masked_bias": (4, 3), "rotary_emb.inv_freq": (3,)}
    )
    theirs["embeddings.position_ids"] = np.arange(12).reshape(4, 3)
    suggestion = kt.suggest_rename(parallel([linear("x", 3, 4)]), theirs)
    assert dict(suggestion.pairs) == {"fc.weight": "x/kernel"}
    assert suggestion.is_certain
