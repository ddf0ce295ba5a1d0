from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, two_replicas, value
from tests.training.small_models import Mixed, Subclassed, lazy

T = kt.transforms
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 6)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")


class Watch(keras.callbacks.Callback):
    """Records whether the model is built as training begins, and counts batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def on_train_begin(self, logs: Any = None) -> None:
        self.built = len(self.model.weights), self.model.optimizer.built

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1


def dataset(kind: str) -> Any:
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    if kind == "dataset":
        return batches
    if kind == "unknown length":
        return batches.filter(lambda x, y: True)
    return ((X[i : i + 8], Y[i : i + 8]) for i in (0, 8, 16))


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # stock Keras warns too
@pytest.mark.parametrize("kind", ["dataset", "unknown length", "generator"])
@pytest.mark.parametrize("model_class", [Subclassed, Mixed])
def test_builds_lazy_models_early_without_losing_batches(kind: str, model_class: Any) -> None:
    model, watch = lazy(model_class), Watch()
    model.compile("adam", "mse")
    model.fit(dataset(kind), verbose=0, shuffle=False, callbacks=[watch])
    assert watch.batches == 3
    early = model_class is Mixed or keras.backend.backend() != "tensorflow"
    assert watch.built == ((8, True) if early else (0, False))


def test_lazy_models_train_exactly_as_in_keras() -> None:
    results = []
    for model_class in (Subclassed, Mixed):
        model = lazy(model_class)
        model.compile("adam", "mse", metrics=["mae"])
        history = model.fit(
            X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0, validation_data=(X, Y)
        ).history
        results.append(([value(v) for v in model.variables], history))
    assert_same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


class LooksAtValues(kt.TrainOpsMixin, keras.Model):
    """Runs eagerly only: it cannot be built from shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.dense = keras.layers.Dense(2, name="dense")

    def call(self, x: Any, training: bool = False) -> Any:
        assert float(x[0, 0]) < 1e9
        return self.dense(self.norm(x, training=training))


@pytest.mark.backends("tensorflow")  # elsewhere Keras must build it
def test_leaves_models_that_shapes_cannot_build_alone() -> None:
    model = LooksAtValues()
    model.compile(
        "sgd", "mse", run_eagerly=True, variables_to_train="dense", gradient_transforms=T.Scale(2.0)
    )
    model.fit(X, Y, verbose=0)
    assert [v.path.split("/")[-2] for v in model.trainable_variables] == ["dense", "dense"]
    assert model.optimizer.iterations == 1


@pytest.mark.backends("tensorflow")  # elsewhere Keras must build it
def test_updates_of_an_unbuilt_model_are_refused() -> None:
    model = LooksAtValues()
    model.compile("sgd", "mse", run_eagerly=True, updates=[kt.updates.LayerUpdates()])
    with pytest.raises(
        ValueError, match=r"(?s)need a model that is built.*`model\(x\)`. The reason: "
    ):
        model.fit(X, Y, verbose=0)
    model(X)
    model.fit(X, Y, verbose=0)
    assert (value(model.norm.moving_mean) != 0).all()


@pytest.mark.backends("tensorflow")
@pytest.mark.parametrize(
    ("outside", "message"), [("optimizer", "/iteration' was not"), ("model", "/kernel' was not")]
)
def test_a_strategy_has_the_model_and_its_optimizer(outside: str, message: str) -> None:
    """An optimizer that `compile` makes itself is in the scope of the model's strategy."""
    scope, optimizer = two_replicas().scope, keras.optimizers.Adam()
    with contextlib.nullcontext() if outside == "model" else scope():
        model = kt.TrainOpsModel(i := keras.Input((6,)), keras.layers.Dense(2)(i))
    with scope(), pytest.raises(ValueError, match=message):
        model.compile(keras.optimizers.Adam() if outside == "model" else optimizer, "mse")
    if outside == "optimizer":
        model.compile("adam", "mse")
        model.fit(X, Y, verbose=0)
