"""Suggested rules: what they say, what they rest on, and that they do what they say."""

from __future__ import annotations

import re
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_trainops as kt
from keras_trainops.restoring.guessing.layers import adaptation, layers_of, matching_leaves
from keras_trainops.restoring.guessing.rules import fold_rules
from keras_trainops.restoring.naming.rules import apply_rules
from tests.helpers import randomise, refused, two_layers, value, weights


def dense(sizes: dict[str, tuple[int, int]]) -> keras.Model:
    """Layers of these names, inputs and outputs, side by side."""
    inputs = [keras.Input((n,)) for n, _ in sizes.values()]
    outputs = [
        keras.layers.Dense(units, name=name)(x)
        for x, (name, (_, units)) in zip(inputs, sizes.items(), strict=True)
    ]
    return keras.Model(inputs, outputs)


def arrays(sizes: dict[str, tuple[int, int]], weight: str = "w", bias: str = "b") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i, (name, (inputs, outputs)) in enumerate(sizes.items()):
        shape = (outputs, inputs) if weight == "weight" else (inputs, outputs)
        found[f"{name}{weight}"] = np.full(shape, i + 1.0, "float32")
        found[f"{name}{bias}"] = np.full(outputs, -i - 1.0, "float32")
    return found


def led(model: keras.Model, source: dict[str, Any], rules: Any) -> dict[str, str]:
    """Key -> path of all keys that lead to a variable of `model` by these rules."""
    paths = {variable.path for variable in model.weights}
    renamed = apply_rules(rules, source).renamed
    return {r.key: str(t) for r in renamed for t in r.targets if t in paths}


def test_numbers_that_are_shifted_are_told_as_a_rule_and_said_to_be_order() -> None:
    model = dense({f"block{i}_up": (4, 4) for i in (1, 2, 3)})
    theirs = arrays({f"net/layer_{i}/up/": (4, 4) for i in (0, 1, 2)})
    suggestion = kt.suggest_rename(model, theirs)
    assert dict(suggestion.rules) == {
        r"net/layer_(\d+)/up/b": r"block\g<1+1>_up/bias",
        r"net/layer_(\d+)/up/w": r"block\g<1+1>_up/kernel",
    }
    assert set(suggestion.by_order) == set(suggestion.rules)
    assert "    # by order; check\n" in str(suggestion)
    kt.restore(model, theirs, rename=suggestion.rules)
    assert [float(value(v).ravel()[0]) for v in model.weights] == [1, -1, 2, -2, 3, -3]


def test_equal_numbers_and_words_are_no_matter_of_order() -> None:
    model = dense({f"block{i}_{part}": (4, 4) for i in (1, 2) for part in ("query", "key")})
    theirs = arrays({f"layer.{i}.{part}.": (4, 4) for i in (1, 2) for part in ("k", "q")})
    suggestion = kt.suggest_rename(model, theirs)
    assert suggestion.by_order == suggestion.by_shape == suggestion.ambiguous == ()
    assert suggestion.pairs["layer.2.q.w"] == "block2_query/kernel"
    assert suggestion.pairs["layer.1.k.b"] == "block1_key/bias"
    assert len(suggestion.pairs) == 8


def test_what_several_could_claim_is_listed_and_not_decided() -> None:
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


def test_order_counts_where_somebody_made_it_and_not_where_names_are_sorted() -> None:
    model = dense({"trunk": (3, 3), "head": (3, 3)})
    theirs = arrays({"second/": (3, 3), "first/": (3, 3)})
    assert list(theirs) != sorted(theirs)
    suggestion = kt.suggest_rename(model, theirs)
    assert suggestion.pairs["second/w"] == "trunk/kernel"
    assert len(suggestion.by_order) == len(suggestion.rules) == 4
    suggestion = kt.suggest_rename(model, dict(sorted(theirs.items())))
    assert suggestion.rules == {}
    assert len(suggestion.ambiguous) == 1


def test_sequences_of_other_lengths_are_not_told_by_order() -> None:
    model = dense({"trunk": (3, 3), "head": (3, 3)})
    theirs = arrays({f"{name}/": (3, 3) for name in ("c", "b", "a")})
    suggestion = kt.suggest_rename(model, theirs)
    assert suggestion.rules == {}
    assert len(suggestion.ambiguous[0].keys) == 6


def test_sorted_numbers_are_counted_as_numbers() -> None:
    model = dense({f"dense_{name}": (3, 3) for name in "abcdefghijkl"})
    theirs = dict(sorted(arrays({f"features.{3 * i}.": (3, 3) for i in range(12)}).items()))
    suggestion = kt.suggest_rename(model, theirs)
    assert [suggestion.pairs[f"features.{3 * i}.w"] for i in range(12)] == [
        f"dense_{name}/kernel" for name in "abcdefghijkl"
    ]
    assert len(suggestion.by_order) == 24


def test_what_stands_beside_its_siblings_goes_where_they_went() -> None:
    """Two normalisations of one shape: names do not tell them apart, their neighbours do."""
    x = inputs = keras.Input((4,))
    for i in range(2):
        x = keras.layers.Dense(5, name=f"block{i}_up")(x)
        x = keras.layers.LayerNormalization(name=f"block{i}_norm1")(x)
        x = keras.layers.Dense(4, name=f"block{i}_down")(x)
        x = keras.layers.Dense(5, name=f"block{i}_wide")(x)
        x = keras.layers.LayerNormalization(name=f"block{i}_norm2")(x)
        x = keras.layers.Dense(4, name=f"block{i}_last")(x)
    theirs = {}
    for i in range(2):
        for part, n, m in (("b.up", 5, 4), ("a.wide", 5, 4), ("c.down", 4, 5), ("d.last", 4, 5)):
            theirs[f"l.{i}.{part}.weight"], theirs[f"l.{i}.{part}.bias"] = (
                np.ones((n, m)),
                np.ones(n),
            )
        for part in ("a", "b"):  # sorted, `a` comes first: order would say the opposite
            theirs[f"l.{i}.{part}.ln.weight"] = theirs[f"l.{i}.{part}.ln.bias"] = np.ones(5)
    suggestion = kt.suggest_rename(keras.Model(inputs, x), dict(sorted(theirs.items())))
    assert suggestion.pairs["l.1.b.ln.weight"] == "block1_norm1/gamma"
    assert suggestion.pairs["l.0.a.ln.bias"] == "block0_norm2/beta"
    assert sum("ln" in rule for rule in suggestion.by_order) == 4
    assert len(suggestion.pairs) == 2 * (4 + 2) * 2


@pytest.mark.parametrize(
    ("leaf", "shape", "wanted", "torch", "expected"),
    [
        ("kernel", (7, 4), (4, 7), True, "from_torch"),
        ("kernel", (4, 4), (4, 4), True, "from_torch"),  # no shape tells; the names did
        ("kernel", (4, 7), (4, 7), True, None),
        ("kernel", (7, 4), (4, 7), False, None),
        ("kernel", (8, 3, 5, 2), (5, 2, 3, 8), True, "from_torch"),
        ("kernel", (8, 1, 5, 2), (5, 2, 8, 1), True, "from_torch"),  # depthwise
        ("kernel", (8, 3, 5), (5, 3, 8), True, "from_torch"),
        ("embeddings", (9, 4), (9, 4), True, ""),
        ("gamma", (4,), (4,), True, ""),
        ("kernel", (5, 2, 3, 8), (30, 8), False, "Reshape"),
        ("kernel", (1, 1, 3, 8), (3, 8), False, "Reshape"),
        ("kernel", (1, 1, 8, 3), (3, 8), False, None),
        ("bias", (1, 8), (8,), False, None),
    ],
)
def test_what_makes_a_tensor_fit(
    leaf: str, shape: Any, wanted: Any, torch: bool, expected: str | None
) -> None:
    assert adaptation(leaf, shape, wanted, torch) == expected


@pytest.mark.parametrize(
    ("theirs", "ours", "fit"),
    [
        ({"l.weight": (5,), "l.bias": (5,)}, {"n/gamma": (5,), "n/beta": (5,)}, True),
        ({"l.weight": (5,), "l.bias": (5,)}, {"n/kernel": (5, 5), "n/bias": (5,)}, False),
        (
            {"l.weight": (5,), "l.bias": (5,)},  # no batch normalisation
            {"n/gamma": (5,), "n/beta": (5,), "n/moving_mean": (5,), "n/moving_variance": (5,)},
            False,
        ),
        ({"l.weight": (7, 5)}, {"n/kernel": (5, 7), "n/bias": (7,)}, True),
        ({"l.bias": (7,)}, {"n/kernel": (5, 7), "n/bias": (7,)}, False),
        ({"l.weight": (7, 5), "l.bias": (7,)}, {"n/kernel": (5, 7)}, False),
        ({"l.weight": (7, 5), "l.extra": (7,)}, {"n/kernel": (5, 7), "n/bias": (7,)}, False),
        ({"weight": (9, 5)}, {"words/embeddings": (9, 5)}, True),
    ],
)
def test_layers_fit_as_a_whole_or_not_at_all(theirs: Any, ours: Any, fit: bool) -> None:
    (one,), (other,) = layers_of(theirs, "/."), layers_of(ours, "/")
    assert (matching_leaves(one, other, torch=True) is not None) == fit


def test_transposed_shapes_tell_of_another_layout_whatever_the_names_are() -> None:
    model = dense({"trunk": (4, 3), "head": (3, 2)})
    theirs = {"a/kernel": np.ones((3, 4)), "b/kernel": np.ones((2, 3))}
    suggestion = kt.suggest_rename(model, theirs)
    assert suggestion.from_torch
    assert "adapt = kt.adapt.from_torch(model)" in str(suggestion)
    assert suggestion.pairs["b/kernel"] == "head/kernel"
    theirs = {"a.weight": np.ones((4, 3)), "b.weight": np.ones((3, 2))}  # PyTorch's names alone
    assert not kt.suggest_rename(model, theirs).from_torch


def test_names_that_lead_there_by_themselves_need_no_rule() -> None:
    theirs = {"trunk/bias": np.ones(3), "x/trunk/kernel": np.ones((4, 3)), "h/w": np.ones((3, 2))}
    suggestion = kt.suggest_rename(two_layers(), theirs)
    assert dict(suggestion.rules) == {"x/trunk/kernel": "trunk/kernel", "h/w": "head/kernel"}
    assert suggestion.missing == ("head/bias",)
    report = kt.plan_restore(two_layers(), theirs, rename=suggestion.rules)
    assert {key: path for path, key in report.restored.items()} == dict(suggestion.pairs)


def test_a_name_that_leads_there_keeps_others_out_whatever_its_shape_is() -> None:
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


def test_training_state_is_no_candidate() -> None:
    theirs = {**arrays({"a/": (4, 3), "b/": (3, 2)}), "a/w/Adam": np.ones((4, 3))}
    np.savez("w.npz", **theirs)
    suggestion = kt.suggest_rename(two_layers(), "w.npz")
    assert suggestion.unmatched == ()
    assert len(suggestion.pairs) == 4


def test_to_dict_is_plain() -> None:
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


numbers = st.integers(0, 12).map(str)
keys = st.builds(
    "{}{}.{}{}/{}".format,
    *(st.sampled_from(["a", "b+"]), numbers, st.sampled_from(["c", ""]), numbers),
    st.sampled_from(["w", "b"]),
)


@given(st.lists(keys, unique=True, max_size=12), st.integers(0, 12), st.integers(-3, 3), st.data())
def test_folded_rules_say_what_the_pairs_say_and_no_more(
    names: list[str], count: int, shift: int, data: st.DataObject
) -> None:
    def path(name: str) -> str:
        first, second, leaf = re.fullmatch(r"\D*(\d+)\.\D*(\d+)/(.)", name).groups()  # type: ignore[union-attr]
        swapped = data.draw(st.booleans())
        numbers = (second, first) if swapped else (first, second)
        return f"x{int(numbers[0]) + shift + 3}_{numbers[1]}7/{name[0]}{leaf}"

    pairs = {name: path(name) for name in names[:count]}
    rules = fold_rules(pairs, names)
    renamed = apply_rules(rules, names)
    assert renamed.problems == []
    assert {r.key: r.targets[0] for r in renamed.renamed if r.rule is not None} == pairs
    assert len(rules) <= len(pairs)


SIZES = [(2, 3), (2, 3), (3, 2), (3, 3), (3, 3), (4, 5)]


@pytest.mark.parametrize("separator", ["/", "."])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (3, 5, 1, 0, 4, 2), (5, 4, 3, 2, 1, 0)])
def test_rules_give_exactly_the_pairs_that_were_found(
    order: tuple[int, ...], separator: str
) -> None:
    model = dense({f"stage{i}_conv": size for i, size in enumerate(SIZES)})
    theirs = arrays({f"n{i}{separator}": SIZES[i] for i in order})
    suggestion = kt.suggest_rename(model, theirs)
    assert led(model, theirs, suggestion.rules) == dict(suggestion.pairs)
    assert suggestion.pairs == {
        f"n{i}{separator}{theirs}": f"stage{i}_conv/{ours}"
        for i in order
        for theirs, ours in (("w", "kernel"), ("b", "bias"))
    }


def square(*names: str, shape: tuple[int, int] = (3, 3)) -> dict[str, Any]:
    return {name: np.full(shape, i + 1.0, "float32") for i, name in enumerate(names)}


@pytest.mark.parametrize("inputs", [3, 5])
def test_automatic_names_that_overlap_in_part_are_counted_anew(inputs: int) -> None:
    model = dense({"dense": (inputs, 3), "dense_1": (3, 3), "dense_2": (3, 3)})
    theirs = {f"dense_{i}/kernel": np.full((3, 3), i, "float32") for i in (1, 2, 3)}
    theirs["dense_1/kernel"] = np.ones((inputs, 3), "float32")
    suggestion = kt.suggest_rename(model, theirs)
    assert suggestion.by_order == tuple(suggestion.rules)
    kt.restore(model, theirs, rename=suggestion.rules)
    kernels = [value(v) for v in model.weights if v.path.endswith("kernel")]
    assert [float(kernel.ravel()[0]) for kernel in kernels] == [1, 2, 3]


def test_of_automatic_names_those_in_common_count_only_where_one_side_has_them_all() -> None:
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


def test_automatic_numbers_that_shapes_tell_apart_are_no_matter_of_order() -> None:
    theirs = {**square("dense_7/kernel"), **square("dense_8/kernel", shape=(3, 5))}
    alike = kt.suggest_rename(dense({"dense": (3, 3), "dense_1": (3, 5)}), theirs)
    assert alike.by_order == alike.by_shape == ()
    assert alike.pairs["dense_8/kernel"] == "dense_1/kernel"
    theirs = square("dense_7/kernel", "dense_8/kernel")
    alike = kt.suggest_rename(dense({"dense": (3, 3), "dense_1": (3, 3)}), theirs)
    assert alike.by_order == tuple(alike.rules)
    assert alike.pairs["dense_8/kernel"] == "dense_1/kernel"


def test_names_of_layers_count_more_than_those_of_their_tensors() -> None:
    model = dense({"foo": (3, 5)})
    suggestion = kt.suggest_rename(model, square("net/foo/w", "net/zap/kernel", shape=(3, 5)))
    assert dict(suggestion.pairs) == {"net/foo/w": "foo/kernel"}
    assert suggestion.unmatched == ("net/zap/kernel",)


def test_what_has_no_word_in_common_is_told_by_shapes() -> None:
    model = dense({"foo": (3, 5), "bar": (5, 7)})
    theirs = {**square("n/zip/kernel", shape=(5, 7)), **square("n/zap/kernel", shape=(3, 5))}
    suggestion = kt.suggest_rename(model, theirs)
    assert suggestion.pairs["n/zip/kernel"] == "bar/kernel"
    assert set(suggestion.by_shape) == {"n/zip/kernel", "n/zap/kernel"}


def test_of_equal_words_the_longer_common_end_counts() -> None:
    model = dense({"encoder_up": (3, 3)})
    suggestion = kt.suggest_rename(model, square("m/encoder_up/kernel", "m/encoder/sub/up/kernel"))
    assert dict(suggestion.pairs) == {"m/encoder_up/kernel": "encoder_up/kernel"}
    assert suggestion.by_order == suggestion.by_shape == ()


def test_smaller_groups_that_fit_as_well_are_not_ignored() -> None:
    model = dense({"enc_0": (3, 3), "enc_1": (3, 3)})
    theirs = square("dec.0.w", "dec.1.w", "enc.a.w", "enc.b.w")
    suggestion = kt.suggest_rename(model, theirs)  # the family has the numbers, others the words
    assert suggestion.pairs == {}
    assert set(suggestion.ambiguous[0].keys) == set(theirs)
    suggestion = kt.suggest_rename(model, square("a.0.w", "a.1.w", "b.w"))
    assert dict(suggestion.rules) == {r"a\.(\d+)\.w": r"enc_\1/kernel"}
    assert suggestion.by_order == tuple(suggestion.rules)


def test_a_model_without_variables_is_refused() -> None:
    with pytest.raises(kt.RestoreError, match="has no variables yet"):
        kt.suggest_rename(keras.Sequential([keras.layers.Dense(2)]), {"w": np.ones(2)})


def test_auto_stays_strict_where_a_suggestion_is_bolder() -> None:
    model = randomise(dense({"trunk": (3, 3), "head": (3, 3)}), 1)
    theirs = arrays({"second/": (3, 3), "first/": (3, 3)}, "kernel", "bias")
    assert len(kt.suggest_rename(model, theirs).by_order) > 0
    with refused(model, "could be 'first/kernel' or 'second/kernel'"):
        kt.restore(model, theirs, rename="auto")
    transposed = {"a.weight": np.ones((3, 4)), "b.weight": np.ones((2, 3))}
    assert len(kt.suggest_rename(two_layers(), transposed).pairs) == 2
    with refused(two_layers(), "missing: "):
        kt.restore(two_layers(), transposed, rename="auto", on_missing="error")


def test_names_with_ends_of_lines() -> None:
    """Of the suggestion and of `rename="auto"`; what is printed is Python all the same."""
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
