"""Interrupted and run again, a run ends bit for bit as the uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same
from tests.session.runs import (
    EPOCHS,
    Interrupt,
    Interrupted,
    InterruptEnd,
    X,
    Y,
    callbacks,
    net,
    state,
    train,
)


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
        with pytest.raises(Interrupted, match="before batch"):
            train("run", Interrupt(at))
    assert_same_run(train("run"), whole)


def test_without_a_session_it_is_the_same_run(whole: Any) -> None:
    model = net()
    beside = callbacks()
    model.fit(X, Y, batch_size=4, epochs=EPOCHS, verbose=0, shuffle=False, callbacks=beside)
    assert_same_run(model, whole)


def test_fewer_epochs_then_more_then_nothing_to_do(whole: Any) -> None:
    train("run", epochs=2)
    train("run")
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
    with pytest.raises(Interrupted, match="before batch"):
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

    torch.manual_seed(1)
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
@pytest.mark.parametrize("kind", ["arrays", "unknown"])
def test_between_the_last_batch_of_an_epoch_and_its_end(kind: str) -> None:
    """Where nobody knows how many batches there are, the last may not be known as such."""

    def run(name: str, *more: Any) -> Any:
        return train(name, *more, model=watcher(), data=DATA[kind](), epochs=3, beside=[])

    whole = run("whole")
    with pytest.raises(Interrupted, match="as epoch 1 ends"):
        run("run", InterruptEnd(1))
    resumed = run("run")
    assert_same(state(resumed), state(whole))
    assert resumed.history.history == whole.history.history


# Each kind of data where it is most likely to go wrong.
HERE = {
    "tensorflow": ["arrays", "PyDataset", "tf.data", "unknown", "endless"],
    "jax": ["tf.data", "unknown", "shared"],
    "torch": ["arrays", "batch", "PyDataset", "endless", "generator", "loader"],
}


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.filterwarnings("ignore:.shuffle=True. was passed")
@pytest.mark.parametrize("kind", HERE[keras.backend.backend()])
def test_data_go_on_where_they_were(kind: str) -> None:
    def run(name: str, *more: Any) -> Any:
        model = watcher()
        return train(name, *more, model=model, data=DATA[kind](), epochs=3, beside=[])

    whole = run("whole")
    with pytest.raises(Interrupted, match="before batch"):
        run("run", Interrupt(14))
    resumed = run("run")
    assert_same(state(resumed), state(whole))
    assert resumed.history.history == whole.history.history


@pytest.mark.backends("tensorflow", "jax")  # PyTorch has no such option in Keras
def test_blocks_of_steps(whole: Any) -> None:
    """Of 10 batches in blocks of 4."""
    whole_in_blocks = train("whole", model=net(steps_per_execution=4))
    with pytest.raises(Interrupted, match="before batch"):
        train("run", Interrupt(5), model=net(steps_per_execution=4))
    resumed = train("run", model=net(steps_per_execution=4))
    assert_same(state(resumed), state(whole_in_blocks))
    assert resumed.history.history == whole_in_blocks.history.history


@pytest.mark.backends("tensorflow")
def test_other_blocks_than_it_had_are_refused() -> None:
    with pytest.raises(Interrupted, match="before batch"):
        train("run", Interrupt(5))
    with pytest.raises(
        ValueError, match=r"at batch \d of its epoch.*multiple of steps_per_exec.*=7"
    ):
        train("run", model=net(steps_per_execution=7))


def test_validation_and_lazily_built_models() -> None:
    class Lazy(kt.TrainOpsMixin, keras.Model):
        def __init__(self) -> None:
            super().__init__(name="lazy")
            self.drop = keras.layers.Dropout(0.2, seed=1, name="drop")
            self.head = keras.layers.Dense(2, name="head")

        def call(self, x: Any, training: bool = False) -> Any:
            return self.head(self.drop(x, training=training))

    def run(name: str, *more: Any) -> Any:
        keras.backend.clear_session()
        keras.utils.set_random_seed(3)
        model = Lazy()
        model.compile("adam", "mse", metrics=["mae"])
        data = {"x": X, "y": Y, "shuffle": False, "validation_data": (X[:8], Y[:8])}
        stop = keras.callbacks.EarlyStopping("val_loss", patience=0, min_delta=1.0)
        return train(name, *more, model=model, data=data, beside=[stop])

    whole = run("whole")
    assert whole.history.epoch == [0, 1]  # it stopped early
    with pytest.raises(Interrupted, match="before batch"):
        run("run", Interrupt(15))
    for _ in range(2):  # and does not train on when it is run again
        resumed = run("run")
        assert_same(state(resumed), state(whole))
        assert resumed.history.history == whole.history.history
    log = Path("run/session.log").read_text(encoding="utf-8")
    assert "nothing is left to do: a callback stopped training in epoch 2" in log
