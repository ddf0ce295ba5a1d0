from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_trainops.updates.swap import Swap
from tests.helpers import value


def variables() -> list[keras.Variable]:
    return [keras.Variable(np.full(2, float(i))) for i in range(3)]


def test_leave_restores_the_values() -> None:
    first, second, _ = variables()
    swap = Swap()
    swap.enter([(first, np.full(2, 7.0)), (second, np.full(2, 8.0))])
    assert swap.is_in
    assert [value(v)[0] for v in (first, second)] == [7, 8]
    swap.leave()
    assert not swap.is_in
    assert [value(v)[0] for v in (first, second)] == [0, 1]


def test_leave_can_keep_later_assignments() -> None:
    first, second, _ = variables()
    for keep, expected in ((False, [0, 1]), (True, [0, 9])):
        swap = Swap()
        swap.enter([(first, np.full(2, 7.0)), (second, np.full(2, 8.0))])
        second.assign(np.full(2, 9.0))
        swap.leave(keep_assigned=keep)
        assert [value(v)[0] for v in (first, second)] == expected


def test_failure_in_enter_restores_all_values() -> None:
    first, second, third = variables()
    swap = Swap()

    def then() -> None:
        third.assign(np.full(2, 9.0))
        raise KeyError("then")

    with pytest.raises(KeyError, match="then"):
        swap.enter([(first, np.full(2, 7.0)), (second, np.full(2, 8.0))], then, [third])
    assert not swap.is_in
    assert [value(v)[0] for v in (first, second, third)] == [0, 1, 2]
