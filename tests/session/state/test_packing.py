from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from keras_trainops.session.state.packing import is_attribute, packed, references, unpacked

pytestmark = pytest.mark.once


def test_arrays_leave_the_document_and_come_back() -> None:
    arrays: dict[str, np.ndarray] = {}
    value = {"best": np.float32(0.5), "weights": [np.ones(2), {"bias": np.zeros(1)}], "on": True}
    document = json.loads(json.dumps(packed(value, "Stop/0/best", arrays)))
    assert sorted(references(document)) == sorted(arrays)
    assert set(arrays) == {
        "callbacks/Stop/0/best/weights/0",
        "callbacks/Stop/0/best/weights/1/bias",
    }
    back = unpacked(document, arrays)
    assert (back["best"], back["on"]) == (0.5, True)
    np.testing.assert_array_equal(back["weights"][0], [1, 1])
    np.testing.assert_array_equal(back["weights"][1]["bias"], [0])


@pytest.mark.parametrize(
    "plain", [{"array": "dense/kernel"}, {"array": [1]}, {"array": "callbacks/x", "more": 1}]
)
def test_other_dictionaries_are_no_references(plain: dict[str, Any]) -> None:
    assert list(references(plain)) == []
    assert unpacked(plain, {"dense/kernel": np.ones(1), "callbacks/x": np.ones(1)}) == plain


@pytest.mark.parametrize(
    ("name", "expected"),
    [("best", True), ("_model", False), ("a b", False), ("set_model", False), ("model", False)],
)
def test_state_is_in_public_attributes_of_a_callback(name: str, expected: bool) -> None:
    assert is_attribute(name) is expected
