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
    paths = {variable.path for variable in model.weights}
    renamed = apply_rules(rules, source).renamed
    return {r.key: str(t) for r in renamed for t in r.addresses if t in paths}


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
