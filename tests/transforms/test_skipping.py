from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from tests.helpers import numpy
from tests.transforms.gradients import T, close


def test_zero_non_finite_replaces_nan_and_infinity() -> None:
    bad = [np.array([1.0, np.nan, np.inf]), np.array([[-np.inf, 2.0]])]
    made = [keras.Variable(np.zeros(g.shape), name=f"v{i}") for i, g in enumerate(bad)]
    zero = T.ZeroNonFinite()
    zero.build(made)
    out = [numpy(g) for g in zero([ops.convert_to_tensor(g, "float32") for g in bad], made)]
    close(out, [np.array([1.0, 0, 0]), np.array([[0, 2.0]])])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.SkipNonFinite(-1), r"`max_consecutive` must be an integer >= 0, or None"),
        (lambda: T.SkipNonFinite(1.5), r"`max_consecutive` must be an integer >= 0, or None"),
        (lambda: T.SkipNonFinite(per_batch=1), r"`per_batch` must be True or False"),
        (lambda: T.SkipLarge(0), r"`max_norm` must be > 0"),
    ],
)
def test_rejects_invalid_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
