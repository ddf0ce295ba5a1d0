from __future__ import annotations

import numpy as np
import pytest

from keras_trainops.training.steps.logs import StepLogs
from tests.helpers import numpy


def test_values_are_averaged_by_size_until_they_are_reset() -> None:
    logs = StepLogs(["a", "b"])
    logs.update("a", 1.0, 1)
    logs.update("a", 4.0, 2)
    logs.update("b", 5.0, 3)
    found = {name: float(numpy(mean)) for name, mean in logs.result().items()}
    assert found == {"a": 3.0, "b": 5.0}
    assert len(logs.variables) == 4
    logs.reset()
    np.testing.assert_array_equal(numpy(logs.result()["a"]), 0)


def test_an_unknown_log_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"log 'b' .*Before: a"):
        StepLogs(["a"]).update("b", 1.0, 1)
