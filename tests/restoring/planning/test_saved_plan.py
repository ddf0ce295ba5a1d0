"""A plan in a file stands for the rules, in another process too; a damaged one does nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.restoring.planning.saved_plan import load_plan
from tests.helpers import assert_same, randomise, refused, two_layers, value, weights

pytestmark = pytest.mark.once

ARRAYS = {
    "fc1/w": np.full((3, 4), 1.0, "float32"),
    "fc1/b": np.full(3, 2.0, "float16"),
    "fc2/w": np.full((2, 3), 3.0, "float32"),
    "fc2/b": np.full(2, 4.0, "float32"),
    "more": np.zeros(2),
    "global_step": np.int64([1]),
}
RULES: dict[str, Any] = {
    "rename": {
        "fc1/w": "trunk/kernel",
        "fc1/b": "trunk/bias",
        "fc2/w": "head/kernel",
        "fc2/b": "head/bias",
    },
    "adapt": {"kernel": kt.adapt.Transpose()},
}


def saved(model: keras.Model, **options: Any) -> kt.RestoreReport:
    np.savez("theirs.npz", **ARRAYS)
    report = kt.restore(model, "theirs.npz", **{**RULES, **options})
    report.save("plan.json")
    return report


def test_a_plan_stands_for_the_rules() -> None:
    model, other = two_layers(0), two_layers(1)
    report = saved(model)
    for plan in ("plan.json", Path("plan.json"), report):
        again = kt.restore(other, "theirs.npz", plan=plan)
        assert again.restored == report.restored
        assert again.adapted == report.adapted
        assert_same(weights(other), weights(model))
    assert kt.plan_restore(other, "theirs.npz", plan="plan.json").restored == report.restored
    start = kt.WarmStart("theirs.npz", plan="plan.json", verbose=0)
    third = two_layers(2)
    third.compile(keras.optimizers.SGD(0.0), "mse")
    third.fit(np.ones((2, 4)), np.ones((2, 2)), verbose=0, callbacks=[start])
    assert_same(weights(third), weights(model))


def test_a_plan_is_small_and_readable() -> None:
    saved(two_layers())
    text = Path("plan.json").read_text()
    assert ' "trunk/kernel": {"keys": ["fc1/w"], "counted": "trunk#1/kernel", "adapt": {' in text
    assert ' "fc1/b": {"shape": [3], "dtype": "float16"}' in text
    assert ' "global_step": {"shape": [1], "dtype": "int64", "training_state": true}' in text
    assert len(text) < 1500
    plan = load_plan("plan.json")
    assert (plan.source, plan.writer) == ("theirs.npz", ".npz")
    assert [*plan.tensors] == [*ARRAYS]


def test_variables_that_the_plan_leaves_out_are_left_out() -> None:
    saved(two_layers(), exclude="head")
    model = two_layers(3)
    before = value(model.get_layer("head").kernel)
    report = kt.restore(model, "theirs.npz", plan="plan.json")
    assert report.excluded == ("head/kernel", "head/bias")
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), before)
    report = kt.restore(model, "theirs.npz", plan="plan.json", include="trunk/bias")
    assert [*report.restored] == ["trunk/bias"]


def test_a_plan_fits_a_model_of_another_name() -> None:
    inner = two_layers(name="one")
    report = saved(inner)
    other = two_layers(5, name="two")
    assert kt.restore(other, "theirs.npz", plan=report).restored.keys() == report.restored.keys()


def automatic(layers: int, seed: int = 0) -> keras.Model:
    """Layers of one shape, with automatic names."""
    model = keras.Sequential([keras.Input((3,)), *(keras.layers.Dense(3) for _ in range(layers))])
    return randomise(model, seed)


def test_automatic_numbers_do_not_mislead() -> None:
    model = automatic(3, seed=1)
    model.save_weights("theirs.weights.h5")
    kt.restore(model, "theirs.weights.h5").save("all.json")
    kt.restore(model, "theirs.weights.h5", include="dense_1").save("second.json")
    other = automatic(3, seed=2)  # its numbers go on from 3
    kt.restore(other, "theirs.weights.h5", plan="all.json")
    assert_same(weights(other), weights(model))
    before = weights(other)
    kt.write_back(other, "all.json", "ours.weights.h5")
    keras.backend.clear_session()
    keras.layers.Dense(3)
    shifted = automatic(3, seed=3)  # its first layer is `dense_1`
    with refused(shifted, "leads to '.*dense_1/kernel', which was 'dense#2/kernel' when it was"):
        kt.restore(shifted, "theirs.weights.h5", plan="second.json")
    kt.restore(shifted, "ours.weights.h5", plan="all.json")
    assert_same(weights(shifted), before)


def test_an_order_of_keys_is_kept() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="head")])
    np.savez("parts.npz", a=np.zeros((4, 2)), b=np.ones((4, 2)))
    kt.restore(
        model,
        "parts.npz",
        rename={"b": "head/kernel", "a": "head/kernel"},
        adapt={"head/kernel": kt.adapt.Concat(axis=1)},
        include="head/kernel",
    ).save("plan.json")
    model.weights[0].assign(np.zeros((4, 4)))
    kt.restore(model, "parts.npz", plan="plan.json")
    assert value(model.weights[0])[0].tolist() == [1.0, 1.0, 0.0, 0.0]


def test_a_plan_that_does_not_fit_changes_nothing() -> None:
    saved(two_layers())
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3, name="trunk")(inputs)
    other = keras.Model(inputs, keras.layers.Dense(2, name="classifier")(x))
    with refused(other, r"leads to 'head/kernel', which the model lacks\. Closest paths: "):
        kt.restore(other, "theirs.npz", plan="plan.json")
    np.savez("fewer.npz", **{k: v for k, v in ARRAYS.items() if k != "fc2/b"})
    model = two_layers()
    with refused(model, r"needs 'fc2/b', which the source lacks\. Closest keys: 'fc1/b'"):
        kt.restore(model, "fewer.npz", plan="plan.json")
    np.savez("other.npz", **{**ARRAYS, "fc2/b": np.zeros(7)})
    with refused(model, r"head/bias: \(2,\) in the model, \(7,\) under key 'fc2/b'"):
        kt.restore(model, "other.npz", plan="plan.json")


def test_a_plan_excludes_rules() -> None:
    model = two_layers()
    saved(model)
    for name in ("rename", "adapt"):
        with refused(model, f"A plan decides .* it excludes `{name}`"):
            kt.restore(model, "theirs.npz", plan="plan.json", **{name: RULES[name]})
    with refused(model, "`plan` must be the report of a restore"):
        kt.restore(model, "theirs.npz", plan=3)
    with pytest.raises(ValueError, match="there is no plan to save"):
        kt.RestoreReport("model", "source").save("x.json")


def test_a_source_that_has_changed_has_no_plan() -> None:
    model = two_layers()
    report = saved(model)
    np.savez("theirs.npz", **{"fc1/w": ARRAYS["fc1/w"]})
    with pytest.raises(
        kt.RestoreError, match=r"has changed since it was restored: it lacks 'fc1/b'"
    ):
        report.save("plan.json")
    Path("theirs.npz").unlink()
    with pytest.raises(kt.RestoreError, match=r"There is no checkpoint at 'theirs\.npz'"):
        report.save("plan.json")


def test_arrays_and_models_have_plans_too() -> None:
    model, source = two_layers(0), two_layers(1)
    arrays = {k: v for k, v in ARRAYS.items() if k != "more"}
    kt.restore(model, arrays, **RULES).save("arrays.json")
    kt.restore(model, source).save("model.json")
    other = two_layers(2)
    kt.restore(other, arrays, plan="arrays.json")
    assert value(other.weights[1]).tolist() == [2.0] * 3
    kt.restore(other, source, plan="model.json")
    assert_same(weights(other), weights(source))


def test_a_callable_cannot_be_saved() -> None:
    np.savez("theirs.npz", **ARRAYS)
    report = kt.restore(two_layers(), "theirs.npz", **{**RULES, "adapt": {"kernel": np.transpose}})
    with pytest.raises(ValueError, match=r"trunk/kernel: transpose: a callable cannot be stored"):
        report.save("plan.json")
    assert not Path("plan.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "other"}, "is not a plan that `report.save` wrote"),
        ({"version": 2}, "has version 2, but this version"),
        ({"tensors": {}}, "'fc1/w'.* which it does not list"),
        ({"tensors": None}, "is damaged"),
        ({"variables": {"trunk/bias": {"keys": []}}}, "gets no tensor"),
        ({"variables": {"trunk/bias": {"keys": ["fc1/b"], "adapt": {"adapter": "os"}}}}, "'os'"),
        ({"tensors": {"fc1/w": {"shape": [2], "dtype": "object"}}}, "is damaged"),
        ({"tensors": {"../x": {"shape": [2], "dtype": "int8"}}, "variables": {}}, "leads out of"),
        ({"structure": 1}, "is damaged"),
    ],
)
def test_a_damaged_plan_is_refused(changes: dict[str, Any], message: str) -> None:
    model = two_layers()
    saved(model)
    content = json.loads(Path("plan.json").read_text())
    Path("plan.json").write_text(json.dumps({**content, **changes}))
    with refused(model, message):
        kt.restore(model, "theirs.npz", plan="plan.json")


def test_what_is_no_plan_is_refused() -> None:
    model = two_layers()
    Path("plan.json").write_bytes(b"\x00\xff")
    Path("list.json").write_text("[1]")
    for path in ("plan.json", "missing.json", "list.json"):
        with refused(model, path):
            kt.restore(model, ARRAYS, plan=path)
