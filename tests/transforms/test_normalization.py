from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

import keras_trainops as kt
from tests.helpers import value
from tests.transforms.gradients import GRADIENTS, T, close, each, run

COLUMNS = {"kernel": (0,)}


def test_centralize_follows_its_formula() -> None:
    out = run(T.Centralize(axes=COLUMNS))
    kernels = [0, 3]
    expected = [
        g - g.mean(0) if i in kernels else g for i, g in enumerate(GRADIENTS) if g is not None
    ]
    close([g for g in out if g is not None], expected)


def test_normalize_follows_its_formula() -> None:
    norm = np.sqrt(sum((g**2).sum() for g in GRADIENTS if g is not None))
    close(run(T.Normalize(2.0)), each(lambda g: 2.0 * g / (norm + 1e-6)))
    alone = T.Normalize(2.0, scope="variable")
    close(run(alone), each(lambda g: 2.0 * g / (np.linalg.norm(g) + 1e-6)))


def test_trust_follows_its_formula() -> None:
    weights = [np.sqrt(g.size) for g in GRADIENTS if g is not None]  # norms of ones
    ratios = iter([w / np.linalg.norm(g) for w, g in zip(weights, present(), strict=True)])
    close(run(T.Trust()), each(lambda g: g * next(ratios)))
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([10], [1.0, 0.25])
    ratios = iter([0.25 * w / np.linalg.norm(g) for w, g in zip(weights, present(), strict=True)])
    close(run(T.Trust(schedule), iterations=30), each(lambda g: g * next(ratios)))


def test_trust_is_lars() -> None:
    """Against the paper's own form, with weight decay in the gradient, and momentum."""
    w = keras.Variable(np.full((2, 2), 0.5), dtype="float32", name="w")
    lars = kt.TransformedOptimizer(keras.optimizers.SGD(1.0, momentum=0.9), T.Trust(0.1))
    lars.build([w])
    expected, velocity = np.full((2, 2), 0.5), np.zeros((2, 2))
    for step in range(5):
        gradient = np.array([[1.0, 2.0], [-1.0, step]]) + 0.01 * expected
        rate = 0.1 * np.linalg.norm(expected) / np.linalg.norm(gradient)
        velocity = 0.9 * velocity + rate * gradient
        expected = expected - velocity
        lars.apply([ops.convert_to_tensor(gradient, "float32")], [w])
        np.testing.assert_allclose(value(w), expected, rtol=1e-5)


def present() -> list[np.ndarray]:
    return [g for g in GRADIENTS if g is not None]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.Normalize(-1.0), r"`norm` must be > 0. Received: norm=-1.0"),
        (lambda: T.Trust(0.0), r"`coefficient` must be > 0. Received: coefficient=0.0"),
        (lambda: T.Trust(min_norm=-1.0), r"`min_norm` must be >= 0. Received: min_norm=-1.0"),
        (lambda: T.Trust(epsilon=-1), r"`epsilon` must be >= 0. Received: epsilon=-1"),
        (lambda: T.Normalize(scope="all"), r'`scope` must be "global" or "variable"'),
    ],
)
def test_rejects_invalid_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
