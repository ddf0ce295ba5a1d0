"""TensorFlow checkpoints, also of optimizers, averages and Estimators."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_trainops as kt
from tests.checkpoints.writers import arrays_of, plain_model, tf1, write_tf1
from tests.helpers import value

pytestmark = pytest.mark.once

DATA = Path(__file__).parents[2] / "data"


TF_KERAS = """
import numpy as np, tensorflow as tf, tf_keras
model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2, name="head")])
model.compile("adam", "mse")
model.train_on_batch(np.ones((2, 4)), np.ones((2, 2)))
tf.train.Checkpoint(net=model, optimizer=model.optimizer, step=tf.Variable(3)).save("k2/ck")
np.savez("expected.npz", *model.get_weights())
"""


def test_recognises_training_state_of_tf1() -> None:
    with tf.Graph().as_default(), tf1.Session() as session:
        with tf1.variable_scope("net", partitioner=tf1.fixed_size_partitioner(2)):
            table = tf1.get_variable("table", (6, 4))
        bias = tf1.get_variable("net/bias", (4,))
        step = tf1.train.get_or_create_global_step()
        loss = tf.reduce_sum(tf.convert_to_tensor(table)) + tf.reduce_sum(bias)
        with tf1.name_scope("training"):
            update = tf1.train.AdamOptimizer().minimize(loss, step)
        averages = tf.train.ExponentialMovingAverage(0.9, num_updates=step)
        with tf.control_dependencies([update]):
            averages.apply([bias])
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver().save(session, "tf1/ck")
    with kt.open_checkpoint("tf1") as checkpoint:
        assert set(checkpoint) - checkpoint.training_state == {"net/table", "net/bias"}
        assert "net/bias/ExponentialMovingAverage" in checkpoint.training_state
        assert checkpoint.shape("net/table") == (6, 4)


@pytest.mark.parametrize("place", ["estimator", "estimator/model.ckpt-4"])
def test_restores_files_of_an_estimator(place: str) -> None:
    """Written by `tf.estimator.DNNClassifier` (see data/make_estimator.py); no object graph."""
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, "relu", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(hidden))
    report = kt.restore(
        model,
        DATA / place,
        rename={r"dnn/hiddenlayer_0/(.*)": r"hidden/\1", r"dnn/logits/(.*)": r"logits/\1"},
    )
    assert report.unexpected == ()  # neither the step nor Adam's slots
    assert "global_step" in report.slots
    assert any("/m" in key for key in report.slots) == ("ckpt" in place)
    with np.load(DATA / "estimator.npz") as values:  # read by the Estimator itself
        for variable in model.weights:
            name = f"dnn/{variable.path}".replace("/hidden/", "/hiddenlayer_0/")
            np.testing.assert_array_equal(variable.numpy(), values[name])


def test_state_file_may_come_from_another_machine() -> None:
    for step in (1, 2):
        with tf.Graph().as_default(), tf1.Session() as session:
            tf1.get_variable("x", initializer=np.float32(step))
            session.run(tf1.global_variables_initializer())
            tf1.train.Saver().save(session, "run/model.ckpt", global_step=step)
    state = 'model_checkpoint_path: "/somebody/elses/machine/model.ckpt-1"\n'
    Path("run/checkpoint").write_text(state)
    with kt.open_checkpoint("run") as checkpoint:
        assert float(checkpoint["x"]) == 1.0


def test_restores_keras_2_models_and_optimizers() -> None:
    run = subprocess.run([sys.executable, "-c", TF_KERAS], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    report = kt.restore(model, "k2")
    with np.load("expected.npz") as expected:
        for variable, name in zip(model.weights, expected.files, strict=True):
            np.testing.assert_array_equal(variable.numpy(), expected[name])
    assert report.unexpected == ("Variable",)  # the user's own counter, under TensorFlow's name
    assert len(report.slots) >= 5


def test_joins_partitioned_variables() -> None:
    with tf.Graph().as_default(), tf1.Session() as session:
        with tf1.variable_scope("", partitioner=tf1.fixed_size_partitioner(3)):
            words = tf1.get_variable("words", (10, 4))
        session.run(tf1.global_variables_initializer())
        assert len(list(words)) == 3
        table = session.run(tf.convert_to_tensor(words))
        tf1.train.Saver().save(session, "parts.ckpt")
    with kt.open_checkpoint("parts.ckpt") as checkpoint:
        np.testing.assert_array_equal(checkpoint["words"], table)


def test_state_file_names_the_latest_checkpoint() -> None:
    for step, seed in ((1, 1), (2, 2)):
        write_tf1(plain_model(seed), f"many/model-{step}")
    with kt.open_checkpoint("many") as checkpoint:
        np.testing.assert_array_equal(
            checkpoint["head/bias"], arrays_of(plain_model(2))["head/bias"]
        )
    os.remove("many/checkpoint")
    with pytest.raises(kt.RestoreError, match=r"several checkpoints.*many/model-1.*many/model-2"):
        kt.open_checkpoint("many")


def test_keys_are_names_or_object_paths() -> None:
    module = tf.Module()
    module.w = tf.Variable(tf.ones((2, 3)), name="w")
    module.parts = [tf.Variable(1.0, name="p"), tf.Variable(2.0, name="p")]
    tf.train.Checkpoint(module=module).write("plain")
    with kt.open_checkpoint("plain") as checkpoint:
        assert sorted(checkpoint) == ["module/parts/0", "module/parts/1", "w"]
        assert float(checkpoint["module/parts/1"]) == 2.0


def test_restores_a_sharded_variable_of_tf2() -> None:
    from tensorflow.python.distribute.sharded_variable import ShardedVariable

    table = np.random.default_rng(1).normal(size=(12, 3)).astype("float32")
    module = tf.Module()
    parts = [tf.Variable(table[i : i + 4], name=f"part_{i}") for i in (0, 4, 8)]
    module.table = ShardedVariable(parts, name="embedding/embeddings")
    module.kernel = tf.Variable(np.full((3, 2), 2.0, "float32"), name="head/kernel")
    tf.train.Checkpoint(model=module).write("tf2/ck")
    inputs = keras.Input((1,))
    embedded = keras.layers.Embedding(12, 3, name="embedding")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, use_bias=False, name="head")(embedded))
    report = kt.restore(model, "tf2/ck")
    assert len(report.restored) == len(model.weights) == 2
    np.testing.assert_array_equal(value(model.get_layer("embedding").embeddings), table)
    np.testing.assert_array_equal(value(model.get_layer("head").kernel), np.full((3, 2), 2.0))
