from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from keras_trainops.session.state import randomness


def document() -> Any:
    return json.loads(json.dumps(randomness.to_document(randomness.state())))


def draw() -> list[float]:
    return [random.random(), float(np.random.normal()), float(np.random.uniform())]


def test_restores_the_next_draws() -> None:
    np.random.normal()  # leaves the second of a pair of numbers in the state
    saved = document()
    first = draw()
    assert draw() != first
    randomness.restore(saved)
    assert draw() == first


def test_restores_the_next_draws_of_torch() -> None:
    torch = pytest.importorskip("torch")
    saved = document()
    first = torch.rand(3)
    randomness.restore(saved)
    assert torch.equal(torch.rand(3), first)


def test_checking_changes_no_generator() -> None:
    saved = document()
    first = draw()
    randomness.restore(saved)
    other = document()
    randomness.check(other)
    assert draw() == first


@pytest.mark.parametrize("position", [-1, 625])
def test_rejects_a_position_out_of_range(position: int) -> None:
    saved = document()
    saved["numpy"][2] = position
    with pytest.raises(ValueError, match="NumPy's generator has the wrong size"):
        randomness.check(saved)
