from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_trainops as kt
from keras_trainops.restoring.planning.table import fold
from tests.helpers import two_layers
from tests.restoring.helpers import saved, without


def test_reports_convert_to_dict_text_and_html() -> None:
    model = two_layers(name="net")
    report = kt.restore(model, saved(without(extra=np.ones(2))), exclude="head/bias")
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["restored"]["trunk/bias"] == "trunk/bias"
    assert plain["unexpected"] == ["extra"]
    assert report.bytes == 8 * (12 + 3 + 6)
    assert report.seconds > 0
    text = str(report)
    assert text.startswith("'net' from 'w.npz' (NumPy .npz archive): restored 3 of 3 variables")
    assert "trunk/{bias,kernel}" in text
    assert text.splitlines()[0].endswith("; unexpected: 1; excluded: 1")
    assert re.search(r"excluded.*head/bias", text)
    assert re.search(r"unexpected.*extra", text)
    assert "trunk/{bias,kernel}" in report._repr_html_()
    with pytest.raises(AttributeError, match="cannot assign"):
        report.missing = ()
    with pytest.raises(TypeError, match="item assignment"):
        report.restored["x"] = "y"


def expand(text: str) -> list[str]:
    """Return all names that a folded text expands to."""
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [text]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    options = (
        [str(i) for i in range(int(numbers[1]), int(numbers[2]) + 1)]
        if numbers
        else match[1].split(",")
    )
    return [
        name for o in options for name in expand(text[: match.start()] + o + text[match.end() :])
    ]


part = st.sampled_from(["a", "b1", "b2", "b3", "c1_2", "c3_4", "conv10", "2"]) | st.text(
    "ab_012²٣", min_size=1, max_size=3
)


@given(st.lists(st.lists(part | st.just("."), min_size=1, max_size=3).map("/".join), max_size=12))
def test_a_fold_expands_to_exactly_its_members(names: list[str]) -> None:
    folded = fold(names)
    members = [name for _, group in folded for name in group]
    assert sorted(members) == sorted(set(names))
    for text, group in folded:
        assert sorted(expand(text)) == sorted(group)


def test_folds_are_as_short_as_possible() -> None:
    names = [
        f"block{b}_conv{c}/{leaf}"
        for b in range(1, 6)
        for c in (1, 2)
        for leaf in ("kernel", "bias")
    ]
    assert [text for text, _ in fold(names)] == ["block{1..5}_conv{1,2}/{bias,kernel}"]
    dotted = [name.replace("/", ".") for name in names]
    assert [text for text, _ in fold(dotted)] == ["block{1..5}_conv{1,2}.{bias,kernel}"]
