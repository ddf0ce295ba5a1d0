from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from tests.helpers import assert_same, refused, two_layers, values
from tests.restoring.helpers import ALL, saved, without


@pytest.mark.parametrize("reaction", ["ignore", "warn"])
def test_a_plan_without_assignments_is_refused(reaction: str) -> None:
    model = two_layers()
    with refused(
        model, "No key of .* leads to a selected variable. Keys look like", kt.RestoreError
    ):
        kt.restore(model, {"x": np.ones(2)}, on_missing=reaction, on_unexpected=reaction)
    with refused(model, "No variable is selected", kt.RestoreError):
        kt.restore(model, ALL, include="head", exclude="head")


def test_all_problems_are_reported_at_once() -> None:
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


class BadSectors(ArraysCheckpoint):
    """A checkpoint whose tensors cannot be read."""

    def _view(self, key: str) -> np.ndarray:
        raise OSError(f"bad sector under {key}")


def test_a_plan_predicts_the_restore_without_reading() -> None:
    model = two_layers()
    before = values(model)
    planned = kt.plan_restore(model, BadSectors(ALL), exclude=["head/bias"])
    assert_same(values(model), before)
    assert not planned.applied
    assert planned.problems == ()
    done = kt.restore(model, ALL, exclude=["head/bias"])
    assert done.applied
    for field in ("restored", "missing", "unexpected", "mismatched", "excluded", "bytes"):
        assert getattr(planned, field) == getattr(done, field)
    with refused(model, "Cannot read 'trunk/kernel'.*bad sector under trunk/kernel"):
        kt.restore(model, BadSectors(ALL))


def test_a_plan_lists_problems_instead_of_raising() -> None:
    report = kt.plan_restore(two_layers(), saved(without("head/bias")))
    assert report.problems == ("- missing: head/bias",)


@pytest.mark.once
def test_a_model_without_variables_is_refused_with_advice() -> None:
    model = keras.Sequential([keras.layers.Dense(2)], name="lazy")
    with pytest.raises(kt.RestoreError, match=r"'lazy' has no variables yet.*Call it on a batch"):
        kt.restore(model, {"dense/bias": np.ones(2)})
