from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_trainops.values import (
    are_unchanged,
    assign_copies,
    copies_of,
    copy_of,
    parts_of,
    tensor_of,
)
from tests.helpers import two_replicas


def test_copy_does_not_follow_the_variable() -> None:
    variable = keras.Variable(np.ones(3))
    copy = copy_of(variable)
    variable.assign(np.zeros(3))
    np.testing.assert_array_equal(copy, np.ones(3))
    copy[0] = 5
    np.testing.assert_array_equal(copy_of(variable), np.zeros(3))


def test_assigned_copies_restore_the_value() -> None:
    variable = keras.Variable([1.0, 2.0])
    copies = copies_of(variable)
    variable.assign([3.0, 4.0])
    assign_copies(variable, copies)
    np.testing.assert_array_equal(copy_of(variable), [1, 2])


def test_unchanged_is_bit_for_bit() -> None:
    first, second = keras.Variable([np.nan, 2.0]), keras.Variable([0.0])
    taken = [(v, copies_of(v)) for v in (first, second)]
    assert are_unchanged(taken) == [True, True]
    second.assign([-0.0])
    assert are_unchanged(taken) == [True, False]
    assert are_unchanged([]) == []


def test_a_tensor_of_a_value_does_not_follow_the_variable() -> None:
    variable = keras.Variable([1.0, 2.0])
    tensor, half = tensor_of(variable), tensor_of(variable, "float16")
    variable.assign([3.0, 4.0])
    assert keras.ops.convert_to_numpy(tensor).tolist() == [1, 2]
    assert keras.backend.standardize_dtype(half.dtype) == "float16"


def test_variable_on_one_device_is_its_only_part() -> None:
    variable = keras.Variable(1.0)
    (part,) = parts_of(variable)
    assert part is variable


@pytest.mark.backends("tensorflow")
def test_a_variable_has_a_part_on_each_replica() -> None:
    with two_replicas().scope():
        variable = keras.Variable([1.0])
    assert len(parts_of(variable)) == 2
    assign_copies(variable, [np.array([2.0]), np.array([3.0])])
    assert [float(copy[0]) for copy in copies_of(variable)] == [2, 3]
