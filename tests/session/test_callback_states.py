from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tests.session.runs import train


def test_resumes_what_training_changed_in_callbacks() -> None:
    class Counts(keras.callbacks.Callback):
        def __init__(self, limit: int, held: np.ndarray) -> None:
            super().__init__()
            self.limit, self.held = limit, held
            self.seen, self.best, self.small = 0, None, np.zeros(3)
            self.table = {"epochs": [], "last": float("inf")}
            self.net = object()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seen += 1
            self.small += epoch  # in place
            self.best = [np.full((600, 600), float(epoch))]
            self.table["epochs"].append(epoch)
            self.table["last"] = logs["loss"]

    held = np.zeros((600, 600))
    first, second = Counts(3, held), Counts(5, held + 1)
    train("run", beside=[first], epochs=2)
    train("run", beside=[second], epochs=2)
    assert (second.limit, second.seen) == (5, 2)
    assert second.held[0, 0] == 1
    assert second.small.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(second.best[0], first.best[0])
    assert second.table == first.table
