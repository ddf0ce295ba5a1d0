"""The reasons of a suggestion are honest: names, shapes that fit nothing else, or order."""

from __future__ import annotations

from typing import Any

import keras_trainops as kt
from keras_trainops.restoring.guessing.suggestion import Suggestion
from tests.restoring.guessing.layouts import Placed, linear, norm, parallel, tensors_of, torch_norm

Sizes = dict[str, tuple[int, ...]]


def reason_of(suggestion: Suggestion, text: str) -> str:
    """Return the reason of the only rule with a text in its expression."""
    (rule,) = (rule for rule in suggestion.rules if text in rule)
    if rule in suggestion.by_order:
        return "order"
    return "shapes" if rule in suggestion.by_shape else "names"


def suggested(layers: list[Placed], sizes: Sizes) -> Suggestion:
    theirs: dict[str, Any] = tensors_of(sizes)
    return kt.suggest_rename(parallel(layers), theirs)


def blocks(*members: tuple[str, str, tuple[int, int]]) -> Suggestion:
    """Two blocks of linear layers: our name, their name, and the inputs and outputs of each."""
    layers: list[Placed] = []
    sizes: Sizes = {}
    for i in range(2):
        layers += [linear(f"block{i}_{ours}", *size) for ours, _, size in members if ours]
        sizes |= {f"h.{i}.{theirs}.weight": size[::-1] for _, theirs, size in members if theirs}
    return suggested(layers, sizes)


def test_a_common_role_is_a_name() -> None:
    found = blocks(("query", "attn.q_proj", (6, 6)), ("key", "attn.k_proj", (6, 6)))
    assert reason_of(found, "q_proj") == reason_of(found, "k_proj") == "names"
    assert found.pairs["h.1.attn.k_proj.weight"] == "block1_key/kernel"


def test_a_shape_of_its_own_is_no_name() -> None:
    found = blocks(("query", "attn.q_proj", (6, 6)), ("wide", "foo", (6, 9)))
    assert reason_of(found, "foo") == "shapes"
    assert found.is_certain


def test_a_sibling_of_the_same_shape_makes_it_order() -> None:
    """What is left over fits, but only because its sibling is taken."""
    found = blocks(("query", "attn.q_proj", (6, 6)), ("mix", "foo", (6, 6)), ("x", "x", (6, 9)))
    assert found.pairs["h.0.foo.weight"] == "block0_mix/kernel"
    assert reason_of(found, "foo") == "order"
    assert reason_of(found, "q_proj") == "names"
    assert not found.is_certain


def test_different_roles_never_fit() -> None:
    found = blocks(
        ("query", "attn.q_proj", (6, 6)), ("key", "attn.v_proj", (6, 6)), ("x", "x", (6, 9))
    )
    assert set(found.pairs.values()) == {
        *(f"block{i}_query/kernel" for i in range(2)),
        *(f"block{i}_x/kernel" for i in range(2)),
    }
    assert not found.is_certain


def test_a_name_that_ends_in_the_other_is_a_name() -> None:
    layers = [linear("head", 4, 4), linear("tail", 4, 4)]
    found = suggested(layers, {"net.tail.weight": (4, 4), "net.head.weight": (4, 4)})
    assert found.is_certain
    assert found.pairs["net.head.weight"] == "head/kernel"


def test_a_name_that_two_layers_end_in_is_ambiguous() -> None:
    layers = [linear("head", 4, 4), linear("other", 4, 4)]
    found = suggested(layers, {"a.head.weight": (4, 4), "b.head.weight": (4, 4)})
    assert found.pairs == {}
    assert found.ambiguous


def test_likeness_is_said_to_be_likeness() -> None:
    layers = [linear("left_tower_out", 4, 4), linear("right_tower_out", 4, 4)]
    sizes: Sizes = {"tower_right.fc.weight": (4, 4), "tower_left.fc.weight": (4, 4)}
    found = suggested(layers, sizes)
    assert found.pairs == {
        "tower_right.fc.weight": "right_tower_out/kernel",
        "tower_left.fc.weight": "left_tower_out/kernel",
    }
    assert set(found.by_order) == set(found.rules)


def test_rules_are_certain_only_together() -> None:
    layers = [norm("a", 4), linear("b", 4, 5)]
    found = suggested(layers, torch_norm("x", 4) | {"y.weight": (5, 4)})
    assert found.is_certain
    assert set(found.by_shape) == set(found.rules)
    found = suggested(layers, torch_norm("x", 4))
    assert found.missing == ("b/kernel",)
    assert not found.is_certain
