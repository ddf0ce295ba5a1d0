from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from keras_trainops.scalars import (
    check_decay,
    check_number,
    check_positive,
    check_whole,
    deserialize_number,
    is_number,
    serialize_number,
    value_at,
)

SCHEDULE = keras.optimizers.schedules.PiecewiseConstantDecay([10], [1.0, 0.25])


@pytest.mark.parametrize("number", [0, -1.5, np.float32(2), np.int64(3), SCHEDULE])
def test_constants_and_schedules_are_numbers(number: Any) -> None:
    assert is_number(number)


@pytest.mark.parametrize("value", [True, np.bool_(True), "1", None, float("nan"), float("inf"), 1j])
def test_other_values_are_not_numbers(value: Any) -> None:
    assert not is_number(value)


def test_schedules_have_a_value_per_update() -> None:
    assert value_at(0.5, 30) == 0.5
    assert [float(value_at(SCHEDULE, step)) for step in (3, 30)] == [1.0, 0.25]


def test_checked_numbers_are_plain_python() -> None:
    assert type(check_positive("limit", np.float32(0.5))) is float
    assert type(check_whole("count", np.int64(3), 1)) is int
    assert check_whole("count", None, 1, optional=True) is None
    assert check_positive("limit", SCHEDULE, scheduled=True) is SCHEDULE
    assert check_positive("limit", None, optional=True) is None
    assert [check_decay(decay) for decay in (0, 0.5)] == [0, 0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: check_positive("limit", 0), r"`limit` must be > 0\. Received: limit=0"),
        (lambda: check_decay(1), r"`decay` must be at least 0 and below 1\. Received: decay=1"),
        (lambda: check_positive("limit", SCHEDULE), r"`limit` must be > 0\. Received: limit=<"),
        (
            lambda: check_whole("count", 0, 1),
            r"`count` must be an integer >= 1\. Received: count=0",
        ),
        (lambda: check_whole("count", 1.0, 1), r"`count` must be an integer >= 1\. Received"),
        (
            lambda: check_number("share", 2, "below 1", lambda x: x < 1, optional=True),
            r"`share` must be below 1, or None\. Received: share=2",
        ),
    ],
)
def test_rejects_numbers_that_are_not_valid(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_configuration_restores_constants_and_schedules() -> None:
    assert deserialize_number(serialize_number(0.5)) == 0.5
    again = deserialize_number(serialize_number(SCHEDULE))
    assert again.get_config() == SCHEDULE.get_config()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_configuration_restores_variables_by_value(dtype: str) -> None:
    variable = keras.Variable(2, trainable=False, dtype=dtype, name="factor")
    again = deserialize_number(serialize_number(variable))
    assert (float(value_at(again, None)), again.dtype, again.name) == (2.0, dtype, "factor")
    assert again is not variable
    assert not again.trainable
