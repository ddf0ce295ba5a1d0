"""Writes checkpoints of tf-slim's `resnet_v1_50`, and what it computes. A process of its own.

    python make_slim_resnet.py OUTDIR

writes for each HEAD of "conv" and "dense"

    OUTDIR/HEAD/model.ckpt-0.*  by the TF1 `Saver`, with the slots of a momentum optimizer
    OUTDIR/HEAD.npz             inputs (batch, 97, 97, 3) and logits (batch, classes)

"conv" is the network as tf-slim builds it, whose head is a convolution over one pixel: its kernel
is (1, 1, 2048, classes). "dense" puts `slim.fully_connected` of the same names on tf-slim's
network without its head: the kernel is (2048, classes), as that of `keras.layers.Dense`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from tf_keras.src import legacy_tf_layers

# TensorFlow looks for the layers that tf-slim builds on under the name they had in older tf-keras.
sys.modules["tf_keras.legacy_tf_layers"] = legacy_tf_layers

import tf_slim as slim  # noqa: E402
from tf_slim.nets import resnet_v1  # noqa: E402

tf1 = tf.compat.v1
CLASSES = 11
# The first convolution makes 49 of it. The pooling after it pads both sides by one in Keras, in
# tf-slim (SAME) for odd sizes only: at an input of 96 or 224 the networks differ.
SIZE = 97


def build(head: str, images: tf.Tensor) -> tf.Tensor:
    """The network in inference mode: `(batch, 97, 97, 3)` to logits `(batch, classes)`."""
    with slim.arg_scope(resnet_v1.resnet_arg_scope()):
        if head == "conv":
            net, _ = resnet_v1.resnet_v1_50(images, num_classes=CLASSES, is_training=False)
            return tf.squeeze(net, [1, 2])
        net, _ = resnet_v1.resnet_v1_50(images, num_classes=None, is_training=False)
    return slim.fully_connected(
        tf.squeeze(net, [1, 2]), CLASSES, activation_fn=None, scope="resnet_v1_50/logits"
    )


def random_value(
    name: str, shape: tuple[int, ...], random: np.random.Generator
) -> np.ndarray | None:
    """A value for a variable whose initial value (zeros or ones) would hide a wrong restore.

    Returns:
        None for kernels, which tf-slim initialises at random itself.
    """
    kind = name.split("/")[-1]
    if kind in ("beta", "moving_mean", "biases"):
        return random.normal(0, 0.1, shape)
    if kind == "gamma":
        return random.uniform(0.4, 1.0, shape)  # 16 residual units then keep the logits small
    if kind == "moving_variance":
        return random.uniform(0.5, 1.5, shape)
    return None


def write(head: str, folder: Path) -> None:
    """Builds the network with one head, randomises and saves it, and runs it once."""
    random = np.random.default_rng(0)
    inputs = random.normal(0, 1, (2, SIZE, SIZE, 3)).astype("float32")
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.set_random_seed(0)
        images = tf1.placeholder(tf.float32, [None, SIZE, SIZE, 3])
        logits = build(head, images)
        step = tf1.train.get_or_create_global_step()
        tf1.train.MomentumOptimizer(0.1, 0.9).minimize(tf.reduce_mean(logits**2), step)
        session.run(tf1.global_variables_initializer())
        values = {
            variable.initializer: random_value(variable.op.name, tuple(variable.shape), random)
            for variable in tf1.model_variables()
        }
        values = {assign: value for assign, value in values.items() if value is not None}
        # Feeding the initial values (an assignment's second input) sets all of them in one run.
        session.run(list(values), {assign.inputs[1]: value for assign, value in values.items()})
        (folder / head).mkdir(parents=True)
        saver = tf1.train.Saver()
        saver.save(session, str(folder / head / "model.ckpt"), step, write_meta_graph=False)
        outputs = session.run(logits, {images: inputs})
    np.savez(folder / f"{head}.npz", inputs=inputs, logits=outputs)


if __name__ == "__main__":
    for each in ("conv", "dense"):
        write(each, Path(sys.argv[1]))
