from __future__ import annotations

from typing import Any

import keras
import pytest

import keras_trainops as kt
from tests.updates.run_log import Log


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Log(every=0), r"`every` must be an integer >= 1\. Received: every=0"),
        (lambda: Log(every=1.5), r"`every` must be an integer >= 1\. Received: every=1\.5"),
        (lambda: Log(on="epoch"), r'`on` must be "update" or "batch"\. Received: on=\'epoch\''),
    ],
)
def test_rejects_invalid_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_configuration_restores_the_update() -> None:
    config = keras.saving.serialize_keras_object(Log(digit=3, every=2, on="batch"))
    again = keras.saving.deserialize_keras_object(config)
    assert (type(again), again.digit, again.every, again.on) == (Log, 3, 2, "batch")


def test_only_an_overridden_start_counts() -> None:
    assert not Log().starts_from_weights
    assert kt.updates.TargetNetwork("a", "b", tau=0.1).starts_from_weights
