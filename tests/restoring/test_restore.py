from __future__ import annotations

import json
import re
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_trainops as kt
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.restoring.loading import progress
from keras_trainops.restoring.planning.report import fold
from tests.helpers import assert_same, refused, two_layers, value, values, weights

ALL = {
    "trunk/kernel": np.full((4, 3), 1.0),
    "trunk/bias": np.full(3, 2.0),
    "head/kernel": np.full((3, 2), 3.0),
    "head/bias": np.full(2, 4.0),
}


def without(*keys: str, **more: Any) -> dict[str, Any]:
    return {**{k: v for k, v in ALL.items() if k not in keys}, **more}


def saved(arrays: dict[str, Any]) -> str:
    np.savez("w.npz", **arrays)
    return "w.npz"


def test_include_and_exclude_choose_variables_of_the_model() -> None:
    model = two_layers()
    before = weights(model)
    report = kt.restore(model, saved(ALL), include=[model.get_layer("head")], exclude="bias")
    assert dict(report.restored) == {"head/kernel": "head/kernel"}
    assert report.excluded == ("trunk/kernel", "trunk/bias", "head/bias")
    assert report.unexpected == ()  # a key whose variable is left alone is no surprise
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
    if argument != "on_unexpected":  # the variable stays
        np.testing.assert_array_equal(value(model.get_layer("head").bias), before)
    with refused(model, rf"`{argument}` must be one of .*Received: 'raise'"):
        kt.restore(model, ALL, **{argument: "raise"})


def test_a_checkpoint_must_cover_the_model_and_may_hold_more() -> None:
    model = two_layers()
    with refused(model, "missing: head/bias", kt.RestoreError):
        kt.restore(model, saved(without("head/bias")))
    assert kt.restore(model, saved(without(extra=np.ones(2)))).unexpected == ("extra",)


def test_arrays_must_be_used_whole_and_may_leave_variables() -> None:
    model = two_layers()
    with refused(model, r"\+ unused: extra", kt.RestoreError):
        kt.restore(model, without(extra=np.ones(2)))
    report = kt.restore(model, {"head/bias": [7, 8]})
    assert report.missing == ("trunk/kernel", "trunk/bias", "head/kernel")
    np.testing.assert_array_equal(value(model.get_layer("head").bias), [7, 8])


@pytest.mark.parametrize("reaction", ["ignore", "warn"])
def test_that_nothing_matches_is_always_an_error(reaction: str) -> None:
    model = two_layers()
    with refused(
        model, "No key of .* leads to a selected variable. Keys look like", kt.RestoreError
    ):
        kt.restore(model, {"x": np.ones(2)}, on_missing=reaction, on_unexpected=reaction)
    with refused(model, "No variable is selected", kt.RestoreError):
        kt.restore(model, ALL, include="head", exclude="head")


def test_all_problems_are_told_at_once() -> None:
    model = two_layers(name="resnet")
    arrays = without("head/kernel", "head/bias", **{"head/kernel": np.ones((3, 5)), "fc/b": [1.0]})
    with refused(model, "Cannot restore 2 of 4 variables of 'resnet' from 'w.npz'") as _:
        kt.restore(model, saved(arrays), on_unexpected="error", exclude=["trunk", "tail"])
    try:
        kt.restore(model, saved(arrays), on_unexpected="error", rename={"nope": "x"})
    except kt.RestoreError as error:
        message = str(error)
    for line in (
        "! head/kernel: (3, 2) in the model, (3, 5) under key 'head/kernel'",
        "- missing: head/bias",
        "+ unused: fc/b",
        "Rename rule 'nope' matches no key",
        "Nothing was changed.",
        "exclude=['head']",
    ):
        assert line in message


def test_values_are_cast_to_the_variables_dtype() -> None:
    inputs = keras.Input((4,))
    layer = keras.layers.Dense(2, name="half", dtype="float16")
    model = keras.Model(inputs, layer(inputs))
    kt.restore(model, {"half/kernel": np.full((4, 2), 1 / 3), "half/bias": [1, 2]})
    np.testing.assert_array_equal(value(layer.kernel), np.full((4, 2), 1 / 3).astype("float16"))
    with refused(
        model, "half/bias: the tensor under key 'half/bias' has values outside the range of float16"
    ):
        kt.restore(model, {"half/bias": [1e6, 0.0]})


def test_seeds_are_no_weights_and_are_left_alone() -> None:
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dropout(0.5)(keras.layers.Dense(2, name="d")(inputs)))
    seed = next(v for v in model.variables if "seed" in v.path)
    before = value(seed)
    report = kt.restore(model, saved({"d/kernel": np.ones((4, 2)), "d/bias": np.ones(2)}))
    assert report.missing == ()
    np.testing.assert_array_equal(value(seed), before)


def test_an_open_checkpoint_is_a_source_and_stays_open() -> None:
    with kt.open_checkpoint(saved(ALL)) as checkpoint:
        kt.restore(two_layers(), checkpoint)
        assert checkpoint["head/bias"][0] == 4


class Unreadable(ArraysCheckpoint):
    """A checkpoint whose tensors cannot be read."""

    def _view(self, key: str) -> np.ndarray:
        raise OSError(f"bad sector under {key}")


def test_a_plan_reads_no_tensor_and_says_what_a_restore_does() -> None:
    model = two_layers()
    before = values(model)
    planned = kt.plan_restore(model, Unreadable(ALL), exclude=["head/bias"])
    assert_same(values(model), before)
    assert not planned.applied
    assert planned.problems == ()
    done = kt.restore(model, ALL, exclude=["head/bias"])
    assert done.applied
    for field in ("restored", "missing", "unexpected", "mismatched", "excluded", "bytes"):
        assert getattr(planned, field) == getattr(done, field)
    with refused(model, "Cannot read 'trunk/kernel'.*bad sector under trunk/kernel"):
        kt.restore(model, Unreadable(ALL))


def test_a_plan_lists_the_problems_instead_of_raising() -> None:
    report = kt.plan_restore(two_layers(), saved(without("head/bias")))
    assert report.problems == ("- missing: head/bias",)


def test_a_failure_while_assigning_puts_all_values_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = two_layers()
    last = model.weights[-1]
    original = type(last).assign

    def assign(self: Any, new: Any) -> Any:
        if self is last and np.all(np.asarray(new) == 4):
            raise MemoryError("no room")
        return original(self, new)

    monkeypatch.setattr(type(last), "assign", assign)
    with refused(model, "no room", MemoryError):
        kt.restore(model, ALL)


def test_arrays_in_memory_are_not_touched_by_training() -> None:
    kernel = np.ones((64, 64), "float32")
    inputs = keras.Input((64,))
    model = keras.Model(inputs, keras.layers.Dense(64, name="d", use_bias=False)(inputs))
    kt.restore(model, {"d/kernel": kernel})
    model.compile("sgd", "mse")
    model.train_on_batch(np.ones((2, 64)), np.zeros((2, 64)))
    assert (kernel == 1).all()
    assert not (value(model.weights[0]) == 1).all()


def test_the_report_for_programs_and_people() -> None:
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
    assert text.splitlines()[0].endswith("; 1 unexpected; 1 excluded")
    assert re.search(r"excluded.*head/bias", text)
    assert re.search(r"unexpected.*extra", text)
    assert "trunk/{bias,kernel}" in report._repr_html_()
    with pytest.raises(AttributeError, match="cannot assign"):
        report.missing = ()
    with pytest.raises(TypeError, match="item assignment"):
        report.restored["x"] = "y"


def test_verbose_prints_the_report_and_a_bar_where_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = kt.restore(two_layers(), ALL)
    assert capsys.readouterr().out == ""
    report = kt.restore(two_layers(), ALL, verbose=1)
    assert capsys.readouterr().out == f"{report}\n"
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "UNIT", 1)
    kt.restore(two_layers(), ALL, verbose=1)
    nbytes = 4 * sum(array.size for array in ALL.values())
    assert f"{2 * nbytes}/{2 * nbytes}" in capsys.readouterr().out
    kt.restore(two_layers(), ALL)
    assert capsys.readouterr().out == ""


def expand(text: str) -> list[str]:
    """All names that a folded text stands for."""
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
def test_a_fold_stands_for_exactly_its_members(names: list[str]) -> None:
    folded = fold(names)
    members = [name for _, group in folded for name in group]
    assert sorted(members) == sorted(set(names))
    for text, group in folded:
        assert sorted(expand(text)) == sorted(group)


def test_folds_read_as_a_person_would_write_them() -> None:
    names = [
        f"block{b}_conv{c}/{leaf}"
        for b in range(1, 6)
        for c in (1, 2)
        for leaf in ("kernel", "bias")
    ]
    assert [text for text, _ in fold(names)] == ["block{1..5}_conv{1,2}/{bias,kernel}"]
    dotted = [name.replace("/", ".") for name in names]
    assert [text for text, _ in fold(dotted)] == ["block{1..5}_conv{1,2}.{bias,kernel}"]
