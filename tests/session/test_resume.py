"""Interrupted and run again, a run ends bit for bit as the uninterrupted one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from helpers import assert_same
from runs import EPOCHS, Interrupt, Interrupted, X, Y, net, state, train

import keras_trainops as kt

TRACED = pytest.mark.backends("tensorflow", "jax")  # PyTorch has no such option in Keras
TF = pytest.mark.backends("tensorflow")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The uninterrupted run."""
    model = train(tmp_path_factory.mktemp("whole") / "run")
    return state(model), model.history.history


def assert_same_run(resumed: Any, whole: Any) -> None:
    values, history = whole
    assert_same(state(resumed), values)
    assert resumed.history.history == history
    assert resumed.history.epoch == list(range(len(history["loss"])))


def test_within_an_epoch_at_its_beginning_and_twice(whole: Any) -> None:
    for at in (3, 7, 12):  # of the batches of each process: steps 3, 10 (an epoch's first), 22
        with pytest.raises(Interrupted):
            train("run", Interrupt(at))
    assert_same_run(train("run"), whole)


def test_a_run_that_is_never_interrupted_is_the_one_without_a_session() -> None:
    model = net()
    model.fit(X, Y, batch_size=4, epochs=EPOCHS, verbose=0, shuffle=False)
    assert_same(state(train("run", beside=[])), state(model))


def test_run_again_after_its_end_nothing_changes(whole: Any) -> None:
    train("run")
    assert_same_run(train("run"), whole)


def test_more_epochs_than_it_had(whole: Any) -> None:
    train("run", epochs=2)
    assert_same_run(train("run"), whole)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_a_warm_start_beside_it(first: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def run(name: str, *more: Any) -> Any:
        start = kt.WarmStart({"head/bias": [5.0, 6.0]})
        session = kt.TrainingSession(name, save_steps=1, summary_steps=None, verbose=0)
        model = net()
        callbacks = [start, session] if first else [session, start]
        model.fit(X, Y, batch_size=4, verbose=0, shuffle=False, callbacks=[*callbacks, *more])
        return model

    uninterrupted = run("whole")
    with pytest.raises(Interrupted):
        run("run", Interrupt(4))
    assert "restored 1 of" in capsys.readouterr().out
    assert_same(state(run("run")), state(uninterrupted))
    assert "WarmStart skipped: the session goes on from step" in capsys.readouterr().out
    assert "WarmStart skipped" in Path("run/session.log").read_text(encoding="utf-8")


class Pairs(keras.utils.PyDataset):
    """Shuffles itself after each epoch."""

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

    pairs = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return torch.utils.data.DataLoader(pairs, batch_size=4, shuffle=True)


def generator() -> Iterator[Any]:
    rng = np.random.default_rng(1)
    while True:
        rows = rng.integers(0, 40, size=4)
        yield X[rows], Y[rows]


DATA: dict[str, Callable[[], dict[str, Any]]] = {
    "arrays": lambda: {"x": X, "y": Y},  # which `fit` shuffles
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
    """Lets the order of the data decide what the weights become, and nothing else."""

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


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.filterwarnings("ignore:.shuffle=True. was passed")
@pytest.mark.parametrize("kind", DATA)
def test_data_go_on_where_they_were(kind: str) -> None:
    def run(name: str, *more: Any) -> Any:
        model = watcher()
        return train(name, *more, model=model, data=DATA[kind](), epochs=3, beside=[])

    whole = run("whole")
    for at in (4, 11):
        with pytest.raises(Interrupted):
            run("run", Interrupt(at))
    resumed = run("run")
    assert_same(state(resumed), state(whole))
    assert resumed.history.history == whole.history.history
    plain = watcher()
    plain.fit(
        **{"batch_size": 4, **DATA[kind]()} if "y" in DATA[kind]() else DATA[kind](),
        epochs=3,
        verbose=0,
    )
    assert_same(state(plain), state(whole))
