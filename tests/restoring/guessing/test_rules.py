from __future__ import annotations

import re
from typing import Any

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_trainops as kt
from keras_trainops.restoring.guessing.rules import fold_rules
from keras_trainops.restoring.naming.rules import apply_rules
from tests.restoring.guessing.layouts import arrays, dense


def led(model: keras.Model, source: dict[str, Any], rules: Any) -> dict[str, str]:
    """Return key -> path of all keys that lead to a variable of `model`."""
    report = kt.plan_restore(model, source, rename=rules)
    return {key: path for path, key in report.restored.items()}


numbers = st.integers(0, 12).map(str)


keys = st.builds(
    "{}{}.{}{}/{}".format,
    *(st.sampled_from(["a", "b+"]), numbers, st.sampled_from(["c", ""]), numbers),
    st.sampled_from(["w", "b"]),
)


@given(st.lists(keys, unique=True, max_size=12), st.integers(0, 12), st.integers(-3, 3), st.data())
def test_folded_rules_give_exactly_the_pairs(
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
    assert {r.key: r.addresses[0] for r in renamed.renamed if r.rule is not None} == pairs
    assert len(rules) <= len(pairs)


SIZES = [(2, 3), (2, 3), (3, 2), (3, 3), (3, 3), (4, 5)]


@pytest.mark.parametrize("separator", ["/", "."])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (3, 5, 1, 0, 4, 2), (5, 4, 3, 2, 1, 0)])
def test_suggested_rules_give_exactly_the_pairs(order: tuple[int, ...], separator: str) -> None:
    model = dense({f"stage{i}_conv": size for i, size in enumerate(SIZES)})
    theirs = arrays({f"n{i}{separator}": SIZES[i] for i in order})
    suggestion = kt.suggest_rename(model, theirs)
    assert led(model, theirs, suggestion.rules) == dict(suggestion.pairs)
    assert suggestion.pairs == {
        f"n{i}{separator}{theirs}": f"stage{i}_conv/{ours}"
        for i in order
        for theirs, ours in (("w", "kernel"), ("b", "bias"))
    }


def exactly(pairs: dict[str, Any], rules: dict[str, Any], keys: Any = ()) -> None:
    """The rules lead each key to its paths, one by one, and no other key anywhere."""
    renamed = apply_rules(rules, [*pairs, *keys])
    assert renamed.problems == []
    led = {r.key: tuple(r.addresses) for r in renamed.renamed if r.rule is not None}
    assert led == {k: (p,) if isinstance(p, str) else tuple(p) for k, p in pairs.items()}


def test_letters_are_counted() -> None:
    pairs = {f"layer.{i}.w": f"block2{'abcd'[i]}_conv/kernel" for i in range(4)}
    rules = fold_rules(pairs, pairs)
    assert rules == {r"layer\.(\d+)\.w": r"block2\g<1+a>_conv/kernel"}
    exactly(pairs, rules)
    shifted = {f"layer.{i}.w": f"block2{'abcd'[i]}/kernel" for i in range(1, 4)}
    assert fold_rules(shifted, shifted) == {r"layer\.(\d+)\.w": r"block2\g<1+a>/kernel"}


def test_blocks_are_counted_through_stages() -> None:
    counts = {0: 1, 1: 3, 2: 2}
    pairs, number = {}, 0
    for stage, count in counts.items():
        for i in range(count):
            pairs[f"stages.{stage}.{i}.w"] = f"block_{number}/kernel"
            number += 1
    rules = fold_rules(pairs, pairs)
    assert rules == {r"stages\.(\d+)\.(\d+)\.w": r"block_\g<2+1{0:0,1:1,2:4}>/kernel"}
    exactly(pairs, rules)


def test_numbers_without_a_pattern_are_listed() -> None:
    pairs = {"a.0.w": "x7/kernel", "a.1.w": "x3/kernel", "a.2.w": "x5/kernel"}
    rules = fold_rules(pairs, pairs)
    assert len(rules) == 3
    exactly(pairs, rules)


def test_a_tensor_for_several_variables_has_a_list_of_templates() -> None:
    pairs: dict[str, str | tuple[str, ...]] = {
        f"h.{i}.qkv.w": tuple(f"block{i + 1}/{part}/kernel" for part in "qkv") for i in range(3)
    }
    rules = fold_rules(pairs, pairs)
    assert rules == {
        r"h\.(\d+)\.qkv\.w": [rf"block\g<1+1>/{part}/kernel" for part in "qkv"],
    }
    exactly(dict(pairs), rules)


def test_one_rule_leads_all_tensors_of_a_layer() -> None:
    leaves = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean"}
    pairs = {f"bn{i}.{a}": f"norm{i}/{b}" for i in (1, 2) for a, b in leaves.items()}
    assert fold_rules(pairs, pairs) == {r"bn(\d+)\.\w+": r"norm\1/*"}


def test_other_tensors_of_a_layer_keep_rules_apart() -> None:
    """The same meaning twice, or a path of another meaning, has no common template."""
    twice = {"fc.weight": "fc/kernel", "fc.w": "fc/gamma"}
    assert fold_rules(twice, twice) == {r"fc\.weight": "fc/kernel", r"fc\.w": "fc/gamma"}
    crossed = {"fc.weight": "fc/bias", "fc.bias": "fc/kernel"}
    assert fold_rules(crossed, crossed) == {r"fc\.weight": "fc/bias", r"fc\.bias": "fc/kernel"}


def test_a_rule_for_a_layer_matches_no_other_layer() -> None:
    pairs = {f"h.{i}.{a}": f"b{i}/{b}" for i in (0, 1) for a, b in (("w", "kernel"), ("b", "bias"))}
    (expression,) = fold_rules(pairs, [*pairs, "h.7.w"])
    assert re.fullmatch(expression, "h.7.w") is None
    assert all(re.fullmatch(expression, key) for key in pairs)


def test_counted_names_are_used_where_they_take_fewer_rules() -> None:
    numbers = {(0, 1): 1, (0, 2): 2, (1, 1): 4, (1, 2): 8, (2, 1): 9, (2, 2): 10}
    paths = {f"block_{i}/norm_{n}/scale": (i, j) for (i, j), n in numbers.items()}
    pairs = {f"h.{i}.ln_{j}.weight": path for path, (i, j) in paths.items()}
    counted = {path: f"block_{i}/norm#{j}/scale" for path, (i, j) in paths.items()}
    rules = fold_rules(pairs, pairs, counted)
    assert rules == {r"h\.(\d+)\.ln_(\d+)\.weight": r"block_\1/norm#\2/scale"}
    few = {"h.0.ln_1.weight": "block_0/norm_1/scale"}
    assert fold_rules(few, few, counted) == {r"h\.0\.ln_1\.weight": "block_0/norm_1/scale"}
