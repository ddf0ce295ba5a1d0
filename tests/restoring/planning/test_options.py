from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, refused, two_layers, value, weights
from tests.restoring.helpers import ALL, saved, without


def test_include_and_exclude_choose_variables_of_the_model() -> None:
    model = two_layers()
    before = weights(model)
    report = kt.restore(model, saved(ALL), include=[model.get_layer("head")], exclude="bias")
    assert dict(report.restored) == {"head/kernel": "head/kernel"}
    assert report.excluded == ("trunk/kernel", "trunk/bias", "head/bias")
    assert report.unexpected == ()  # keys of excluded variables are expected
    assert_same([weights(model)[i] for i in (0, 1, 3)], [before[i] for i in (0, 1, 3)])
    assert (weights(model)[2] == 3).all()


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_refused(argument: str) -> None:
    model = two_layers()
    with refused(model, rf"`{argument}`: Pattern 'heads' matches no variable.*'head/"):
        kt.restore(model, ALL, **{argument: ["heads"]})


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "on_missing": (without("head/bias"), "- missing: head/bias"),
    "on_unexpected": (without(extra=np.ones(3)), "+ unused: extra"),
    "on_mismatch": (
        without("head/bias", **{"head/bias": np.ones(3)}),
        "! head/bias: (2,) in the model, (3,) under key 'head/bias'",
    ),
}


@pytest.mark.parametrize("argument", CASES)
def test_reactions(argument: str) -> None:
    arrays, line = CASES[argument]
    fields = {"on_missing": "missing", "on_unexpected": "unexpected", "on_mismatch": "mismatched"}
    model = two_layers()
    with refused(model, re.escape(line), kt.RestoreError):
        kt.restore(model, saved(arrays), **{argument: "error"})
    with pytest.warns(UserWarning, match=re.escape(line)):
        report = kt.restore(model, saved(arrays), **{argument: "warn"})
    assert len(getattr(report, fields[argument])) == 1
    before = value(model.get_layer("head").bias)
    model = two_layers()
    report = kt.restore(model, saved(arrays), **{argument: "ignore"})
    assert len(getattr(report, fields[argument])) == 1
    assert (weights(model)[0] == 1).all()
    if argument != "on_unexpected":  # the variable is unchanged
        np.testing.assert_array_equal(value(model.get_layer("head").bias), before)
    with refused(model, rf"`{argument}` must be one of .*Received: 'raise'"):
        kt.restore(model, ALL, **{argument: "raise"})


def test_a_checkpoint_must_cover_the_model() -> None:
    model = two_layers()
    with refused(model, "missing: head/bias", kt.RestoreError):
        kt.restore(model, saved(without("head/bias")))
    assert kt.restore(model, saved(without(extra=np.ones(2)))).unexpected == ("extra",)


def test_a_mapping_must_be_used_completely() -> None:
    model = two_layers()
    with refused(model, r"\+ unused: extra", kt.RestoreError):
        kt.restore(model, without(extra=np.ones(2)))
    report = kt.restore(model, {"head/bias": [7, 8]})
    assert report.missing == ("trunk/kernel", "trunk/bias", "head/kernel")
    np.testing.assert_array_equal(value(model.get_layer("head").bias), [7, 8])
