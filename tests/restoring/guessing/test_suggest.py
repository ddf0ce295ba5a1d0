"""Suggested rules, their reasons, and their effect in a restore."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import randomise, refused, two_layers, value, weights
from tests.restoring.guessing.layouts import arrays, dense, square


def test_shifted_numbers_become_a_rule_by_order() -> None:
    model = dense({f"block{i}_up": (4, 4) for i in (1, 2, 3)})
    theirs = arrays({f"net/layer_{i}/up/": (4, 4) for i in (0, 1, 2)})
    suggestion = kt.suggest_rename(model, theirs)
    assert dict(suggestion.rules) == {
        r"net/layer_(\d+)/up/\w+": r"block\g<1+1>_up/*",
    }
    assert set(suggestion.by_order) == set(suggestion.rules)
    assert "    # by order; check\n" in str(suggestion)
    kt.restore(model, theirs, rename=suggestion.rules)
    assert [float(value(v).ravel()[0]) for v in model.weights] == [1, -1, 2, -2, 3, -3]


def test_equal_numbers_and_words_need_no_order() -> None:
    model = dense({f"block{i}_{part}": (4, 4) for i in (1, 2) for part in ("query", "key")})
    theirs = arrays({f"layer.{i}.{part}.": (4, 4) for i in (1, 2) for part in ("k", "q")})
    suggestion = kt.suggest_rename(model, theirs)
    assert suggestion.by_order == suggestion.by_shape == suggestion.ambiguous == ()
    assert suggestion.pairs["layer.2.q.w"] == "block2_query/kernel"
    assert suggestion.pairs["layer.1.k.b"] == "block1_key/bias"
    assert len(suggestion.pairs) == 8


def test_ambiguous_layers_are_listed() -> None:
    model = dense({"trunk": (3, 3), "head": (3, 3), "odd": (3, 5)})
    theirs = arrays({"net/p/": (3, 3), "net/q/": (3, 3), "net/x/": (3, 5)})
    suggestion = kt.suggest_rename(model, dict(sorted(theirs.items())))
    (group,) = suggestion.ambiguous
    assert set(group.keys) == {"net/p/w", "net/p/b", "net/q/w", "net/q/b"}
    assert set(group.paths) == {"trunk/kernel", "trunk/bias", "head/kernel", "head/bias"}
    assert set(suggestion.pairs.values()) == {"odd/kernel", "odd/bias"}
    assert str(suggestion).splitlines()[-1] == (
        "# ambiguous: trunk/{bias,kernel}, head/{bias,kernel} could be net/p/{b,w}, net/q/{b,w}"
    )


def test_transposed_shapes_reveal_pytorch_layouts() -> None:
    model = dense({"trunk": (4, 3), "head": (3, 2)})
    theirs = {"a/kernel": np.ones((3, 4)), "b/kernel": np.ones((2, 3))}
    suggestion = kt.suggest_rename(model, theirs)
    assert suggestion.from_torch
    assert "adapt = kt.adapt.from_torch(model)" in str(suggestion)
    assert suggestion.pairs["b/kernel"] == "head/kernel"
    theirs = {
        "a.weight": np.ones((4, 3)),
        "b.weight": np.ones((3, 2)),
    }  # only the names are PyTorch's
    assert not kt.suggest_rename(model, theirs).from_torch


def test_keys_that_are_paths_need_no_rule() -> None:
    theirs = {"trunk/bias": np.ones(3), "x/trunk/kernel": np.ones((4, 3)), "h/w": np.ones((3, 2))}
    suggestion = kt.suggest_rename(two_layers(), theirs)
    assert dict(suggestion.rules) == {"x/trunk/kernel": "trunk/kernel", "h/w": "head/kernel"}
    assert suggestion.missing == ("head/bias",)
    report = kt.plan_restore(two_layers(), theirs, rename=suggestion.rules)
    assert {key: path for path, key in report.restored.items()} == dict(suggestion.pairs)


def test_a_path_with_another_shape_stays_taken() -> None:
    theirs = {"head/kernel": np.ones((3, 9)), "other/w": np.ones((3, 2))}
    suggestion = kt.suggest_rename(two_layers(), theirs)
    assert suggestion.pairs == {}
    assert suggestion.unmatched == ("head/kernel", "other/w")
    assert "head/kernel" in suggestion.missing


def test_a_selection_leaves_the_rest_alone() -> None:
    theirs = arrays({"a/": (4, 3), "b/": (3, 2)})
    suggestion = kt.suggest_rename(two_layers(), theirs, exclude="head")
    assert set(suggestion.pairs.values()) == {"trunk/kernel", "trunk/bias"}
    assert suggestion.unmatched == ("b/w", "b/b")
    assert kt.suggest_rename(two_layers(), theirs, include="trunk") == suggestion
    with refused(two_layers(), "matches no variable. Closest paths: 'head/"):
        kt.suggest_rename(two_layers(), theirs, exclude="haed")


def test_training_state_is_not_suggested() -> None:
    theirs = {**arrays({"a/": (4, 3), "b/": (3, 2)}), "a/w/Adam": np.ones((4, 3))}
    np.savez("w.npz", **theirs)
    suggestion = kt.suggest_rename(two_layers(), "w.npz")
    assert suggestion.unmatched == ()
    assert len(suggestion.pairs) == 4


def test_to_dict_contains_plain_types() -> None:
    model = dense({"trunk": (3, 3), "head": (3, 3)})
    plain = kt.suggest_rename(model, {"a/w": np.ones((3, 3)), "b/w": np.ones((3, 3))}).to_dict()
    assert plain["ambiguous"] == [
        {"keys": ["a/w", "b/w"], "paths": [v.path for v in model.weights]}
    ]
    assert plain["rules"] == plain["pairs"] == {}


def test_printed_rules_are_python() -> None:
    model = two_layers()
    theirs = arrays({'n"et\\a/': (4, 3), "b.": (3, 2)})
    suggestion = kt.suggest_rename(model, theirs)
    scope: dict[str, Any] = {"kt": kt, "model": model}
    exec(str(suggestion), scope)
    assert scope["rename"] == dict(suggestion.rules)
    kt.restore(model, theirs, rename=scope["rename"])
    assert [float(a.ravel()[0]) for a in weights(model)] == [1, -1, 2, -2]


@pytest.mark.parametrize("inputs", [3, 5])
def test_partly_overlapping_automatic_names_are_renumbered(inputs: int) -> None:
    model = dense({"dense": (inputs, 3), "dense_1": (3, 3), "dense_2": (3, 3)})
    theirs = {f"dense_{i}/kernel": np.full((3, 3), i, "float32") for i in (1, 2, 3)}
    theirs["dense_1/kernel"] = np.ones((inputs, 3), "float32")
    suggestion = kt.suggest_rename(model, theirs)
    assert suggestion.by_order == tuple(suggestion.rules)
    kt.restore(model, theirs, rename=suggestion.rules)
    kernels = [value(v) for v in model.weights if v.path.endswith("kernel")]
    assert [float(kernel.ravel()[0]) for kernel in kernels] == [1, 2, 3]


def test_common_automatic_names_need_a_complete_side() -> None:
    model = dense(dict.fromkeys(("dense", "dense_1", "dense_2"), (3, 3)))
    less = kt.suggest_rename(model, square("dense_1/kernel", "dense_2/kernel"))
    assert less.rules == {}
    assert dict(less.pairs) == {f"dense_{i}/kernel": f"dense_{i}/kernel" for i in (1, 2)}
    other = kt.suggest_rename(model, square(*(f"dense_{i}/kernel" for i in (1, 2, 3, 4))))
    assert other.pairs == {}
    assert len(other.ambiguous[0].keys) == 4
    model = dense(dict.fromkeys(("dense", "dense_2", "dense_3"), (3, 3)))
    same = kt.suggest_rename(model, square("dense/kernel", "dense_1/kernel", "dense_2/kernel"))
    assert dict(same.rules) == {r"dense_(\d+)/kernel": r"dense_\g<1+1>/kernel"}
    assert same.by_order == tuple(same.rules)
    assert same.pairs["dense/kernel"] == "dense/kernel"


def test_shapes_distinguish_automatic_numbers() -> None:
    theirs = {**square("dense_7/kernel"), **square("dense_8/kernel", shape=(3, 5))}
    alike = kt.suggest_rename(dense({"dense": (3, 3), "dense_1": (3, 5)}), theirs)
    assert alike.by_order == alike.by_shape == ()
    assert alike.pairs["dense_8/kernel"] == "dense_1/kernel"
    theirs = square("dense_7/kernel", "dense_8/kernel")
    alike = kt.suggest_rename(dense({"dense": (3, 3), "dense_1": (3, 3)}), theirs)
    assert alike.by_order == tuple(alike.rules)
    assert alike.pairs["dense_8/kernel"] == "dense_1/kernel"


def test_a_model_without_variables_is_refused() -> None:
    with pytest.raises(kt.RestoreError, match="has no variables yet"):
        kt.suggest_rename(keras.Sequential([keras.layers.Dense(2)]), {"w": np.ones(2)})


def test_auto_is_stricter_than_suggestions() -> None:
    model = randomise(dense({"trunk": (3, 3), "head": (3, 3)}), 1)
    theirs = arrays({"second/": (3, 3), "first/": (3, 3)}, "kernel", "bias")
    assert len(kt.suggest_rename(model, theirs).by_order) > 0
    with refused(model, "4 variables rest on order or likeness"):
        kt.restore(model, theirs, rename="auto")


def test_auto_restores_the_files_of_pytorch_where_nothing_else_fits() -> None:
    transposed = {"a.weight": np.arange(12.0).reshape(3, 4), "b.weight": np.ones((2, 3))}
    model = randomise(two_layers(), 1)
    with refused(model, "missing: .*bias"):
        kt.restore(model, transposed, rename="auto", on_missing="error")
    kt.restore(model, transposed, rename="auto", on_missing="ignore")
    np.testing.assert_array_equal(value(model.weights[0]), transposed["a.weight"].T)


def test_line_ends_in_names_are_escaped() -> None:
    """The printed suggestion stays valid Python."""
    model, source = two_layers(seed=1), two_layers(seed=2)
    arrays = {f"net\n1/{v.path}".replace("trunk", "tr\nunk_3"): value(v) for v in source.weights}
    suggestion = kt.suggest_rename(model, arrays)
    assert len(suggestion.pairs) == len(model.weights)
    names: dict[str, Any] = {"kt": kt, "model": model}
    exec(str(suggestion), names)
    assert names["rename"] == dict(suggestion.rules)
    for rename in (dict(suggestion.rules), "auto"):
        target = two_layers()
        kt.restore(target, arrays, rename=rename)
        for ours, theirs in zip(weights(target), weights(source), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    unknown = kt.suggest_rename(model, {"a\nb\n": np.ones((9, 9, 9))})
    assert all(not line or line[0] in "#r" for line in str(unknown).splitlines())
