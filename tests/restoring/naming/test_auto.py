"""`rename="auto"` pairs correctly, or raises with the candidates."""

from __future__ import annotations

import keras
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import keras_trainops as kt
from keras_trainops.restoring.naming.auto import pair
from tests.helpers import assert_same, randomise, refused, two_layers, weights


def numbered(first: int, count: int, seed: int) -> keras.Model:
    """Build layers with automatic names, after `first` other layers."""
    keras.backend.clear_session()
    for _ in range(first):
        keras.layers.Dense(1)
    x = inputs = keras.Input((3,))
    for _ in range(count):
        x = keras.layers.Dense(3)(x)
    return randomise(keras.Model(inputs, x), seed)


def test_automatic_numbers_are_counted_anew() -> None:
    source = numbered(1, 3, 1)
    source.save_weights("w.weights.h5")
    model = numbered(0, 3, 2)  # `dense_1` and `dense_2` exist on both sides for different layers
    with refused(model, "missing: dense/"):
        kt.restore(model, "w.weights.h5")
    report = kt.restore(model, "w.weights.h5", rename="auto")
    assert_same(weights(model), weights(source))
    assert report.restored["dense_1/kernel"] == "dense_2/kernel"


def test_numbers_of_a_larger_family_are_ambiguous() -> None:
    numbered(1, 4, 1).save_weights("w.weights.h5")
    model = numbered(0, 3, 2)
    with refused(model, r"(?s)6 variables are ambiguous.*\n +# ambiguous: dense"):
        kt.restore(model, "w.weights.h5", rename="auto")


def test_the_longest_common_end_comes_before_shapes() -> None:
    paths = {"enc/a/kernel": (2, 3), "enc/b/kernel": (2, 3), "head/kernel": (5, 5)}
    keys = {"x/enc/a/kernel": (2, 3), "y/b/kernel": (2, 3), "top/kernel": (5, 5)}
    assert pair(paths, keys).key_of == dict(zip(paths, keys, strict=True))
    assert pair(paths, keys).candidates == {}


def test_an_ambiguity_lists_the_candidates() -> None:
    arrays = {"p/kernel": np.ones((3, 2)), "q/kernel": np.ones((3, 2))}
    with refused(two_layers(), r"head/{bias,kernel} could be p/kernel, q/kernel"):
        kt.restore(two_layers(), arrays, rename="auto")


def test_a_selection_narrows_the_choice() -> None:
    model = two_layers()
    arrays = {"enc/w/kernel": np.ones((4, 3)), "enc/w/bias": np.ones(3)}
    report = kt.restore(model, arrays, rename="auto", include="trunk")
    assert dict(report.restored) == {"trunk/kernel": "enc/w/kernel", "trunk/bias": "enc/w/bias"}


def test_one_key_is_never_given_to_two_paths() -> None:
    found = pair({"a/bias": (3,), "b/bias": (3,)}, {"x/bias": (3,)})
    assert found.key_of == {}
    assert found.candidates == {"a/bias": ["x/bias"], "b/bias": ["x/bias"]}


def test_equal_ends_with_different_shapes_are_mismatches() -> None:
    arrays = {"net/head/kernel": np.ones((3, 9))}
    with refused(two_layers(), r"! head/kernel: \(3, 2\) in the model, \(3, 9\) under key 'net/he"):
        kt.restore(two_layers(), arrays, rename="auto")


def test_other_strings_are_refused() -> None:
    with refused(two_layers(), "`rename` must be \"auto\", a mapping.*Received: rename='Auto'"):
        kt.restore(two_layers(), {"head/bias": np.ones(2)}, rename="Auto")


names = st.lists(st.sampled_from(["a", "b", "b_1", "b_2", "c"]), min_size=1, max_size=3).map(
    lambda owners: "/".join([*owners, "kernel"])
)
sides = st.dictionaries(names, st.sampled_from([(2,), (3,)]), max_size=8)


@given(sides, sides)
def test_pairs_are_unique_and_disjoint_from_candidates(
    paths: dict[str, tuple[int, ...]], keys: dict[str, tuple[int, ...]]
) -> None:
    found = pair(paths, keys)
    assert len(set(found.key_of.values())) == len(found.key_of)
    assert not found.key_of.keys() & found.candidates.keys()
    assert found.key_of.keys() | found.candidates.keys() <= paths.keys()
    assert set(found.key_of.values()) <= keys.keys()


@given(sides)
def test_equal_names_are_paired_with_themselves(paths: dict[str, tuple[int, ...]]) -> None:
    assert pair(paths, paths).key_of == {path: path for path in paths}
