from __future__ import annotations

import re

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_trainops import paths

pytestmark = pytest.mark.once

PATHS = ["vgg_16/fc8/kernel", "fc8/bias", "fc80/kernel", "conv1/kernel", "block1/unit2/kernel"]


def named(*texts: str) -> list[paths.NamedVariable]:
    return [paths.NamedVariable(text, None) for text in texts]


def chosen(patterns: object, texts: list[str] | None = None) -> list[str]:
    texts = texts or PATHS
    selection = paths.select(patterns, named(*texts))
    return [text for text, yes in zip(texts, selection, strict=True) if yes]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("fc8", ["vgg_16/fc8/kernel", "fc8/bias"]),
        ("conv.*", ["conv1/kernel"]),
        ("block1/.*/kernel", ["block1/unit2/kernel"]),
        ("fc8|conv1", ["vgg_16/fc8/kernel", "fc8/bias", "conv1/kernel"]),
        ("kernel", [p for p in PATHS if p.endswith("kernel")]),
        (r"fc8/(kernel|bias)", ["vgg_16/fc8/kernel", "fc8/bias"]),
        (".*", PATHS),
    ],
)
def test_a_pattern_matches_whole_consecutive_components(pattern: str, expected: list[str]) -> None:
    assert chosen(pattern) == expected


@pytest.mark.parametrize("pattern", ["c8", "fc", "kerne", "block1/kernel", "fc8/kern"])
def test_a_part_of_a_component_matches_nothing(pattern: str) -> None:
    with pytest.raises(ValueError, match=f"Pattern '{pattern}' matches no variable. Closest paths"):
        chosen(pattern)


component = st.text("abc_.01", min_size=1, max_size=4)


@given(st.lists(component, min_size=1, max_size=5), st.data())
def test_only_runs_of_whole_components_match(parts: list[str], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(parts) - 1))
    end = data.draw(st.integers(start + 1, len(parts)))
    test = paths.matcher(re.escape("/".join(parts[start:end])))
    assert test(named("/".join(parts))[0])
    longer = [*parts[:start], parts[start] + "x", *parts[start + 1 :]]
    if parts[start:end] not in [longer[i : i + end - start] for i in range(len(longer))]:
        assert not test(named("/".join(longer))[0])


def test_variables_layers_and_lists_are_patterns() -> None:
    a, b = keras.layers.Dense(2, name="a"), keras.layers.Dense(2, name="b")
    for layer in (a, b):
        layer.build((None, 3))
    entries = paths.by_path([*a.weights, *b.weights])
    assert paths.select(a, entries) == [True, True, False, False]
    assert paths.select([a.bias, "b/kernel"], entries) == [False, True, True, False]
    assert paths.select(None, entries) == [False] * 4
    with pytest.raises(ValueError, match="Variable 'c' matches no variable"):
        paths.select(keras.Variable(1.0, name="c"), entries)


def test_errors_name_closest_paths_and_all_patterns() -> None:
    with pytest.raises(
        ValueError, match=r"'conv1/kernal'.*Closest paths: 'conv1/kernel'"
    ) as caught:
        chosen(["conv1/kernal", "fc9"])
    assert "'fc9' matches no variable. Closest paths: 'vgg_16/fc8/kernel', 'fc8/bias'" in str(
        caught.value
    )


def test_the_first_pattern_that_matches_wins() -> None:
    entries = named("head/kernel", "head/bias", "trunk/kernel")
    assert paths.first_match({"bias": 1, "head": 2}, entries) == [2, 1, None]


def test_a_pattern_that_never_wins_is_an_error() -> None:
    with pytest.raises(ValueError, match="Pattern 'kernel' never applies: earlier patterns"):
        paths.first_match({"head": 1, "kernel": 2}, named("head/kernel"))


def test_flags_and_anchors_keep_their_meaning() -> None:
    assert chosen("(?i)FC8") == ["vgg_16/fc8/kernel", "fc8/bias"]
    assert chosen("(?i)(?s)FC8/B.*") == ["fc8/bias"]
    assert chosen("^fc8") == ["fc8/bias"]
    assert chosen("^conv1/kernel$") == ["conv1/kernel"]


def test_an_exact_pattern_matches_no_longer_path() -> None:
    pattern = paths.exact_pattern("a.b")
    assert chosen(pattern, ["a.b", "x/a.b", "a.b/c", "axb"]) == ["a.b"]


def test_selected_variables_keep_their_order() -> None:
    a, b, c = (keras.Variable(1.0, name=name) for name in ("a", "b", "c"))
    assert [id(v) for v in paths.selected(["c", a], [a, b, c])] == [id(a), id(c)]
    assert paths.selected(None, [a, b, c]) == []


@pytest.mark.parametrize("bad", ["(", "[a", "*"])
def test_an_invalid_expression_says_where(bad: str) -> None:
    with pytest.raises(ValueError, match=r"is not a valid regular expression: .* at position"):
        chosen(bad)


@pytest.mark.parametrize("bad", [3, {"a": 1}, [1.0], ["a", None]])
def test_other_types_are_not_patterns(bad: object) -> None:
    with pytest.raises(ValueError, match="A pattern must be a regular expression as a string"):
        chosen(bad)


def test_serializable_patterns_choose_the_same_variables() -> None:
    layer = keras.layers.Dense(2, name="a.b")
    layer.build((None, 3))
    other = keras.layers.Dense(2, name="axb")
    other.build((None, 3))
    entries = paths.by_path([*layer.weights, *other.weights])
    texts = paths.serializable([layer, other.bias, "axb/kernel"])
    assert all(isinstance(text, str) for text in texts)
    assert paths.select(texts, entries) == paths.select([layer, other], entries) == [True] * 4
    assert paths.select(paths.serializable(layer), entries) == [True, True, False, False]


def test_closest_compares_parts_of_names() -> None:
    many = [f"encoder/layer{i}/dense/kernel" for i in range(500)] + ["encoder/predictions/kernel"]
    assert paths.closest("prediction", many)[0] == "encoder/predictions/kernel"
    assert paths.closest("x", []) == []
    assert np.unique(paths.closest("dense", many)).size == 3
