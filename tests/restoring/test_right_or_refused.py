"""Silent failures of stock loading, and the behaviour of `restore` in the same cases.

docs/warm-start.md shows these side by side. Each test also checks the stock behaviour, so that a
Keras that has fixed it fails a test of that name.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_trainops as kt
from tests.helpers import assert_same, randomise, refused, two_layers, value, weights

pytestmark = pytest.mark.once


def stack(names: Sequence[str], seed: int, last: int = 3) -> keras.Model:
    """Return a chain of dense layers with three units; the last one has `last`."""
    x = inputs = keras.Input((3,))
    for name in names:
        x = keras.layers.Dense(last if name == names[-1] else 3, name=name)(x)
    return randomise(keras.Model(inputs, x), seed)


def layer(model: keras.Model, name: str) -> list[np.ndarray]:
    return [value(v) for v in model.get_layer(name).weights]


def same(first: keras.Model, second: keras.Model, name: str) -> bool:
    pairs = zip(layer(first, name), layer(second, name), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.fixture
def quiet() -> Iterator[None]:
    """Silence absl's warning about the legacy format."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def test_one_more_layer_in_front() -> None:
    source = stack(["new", "a", "b"], 1)
    source.save_weights("w.weights.h5")
    stock = stack(["a", "b"], 2)
    stock.load_weights("w.weights.h5")
    assert_same(layer(stock, "a"), layer(source, "new"))  # each layer gets its neighbour's weights
    ours = stack(["a", "b"], 2)
    report = kt.restore(ours, "w.weights.h5")
    assert same(ours, source, "a")
    assert same(ours, source, "b")
    assert report.unexpected == ("new/kernel", "new/bias")


def test_layers_in_another_order() -> None:
    source = stack(["a", "b"], 1)
    source.save_weights("w.weights.h5")
    stock = stack(["b", "a"], 2)
    stock.load_weights("w.weights.h5")
    assert_same(layer(stock, "b"), layer(source, "a"))
    ours = stack(["b", "a"], 2)
    kt.restore(ours, "w.weights.h5")
    assert same(ours, source, "a")
    assert same(ours, source, "b")


def test_skipped_mismatches_shift_what_follows() -> None:
    source = stack(["wide", "a", "b"], 1)
    source.save_weights("w.weights.h5")
    stock = stack(["a", "b"], 2, last=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras does warn about the skipped layer
        stock.load_weights("w.weights.h5", skip_mismatch=True)
    assert_same(layer(stock, "a"), layer(source, "wide"))
    ours = stack(["a", "b"], 2, last=5)
    before = layer(ours, "b")
    report = kt.restore(ours, "w.weights.h5", on_mismatch="ignore")
    assert same(ours, source, "a")
    assert_same(layer(ours, "b"), before)
    assert [m.path for m in report.mismatched] == ["b/kernel", "b/bias"]


def test_an_error_leaves_a_model_half_loaded() -> None:
    source = stack(["a", "b"], 1)
    source.save_weights("w.weights.h5")
    stock = stack(["a", "b"], 2, last=5)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="could not be loaded"):
        warnings.simplefilter("ignore")
        stock.load_weights("w.weights.h5")
    assert same(stock, source, "a")
    ours = stack(["a", "b"], 2, last=5)
    with refused(ours, r"! b/kernel: \(3, 5\) in the model, \(3, 3\) under key", kt.RestoreError):
        kt.restore(ours, "w.weights.h5")


def test_unused_tensors_of_the_file_are_not_reported() -> None:
    source = stack(["a", "b", "c"], 1)
    source.save_weights("w.weights.h5")
    stack(["a", "b"], 2).load_weights("w.weights.h5")
    ours = stack(["a", "b"], 2)
    report = kt.restore(ours, "w.weights.h5")
    assert report.unexpected == ("c/kernel", "c/bias")
    with refused(ours, r"\+ unused: c/{bias,kernel}", kt.RestoreError):
        kt.restore(ours, "w.weights.h5", on_unexpected="error")


def nested(seed: int, frozen: bool) -> keras.Model:
    inputs = keras.Input((3,))
    a, b = keras.layers.Dense(3, name="a"), keras.layers.Dense(3, name="b")
    a.trainable = not frozen
    inner = keras.Model(inputs, b(a(inputs)), name="inner")
    outer = keras.Input((3,))
    return randomise(keras.Model(outer, inner(outer)), seed)


@pytest.mark.usefixtures("quiet")
def test_a_frozen_nested_layer_in_a_legacy_file() -> None:
    source = nested(1, frozen=True)  # the file lists trainable variables first
    source.save("w.h5")
    stock = nested(2, frozen=False)
    stock.load_weights("w.h5")
    of = {m: m.get_layer("inner") for m in (source, stock)}
    assert_same(layer(of[stock], "a"), layer(of[source], "b"))
    ours = nested(2, frozen=False)
    kt.restore(ours, "w.h5")
    inner = ours.get_layer("inner")
    assert same(inner, of[source], "a")
    assert same(inner, of[source], "b")


@pytest.mark.usefixtures("quiet")
def test_names_that_match_nothing_are_not_reported() -> None:
    stack(["a", "b"], 1).save("w.h5")
    stock = stack(["x", "y"], 2)
    before = weights(stock)
    stock.load_weights("w.h5", by_name=True)
    assert_same(weights(stock), before)  # nothing was loaded, without any warning
    with refused(stock, "missing: {x,y}/{bias,kernel}|missing: x/", kt.RestoreError):
        kt.restore(stock, "w.h5")


def test_variables_missing_in_an_object_based_checkpoint() -> None:
    source = two_layers(1)
    tf.train.Checkpoint(trunk=source.get_layer("trunk")).write("tf2/ck")
    stock = two_layers(2)
    before = weights(stock)
    tf.train.Checkpoint(model=stock).read("tf2/ck").expect_partial()
    assert_same(weights(stock), before)
    ours = two_layers(2)
    with refused(ours, "missing: head/{bias,kernel}", kt.RestoreError):
        kt.restore(ours, "tf2/ck")
    kt.restore(ours, "tf2/ck", exclude="head")
    assert same(ours, source, "trunk")


def write_tf1_graph(prefix: str, **arrays: np.ndarray) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, array in arrays.items():
            tf.compat.v1.get_variable(name.replace("__", "/"), initializer=array)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, prefix, write_meta_graph=False)


def test_a_checkpoint_named_by_one_of_its_files() -> None:
    os.makedirs("folder")
    write_tf1_graph("elsewhere/x", head__bias=np.ones(2, "f4"))
    for file in Path("elsewhere").glob("x.*"):
        os.rename(file, Path("folder", file.name[1:]))  # an empty base name
    stock = tf.train.load_checkpoint("folder/.index")
    assert stock.get_variable_to_shape_map() == {}
    ours = two_layers(2)
    kt.restore(ours, "folder/.index", include="head/bias")
    assert value(ours.get_layer("head").bias).tolist() == [1, 1]


def test_a_state_file_of_another_machine() -> None:
    write_tf1_graph("folder/x", head__bias=np.ones(2, "f4"))
    Path("folder/checkpoint").write_text('model_checkpoint_path: "/their/machine/x"\n')
    assert tf.train.latest_checkpoint("folder") is None
    ours = two_layers(2)
    kt.restore(ours, "folder", include="head/bias")
    assert value(ours.get_layer("head").bias).tolist() == [1, 1]


def test_an_optimizer_of_another_class_is_skipped() -> None:
    source = two_layers(1)
    source.compile("adam", "mse")
    source.train_on_batch(np.ones((2, 4)), np.ones((2, 2)))
    source.save_weights("w.weights.h5")
    stock, ours = two_layers(2), two_layers(2)
    for model in (stock, ours):
        model.compile(keras.optimizers.SGD(momentum=0.9), "mse")
        model.optimizer.build(model.trainable_variables)
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        stock.load_weights("w.weights.h5")
    assert_same(weights(stock), weights(source))
    with refused(ours, "the state belongs to adam, but the model's optimizer is SGD|sgd"):
        kt.restore(ours, "w.weights.h5", include_optimizer=True)
    kt.restore(ours, "w.weights.h5")  # weights only, as requested


def test_values_that_are_not_finite() -> None:
    source = two_layers(1)
    source.get_layer("head").bias.assign([np.nan, 1.0])
    source.save_weights("w.weights.h5")
    stock = two_layers(2)
    stock.load_weights("w.weights.h5")
    assert np.isnan(value(stock.get_layer("head").bias)).any()
    with refused(two_layers(2), "has 1 values that are NaN or infinite", kt.RestoreError):
        kt.restore(two_layers(2), "w.weights.h5")


def test_prefixes_match_too_little_or_too_much() -> None:
    import tf_slim as slim

    with tf.Graph().as_default():
        for name in ("vgg_16/fc8/weights", "vgg_16_b/fc8/weights"):
            tf.compat.v1.get_variable(name, (2,))
        names = [v.op.name for v in slim.get_variables_to_restore(exclude=["fc8"])]
        assert len(names) == 2  # nothing is excluded
        names = [v.op.name for v in slim.get_variables_to_restore(include=["vgg_16"])]
        assert "vgg_16_b/fc8/weights" in names
    model = two_layers(2)
    report = kt.plan_restore(model, two_layers(1), exclude=["kernel"])
    assert report.excluded == ("trunk/kernel", "head/kernel")
    with refused(model, "Pattern 'trun' matches no variable"):
        kt.restore(model, two_layers(1), include=["trun"])


def test_values_are_reshaped_without_request() -> None:
    import tf_slim as slim

    wrong = np.arange(6, dtype="f4").reshape(2, 3)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        kernel = tf.compat.v1.get_variable("head/kernel", (3, 2))
        operation, feeds = slim.assign_from_values({"head/kernel": wrong})
        session.run(operation, feeds)
        np.testing.assert_array_equal(session.run(kernel), wrong.reshape(3, 2))
    model = two_layers(2)
    with refused(model, r"! head/kernel: \(3, 2\) in the model, \(2, 3\) under", kt.RestoreError):
        kt.restore(model, {"head/kernel": wrong})
    kt.restore(model, {"head/kernel": wrong}, adapt={"head/kernel": kt.adapt.Reshape()})
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), wrong.reshape(3, 2))
