from __future__ import annotations

import keras
import numpy as np

import keras_trainops as kt
from tests.restoring.guessing.layouts import arrays, dense, square


def test_alphabetical_order_does_not_count() -> None:
    model = dense({"trunk": (3, 3), "head": (3, 3)})
    theirs = arrays({"second/": (3, 3), "first/": (3, 3)})
    assert list(theirs) != sorted(theirs)
    suggestion = kt.suggest_rename(model, theirs)
    assert suggestion.pairs["second/w"] == "trunk/kernel"
    assert len(suggestion.by_order) == len(suggestion.rules) == 2
    suggestion = kt.suggest_rename(model, dict(sorted(theirs.items())))
    assert suggestion.rules == {}
    assert len(suggestion.ambiguous) == 1


def test_sequences_of_different_lengths_stay_open() -> None:
    model = dense({"trunk": (3, 3), "head": (3, 3)})
    theirs = arrays({f"{name}/": (3, 3) for name in ("c", "b", "a")})
    suggestion = kt.suggest_rename(model, theirs)
    assert suggestion.rules == {}
    assert len(suggestion.ambiguous[0].keys) == 6


def test_numbers_are_sorted_numerically() -> None:
    model = dense({f"dense_{name}": (3, 3) for name in "abcdefghijkl"})
    theirs = dict(sorted(arrays({f"features.{3 * i}.": (3, 3) for i in range(12)}).items()))
    suggestion = kt.suggest_rename(model, theirs)
    assert [suggestion.pairs[f"features.{3 * i}.w"] for i in range(12)] == [
        f"dense_{name}/kernel" for name in "abcdefghijkl"
    ]
    assert len(suggestion.by_order) == 12


def test_layers_follow_their_siblings() -> None:
    """Only their neighbours distinguish two normalisations of the same shape."""
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
        for part in ("a", "b"):  # alphabetical order would pair them the other way
            theirs[f"l.{i}.{part}.ln.weight"] = theirs[f"l.{i}.{part}.ln.bias"] = np.ones(5)
    suggestion = kt.suggest_rename(keras.Model(inputs, x), dict(sorted(theirs.items())))
    assert suggestion.pairs["l.1.b.ln.weight"] == "block1_norm1/gamma"
    assert suggestion.pairs["l.0.a.ln.bias"] == "block0_norm2/beta"
    assert sum("ln" in rule for rule in suggestion.by_order) == 2
    assert len(suggestion.pairs) == 2 * (4 + 2) * 2


def test_layer_names_count_more_than_tensor_names() -> None:
    model = dense({"foo": (3, 5)})
    suggestion = kt.suggest_rename(model, square("net/foo/w", "net/zap/kernel", shape=(3, 5)))
    assert dict(suggestion.pairs) == {"net/foo/w": "foo/kernel"}
    assert suggestion.unmatched == ("net/zap/kernel",)


def test_layers_without_common_words_pair_by_shapes() -> None:
    model = dense({"foo": (3, 5), "bar": (5, 7)})
    theirs = {**square("n/zip/kernel", shape=(5, 7)), **square("n/zap/kernel", shape=(3, 5))}
    suggestion = kt.suggest_rename(model, theirs)
    assert suggestion.pairs["n/zip/kernel"] == "bar/kernel"
    assert set(suggestion.by_shape) == {"n/zip/kernel", "n/zap/kernel"}


def test_the_longer_common_end_breaks_ties() -> None:
    model = dense({"encoder_up": (3, 3)})
    suggestion = kt.suggest_rename(model, square("m/encoder_up/kernel", "m/encoder/sub/up/kernel"))
    assert dict(suggestion.pairs) == {"m/encoder_up/kernel": "encoder_up/kernel"}
    assert suggestion.by_order == suggestion.by_shape == ()


def test_smaller_groups_are_rivals_too() -> None:
    model = dense({"enc_0": (3, 3), "enc_1": (3, 3)})
    theirs = square("dec.0.w", "dec.1.w", "enc.a.w", "enc.b.w")
    suggestion = kt.suggest_rename(
        model, theirs
    )  # one group has equal numbers, the other common words
    assert suggestion.pairs == {}
    assert set(suggestion.ambiguous[0].keys) == set(theirs)
    suggestion = kt.suggest_rename(model, square("a.0.w", "a.1.w", "b.w"))
    assert suggestion.pairs == {}  # `b` fits too, so equal numbers are no proof
    assert len(suggestion.ambiguous[0].keys) == 3
