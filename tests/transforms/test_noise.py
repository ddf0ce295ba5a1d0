from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from tests.helpers import numpy
from tests.transforms.gradients import T


def test_noise_has_its_variance_and_its_own_seed() -> None:
    variable = keras.Variable(np.zeros((200, 200)), name="kernel")
    zeros = [ops.zeros((200, 200))]

    def draws(noise: T.Noise, count: int) -> list[np.ndarray]:
        noise.build([variable])
        return [numpy(noise(zeros, [variable])[0]) for _ in range(count)]

    first = draws(T.Noise(0.04, decay=0.55, seed=1), 10)
    for step, drawn in enumerate(first):
        assert np.abs(drawn.mean()) < 0.005
        assert drawn.std() == pytest.approx(np.sqrt(0.04 / (1 + step) ** 0.55), rel=0.02)
    assert np.abs(np.corrcoef(first[0].ravel(), first[1].ravel())[0, 1]) < 0.02
    again, other = draws(T.Noise(0.04, seed=1), 1), draws(T.Noise(0.04, seed=2), 1)
    np.testing.assert_array_equal(again[0], first[0])
    assert np.abs(other[0] - first[0]).max() > 0.1
    assert T.Noise().seed != T.Noise().seed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.Noise(-1.0), r"`variance` must be >= 0. Received: variance=-1.0"),
        (lambda: T.Noise(seed=1.5), r"`seed` must be an integer or None"),
    ],
)
def test_rejects_invalid_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
