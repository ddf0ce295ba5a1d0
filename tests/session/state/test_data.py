from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same
from tests.session.runs import Interrupt, Interrupted, InterruptEnd, X, Y, net, state, train
from tests.session.small_runs import SMALL_X, SMALL_Y, model, steps


class Pairs(keras.utils.PyDataset):
    """A dataset that shuffles itself after each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.order = np.arange(40)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> Any:
        rows = self.order[4 * i : 4 * i + 4]
        return X[rows], Y[rows]

    def on_epoch_end(self) -> None:
        np.random.shuffle(self.order)


def dataset() -> Any:
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(40, seed=5)


def loader() -> Any:
    import torch

    torch.manual_seed(1)
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return torch.utils.data.DataLoader(pairs, batch_size=4, shuffle=True)


def generator() -> Iterator[Any]:
    rng = np.random.default_rng(1)
    while True:
        rows = rng.integers(0, 40, size=4)
        yield X[rows], Y[rows]


DATA: dict[str, Callable[[], dict[str, Any]]] = {
    "arrays": lambda: {"x": X, "y": Y},  # shuffled by `fit`
    "batch": lambda: {"x": X, "y": Y, "shuffle": "batch"},
    "PyDataset": lambda: {"x": Pairs(), "shuffle": True},
    "tf.data": lambda: {"x": dataset().batch(4), "shuffle": False},
    "unknown": lambda: {"x": dataset().batch(4).filter(lambda x, y: True), "shuffle": False},
    "endless": lambda: {"x": dataset().repeat().batch(4), "steps_per_epoch": 7, "shuffle": False},
    "shared": lambda: {"x": X, "y": Y, "steps_per_epoch": 7},
    "generator": lambda: {"x": generator(), "steps_per_epoch": 7, "shuffle": False},
    "loader": lambda: {"x": loader(), "shuffle": False},
}


class Batches(keras.layers.Layer):
    """A layer with a weight that depends only on the order of the data."""

    def build(self, shape: Any) -> None:
        self.sum = self.add_weight(shape=(6,), initializer="zeros", name="sum", trainable=False)

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.sum.assign(0.9 * self.sum + keras.ops.sum(x, axis=0))
        return x


def watcher(**options: Any) -> Any:
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = Batches(name="batches")(inputs)
    model = kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="head")(x))
    model.compile("sgd", "mse", metrics=["mae"], **options)
    return model


def assert_resumes_equal(kind: str, interrupt: keras.callbacks.Callback, message: str) -> None:
    def run(name: str, *more: Any) -> Any:
        return train(name, *more, model=watcher(), data=DATA[kind](), epochs=3, beside=[])

    whole = run("whole")
    with pytest.raises(Interrupted, match=message):
        run("run", interrupt)
    resumed = run("run")
    assert_same(state(resumed), state(whole))
    assert resumed.history.history == whole.history.history


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("kind", ["arrays", "unknown"])
def test_resumes_between_last_batch_and_epoch_end(kind: str) -> None:
    """If the number of batches is unknown, the last one is not known to be the last."""
    assert_resumes_equal(kind, InterruptEnd(1), "as epoch 1 ends")


# Each kind of data on the backends that are most likely to get it wrong.
HERE = {
    "tensorflow": ["arrays", "PyDataset", "tf.data", "unknown", "endless"],
    "jax": ["tf.data", "unknown", "shared"],
    "torch": ["arrays", "batch", "PyDataset", "endless", "generator", "loader"],
}


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.filterwarnings("ignore:.shuffle=True. was passed")
@pytest.mark.parametrize("kind", HERE[keras.backend.backend()])
def test_data_continue_where_they_were(kind: str) -> None:
    assert_resumes_equal(kind, Interrupt(14), "before batch")


@pytest.mark.backends("tensorflow")
def test_refuses_blocks_of_another_size() -> None:
    with pytest.raises(Interrupted, match="before batch"):
        train("run", Interrupt(5))
    with pytest.raises(
        ValueError, match=r"at batch \d of its epoch.*multiple of steps_per_exec.*=7"
    ):
        train("run", model=net(steps_per_execution=7))


def test_refuses_a_generator_with_too_few_batches() -> None:
    def data(batches: int) -> Any:
        return ((SMALL_X[4 * i : 4 * i + 4], SMALL_Y[4 * i : 4 * i + 4]) for i in range(batches))

    def train(batches: int, **options: Any) -> None:
        session = kt.TrainingSession("run", summary_steps=None, verbose=0, **options)
        model().fit(data(batches), shuffle=False, verbose=0, callbacks=[session])

    train(9, stop_at_step=7)
    with pytest.raises(ValueError, match=r"fewer batches than the resumed run had already seen"):
        train(5)
    assert steps("run") == [7]
