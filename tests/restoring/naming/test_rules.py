from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.restoring.naming.rules import apply_rules
from tests.helpers import refused, two_layers, value
from tests.restoring.helpers import marks

THEIRS = {
    "net/l1/w": np.full((4, 3), 1.0),
    "net/l1/b": np.full(3, 2.0),
    "net/l2/w": np.full((3, 2), 3.0),
    "net/l2/b": np.full(2, 4.0),
}
RULES: dict[str, Any] = {
    "net/l1/w": "trunk/kernel",
    "net/l1/b": "trunk/bias",
    "net/l2/w": "head/kernel",
    "net/l2/b": "head/bias",
}


def test_expressions_match_whole_keys_and_fill_templates() -> None:
    model = two_layers()
    rules = {r"net/l1/(\w)": r"trunk/\1", r"net/l2/(.)": r"head/\1"}
    short = {"w": "kernel", "b": "bias"}
    report = kt.restore(
        model,
        THEIRS,
        rename={
            rf"net/{their}/{letter}": f"{ours}/{short[letter]}"
            for their, ours in (("l1", "trunk"), ("l2", "head"))
            for letter in "wb"
        },
    )
    assert marks(model) == [1.0, 2.0, 3.0, 4.0]
    assert report.restored["head/bias"] == "net/l2/b"
    with refused(two_layers(), r"leads to no variable of the model: none is named 'trunk/b'"):
        kt.restore(two_layers(), THEIRS, rename=rules)


def test_a_key_without_rule_keeps_its_name() -> None:
    model = two_layers()
    arrays = {"head/bias": np.full(2, 9.0), "t": np.full(3, 8.0)}
    kt.restore(model, arrays, rename={"t": "trunk/bias"})
    assert marks(model)[1::2] == [8.0, 9.0]


def test_the_first_rule_that_matches_wins() -> None:
    model = two_layers()
    rules = {r"net/l1/w": "trunk/kernel", r"net/l1/.*": "trunk/bias", r"net/l2/.": None}
    report = kt.restore(model, THEIRS, rename=rules)
    assert marks(model)[:2] == [1.0, 2.0]
    assert report.ignored == ("net/l2/w", "net/l2/b")


def test_one_tensor_may_go_to_several_variables() -> None:
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, name="a")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4, name="b")(x))
    kt.restore(model, {"w": np.eye(4)}, rename={"(w)": ["a/kernel", "b/kernel"]})
    for name in "ab":
        np.testing.assert_array_equal(value(model.get_layer(name).kernel), np.eye(4))


def test_a_callable_renames_too() -> None:
    model = two_layers()

    def rename(key: str) -> str | None:
        return RULES[key] if "l1" in key else None

    report = kt.restore(model, THEIRS, rename=rename)
    assert len(report.restored) == len(report.ignored) == 2
    with refused(model, "`rename` must return a path or None for every key. Received: 3"):
        kt.restore(model, THEIRS, rename=lambda key: 3)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({**RULES, "net/l3/w": "x"}, "Rename rule 'net/l3/w' matches no key. Closest keys: 'net/l"),
        ({"net/.*": None, "net/l1/w": "trunk/kernel"}, "'net/l1/w' never applies: earlier rules"),
        (
            {**RULES, "net/l1/w": "trunk/kernl"},
            "named 'trunk/kernl'. Closest paths: 'trunk/kernel'",
        ),
        ({"net/(.*)": r"\2"}, "the template .* does not fit it: invalid group reference 2"),
        ({"net/(.*)": r"\g<1+1>"}, "the template .* does not fit it: invalid literal for int"),
        ({r"net/l(\d).*": r"x\g<2-1>"}, "the template .* does not fit it: no such group"),
        ({"net/(": "x"}, "'net/\\(' is not a valid regular expression"),
        ({**RULES, "net/l1/w": 3}, "must lead to a path, a `keras.Variable`, a list of these"),
        ({**RULES, "net/l1/w": []}, "must lead to a path, a `keras.Variable`, a list of these"),
        ({3: "x"}, "A rename rule must be a regular expression as a string. Received: 3"),
        (
            "trunk",
            '`rename` must be "auto", a mapping from regular expression to path, or a callable',
        ),
        (
            {**RULES, "net/l2/b": "trunk/bias"},
            "Two keys for one variable: 'net/l1/b' and 'net/l2/b' both lead to 'trunk/bias'",
        ),
    ],
)
def test_invalid_rules_are_refused(rules: Any, message: str) -> None:
    model = two_layers()
    with refused(model, message):
        kt.restore(model, THEIRS, rename=rules)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (r"block\g<1+1>", "block8"),
        (r"\g<2-3>_\1\g<2+95>x\2", "2_7100x5"),  # neighbouring digits do not belong to the group
        (r"\g<1>\g<1-7>", "70"),
        (r"a\g<1-9>", "a-2"),
        (r"\\g<1", r"\g<1"),  # an escaped backslash does not start a group
    ],
)
def test_numbers_in_groups_may_be_shifted(template: str, expected: str) -> None:
    (renamed,) = apply_rules({r"layer(\d)\.(\d)": template}, ["layer7.5"]).renamed
    assert renamed.addresses == [expected]


@pytest.mark.parametrize("rule", ["auto", "the callable", "callable", "heuristic"])
def test_any_text_may_be_a_rule(rule: str) -> None:
    model = two_layers()
    kt.restore(model, {rule: np.full(2, 7.0)}, rename={rule: "head/bias"})
    assert value(model.weights[3]).tolist() == [7.0, 7.0]
    with refused(model, "leads to no variable of the model: none is named 'no/where'"):
        kt.restore(model, {rule: np.ones(2)}, rename={rule: "no/where"})


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (r"block\g<2+a>", "blockb"),
        (r"block\g<2+c>/x", "blockd/x"),
        (r"b\g<2+1{0:0,3:4}>", "b5"),
        (r"b\g<2+1{3:-1}>/\1", "b0/3"),
        (r"\1_\g<1-2>_\g<2+a>", "3_1_b"),
    ],
)
def test_letters_and_counted_numbers_are_computed(template: str, expected: str) -> None:
    (renamed,) = apply_rules({r"s(\d)\.(\d)": template}, ["s3.1"]).renamed
    assert renamed.addresses == [expected]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (r"b\g<2+1{0:0,1:3}>", "it has no entry for 3"),
        (r"b\g<1+z>", "no letter is 3 after 'z'"),
        (r"b\g<3+a>", "does not fit it"),
        (r"b\g<2+1{0:0,3:x}>", "does not fit it"),
    ],
)
def test_references_that_cannot_be_computed_are_refused(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_rules({r"s(\d)\.(\d)": template}, ["s3.1"])


def test_a_reference_needs_a_number() -> None:
    with pytest.raises(ValueError, match=r"does not fit it: invalid literal for int"):
        apply_rules({r"(\w)\.w": r"b\g<1+a>"}, ["x.w"])
