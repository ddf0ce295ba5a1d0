"""`include_optimizer=True`: a restored run continues exactly, or is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_trainops as kt
from tests.helpers import assert_same, refused, two_layers, value, values, weights
from tests.restoring.nested_models import FORMATS, made

pytestmark = pytest.mark.once

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = np.random.default_rng(1).normal(size=(8, 2)).astype("float32")


def trained(seed: int, optimizer: Any = "adam", steps: int = 3, **names: str) -> keras.Model:
    model = two_layers(seed, **names)
    model.compile(optimizer, "mse")
    train(model, steps)
    return model


def train(model: keras.Model, steps: int) -> None:
    for _ in range(steps):
        model.train_on_batch(X, Y)


def save_legacy(model: keras.Model) -> str:
    logging.disable(logging.WARNING)  # absl warns of the format
    model.save("w.h5")
    logging.disable(logging.NOTSET)
    return "w.h5"


SOURCES: dict[str, Callable[[keras.Model], Any]] = {
    "weights.h5": lambda m: m.save_weights("w.weights.h5") or "w.weights.h5",
    "keras": lambda m: m.save("w.keras") or "w.keras",
    "legacy h5": save_legacy,
    "TF2": lambda m: tf.train.Checkpoint(model=m).write("tf2/ck"),
    "model": lambda m: m,
}


@pytest.mark.parametrize("form", SOURCES)
def test_training_continues_exactly(form: str) -> None:
    source = trained(1)
    saved = SOURCES[form](source)
    model = two_layers(2)
    model.compile("adam", "mse")
    report = kt.restore(model, saved, include_optimizer=True)
    assert len(report.optimizer) == 1 + 2 * 4
    (left,) = {v.path for v in model.optimizer.variables} - set(report.optimizer)
    assert left.endswith("/learning_rate")
    assert_same(values(model), values(source))
    train(model, 2)
    train(source, 2)
    assert_same(values(model), values(source))


def test_without_it_the_optimizer_starts_anew() -> None:
    source = trained(1)
    source.save_weights("w.weights.h5")
    model = two_layers(2)
    model.compile("adam", "mse")
    report = kt.restore(model, "w.weights.h5")
    assert report.optimizer == {}
    assert not model.optimizer.built
    assert len(report.slots) == 2 + 2 * 4


def test_the_compiled_learning_rate_stays() -> None:
    source = trained(1, keras.optimizers.Adam(0.5))
    model = two_layers(2)
    model.compile(keras.optimizers.Adam(0.25), "mse")
    kt.restore(model, source, include_optimizer=True)
    assert float(model.optimizer.learning_rate) == 0.25
    assert int(value(model.optimizer.iterations)) == 3


def test_slots_follow_their_variables_through_renames_and_selection() -> None:
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3, name="body")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="top")(x))
    model.compile("adam", "mse")
    source = trained(1, name="net")
    tf.train.Checkpoint(model=source).write("tf2/ck")
    report = kt.restore(
        model, "tf2/ck", rename={r"trunk/(\w+)": r"body/\1"}, exclude="top", include_optimizer=True
    )
    assert len(report.optimizer) == 1 + 2 * 2
    slots = {v.name: value(v) for v in model.optimizer.variables}
    theirs = {v.name: value(v) for v in source.optimizer.variables}
    for leaf in ("momentum", "velocity"):
        mine = slots[f"body_kernel_{leaf}"]
        np.testing.assert_array_equal(mine, theirs[f"trunk_kernel_{leaf}"])
        assert not slots[f"top_kernel_{leaf}"].any()


def test_the_model_name_may_differ() -> None:
    def sequential(name: str) -> keras.Model:
        layers = [keras.Input((4,)), keras.layers.Dense(2, name="head")]
        model = keras.Sequential(layers, name=name)
        model.compile("adam", "mse")
        return model

    source, model = sequential("first"), sequential("second")
    train(source, 2)
    tf.train.Checkpoint(model=source).write("tf2/ck")
    kt.restore(model, "tf2/ck", rename={"first/(.*)": r"\1"}, include_optimizer=True)
    assert_same(values(model), values(source))


@pytest.mark.parametrize("form", SOURCES)
def test_another_optimizer_is_refused(form: str) -> None:
    saved = SOURCES[form](trained(1))
    model = trained(2, keras.optimizers.SGD(0.1, momentum=0.9))
    with refused(model, "the state belongs to adam, but the model's optimizer is (sgd|SGD)"):
        kt.restore(model, saved, include_optimizer=True)


def test_reordered_layers_are_refused_by_position() -> None:
    trained(1).save_weights("w.weights.h5")
    x = inputs = keras.Input((4,))
    x = keras.layers.Dense(3, name="trunk")(x)
    more = keras.layers.Dense(2, name="more")(x)
    model = keras.Model(inputs, [keras.layers.Dense(2, name="head")(x), more])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    with refused(model, "was written by a model with different layers"):
        kt.restore(model, "w.weights.h5", exclude="more", include_optimizer=True)


def test_a_frozen_layer_is_refused_by_position() -> None:
    trained(1).save_weights("w.weights.h5")
    model = two_layers(2)
    model.get_layer("trunk").trainable = False
    model.compile("adam", "mse")
    train(model, 1)
    with refused(model, "10 variables of an optimizer.*different variables were trained"):
        kt.restore(model, "w.weights.h5", include_optimizer=True)


def test_sources_without_a_state_are_refused() -> None:
    source, model = two_layers(1), trained(2)
    source.save_weights("w.weights.h5")
    for saved in ("w.weights.h5", source, {"head/bias": np.ones(2)}):
        with refused(model, "contains no optimizer state"):
            kt.restore(model, saved, include_optimizer=True)
    plain = two_layers(3)
    with refused(plain, "has no optimizer. Compile it first"):
        kt.restore(plain, trained(1), include_optimizer=True)


def test_a_missing_slot_is_named() -> None:
    source = trained(1)
    source.get_layer("head").trainable = False
    source.compile("adam", "mse")
    train(source, 1)
    model = trained(2)
    with refused(
        model, "contains no adam/head_kernel_momentum for 'adam(_.*)?/head_kernel_momentum'"
    ):
        kt.restore(model, source, include_optimizer=True)


def test_a_wrapped_optimizer_restores_its_inner_state() -> None:
    source = trained(1)
    model = kt.with_train_ops(two_layers(2))
    model.compile("adam", "mse", gradient_transforms=kt.transforms.ClipByGlobalNorm(1e9))
    kt.restore(model, source, include_optimizer=True)
    train(model, 2)
    train(source, 2)
    assert_same(weights(model), weights(source))


def test_the_callback_restores_before_the_first_step() -> None:
    source = trained(1)
    source.save("w.keras")
    model = two_layers(2)
    model.compile("adam", "mse")
    start = kt.WarmStart("w.keras", include_optimizer=True, verbose=0)
    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[start])
    train(source, 1)
    assert_same(weights(model), weights(source))


@pytest.mark.parametrize("written", ["model", ".keras"])
def test_slots_follow_their_own_variable(written: str) -> None:
    """Variables of two nested models share their paths, and so do their slots."""
    two = [("functional", name, (("dense",),)) for name in ("left", "right")]
    source, target = [made(("functional", "net", tuple(two)), first) for first in (0, 1000)]
    for model in (source, target):
        model.compile(keras.optimizers.Adam(0.1), "mse")
        model.optimizer.build(model.trainable_variables)
    for i, variable in enumerate(source.optimizer.variables[2:]):
        variable.assign(np.full(variable.shape, 7 + i))
    kt.restore(target, FORMATS[written](source), include_optimizer=True)
    for theirs, ours in zip(source.optimizer.variables, target.optimizer.variables, strict=True):
        np.testing.assert_array_equal(value(ours), value(theirs))
