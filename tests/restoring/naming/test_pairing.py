from __future__ import annotations

import pytest

import keras_trainops as kt
from tests.helpers import assert_same, refused, weights
from tests.restoring.nested_models import FORMATS, made, net

pytestmark = pytest.mark.once


def test_two_possible_keys_are_listed_and_refused() -> None:
    source = made(net("sequential", "functional"))
    trunk = ("functional", "trunk", (("dense",),))
    target = made(("sequential", "net", (trunk, ("new_head",))), 1000)
    source.save("m.keras")
    for hint in (
        "dense/kernel could be 'dense/kernel' or 'backbone/dense/kernel'",
        "Choose one with a rename rule",
    ):
        with refused(target, hint, kt.RestoreError):
            kt.restore(target, "m.keras", exclude=["new_head"])
    rules = {r"backbone/(.*)": r"trunk/\1", r"dense/.*": None}
    kt.restore(target, "m.keras", exclude=["new_head"], rename=rules)
    assert_same(weights(target)[:2], weights(source)[:2])


def test_swapped_paths_are_resolved_or_refused() -> None:
    """Inside `a`, the layer `dense` of the inner model `a` has the path of the outer `dense`."""
    spec = ("sequential", "a", (("functional", "a", (("dense",),)), ("dense",)))
    source, target = made(spec), made(spec, 1000)
    assert [v.path for v in source.weights[::2]] == ["dense/kernel", "a/dense/kernel"]
    for written in ("model", ".keras", ".weights.h5"):
        target = made(spec, 1000)
        kt.restore(target, FORMATS[written](source))
        assert_same(weights(target), weights(source))
    for written in (".npz", "paths"):
        target = made(spec, 1000)
        with refused(target, "names 2 variables", kt.RestoreError):
            kt.restore(target, FORMATS[written](source))
