"""TensorFlow checkpoints with more than weights: averages, optimizers, Estimators."""

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
from keras_trainops.checkpoints.training_state import by_name

tf1 = tf.compat.v1
DATA = Path(__file__).with_name("data")


def test_averages_counters_and_partitioned_slots_of_tf1_are_training_state() -> None:
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
def test_what_an_estimator_exported_and_its_last_checkpoint(place: str) -> None:
    """Written by `tf.estimator.DNNClassifier` (see data/make_estimator.py); no object graph."""
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, "relu", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(hidden))
    report = kt.restore(
        model,
        DATA / place,
        rename={r"dnn/hiddenlayer_0/(.*)": r"hidden/\1", r"dnn/logits/(.*)": r"logits/\1"},
    )
    assert report.unexpected == ()  # the step, and in the checkpoint Adam's slots, are no weights
    assert "global_step" in report.slots
    assert any("/m" in key for key in report.slots) == ("ckpt" in place)
    with np.load(DATA / "estimator.npz") as values:  # as the Estimator told them
        for variable in model.weights:
            name = f"dnn/{variable.path}".replace("/hidden/", "/hiddenlayer_0/")
            np.testing.assert_array_equal(variable.numpy(), values[name])


def test_a_directory_whose_state_file_names_a_path_of_another_machine() -> None:
    for step in (1, 2):
        with tf.Graph().as_default(), tf1.Session() as session:
            tf1.get_variable("x", initializer=np.float32(step))
            session.run(tf1.global_variables_initializer())
            tf1.train.Saver().save(session, "run/model.ckpt", global_step=step)
    state = 'model_checkpoint_path: "/somebody/elses/machine/model.ckpt-1"\n'
    Path("run/checkpoint").write_text(state)
    with kt.open_checkpoint("run") as checkpoint:
        assert float(checkpoint["x"]) == 1.0


TF_KERAS = """
import numpy as np, tensorflow as tf, tf_keras
model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2, name="head")])
model.compile("adam", "mse")
model.train_on_batch(np.ones((2, 4)), np.ones((2, 2)))
tf.train.Checkpoint(net=model, optimizer=model.optimizer, step=tf.Variable(3)).save("k2/ck")
np.savez("expected.npz", *model.get_weights())
"""


def test_plain_checkpoints_of_keras_2_models_and_optimizers() -> None:
    run = subprocess.run([sys.executable, "-c", TF_KERAS], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    report = kt.restore(model, "k2")
    with np.load("expected.npz") as expected:
        for variable, name in zip(model.weights, expected.files, strict=True):
            np.testing.assert_array_equal(variable.numpy(), expected[name])
    assert report.unexpected == ("Variable",)  # the user's own counter, under TensorFlow's name
    assert len(report.slots) >= 5


@pytest.mark.parametrize(
    "name",
    [
        "global_step",
        "scope/global_step",
        "beta1_power_1",
        "conv/w/Adam",
        "conv/w/Adam_1",
        "conv/w/Momentum",
        "conv/w/ExponentialMovingAverage",
        "conv/w/adam_m",
        "seed_generator/seed_generator_state",
        "layer1.0.num_batches_tracked",
        "optimizer/state/0/exp_avg",
        "optimizer_state_dict/state/0/step",
        "opt_state/0/mu/w",
        "training/Adam/conv/w/m",
    ],
)
def test_names_of_training_state(name: str) -> None:
    weights = {"conv/w", "conv/b", "conv/w/scale", "Adam", "optimizer_head/w", "global_step_head"}
    names = weights | {name, "training/Adam/iter"}
    assert by_name(names) == {name, "training/Adam/iter"}


def test_a_prefix_is_found_in_a_directory_with_other_files() -> None:
    os.makedirs("d")
    Path("d/notes.txt").write_text("x")
    tf.train.Checkpoint(v=tf.Variable(1.0, name="v")).write("d/ck")
    with kt.open_checkpoint("d") as checkpoint:
        assert list(checkpoint) == ["v"]
