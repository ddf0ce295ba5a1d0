"""Writes a checkpoint of tf-slim's `vgg_16`, and what it computes. A process of its own.

    python make_slim_vgg.py OUTDIR

writes OUTDIR/vgg_16.ckpt.* by the TF1 `Saver`, and OUTDIR/vgg_16.npz with inputs (1, 224, 224, 3)
and logits (1, 1000). The three layers that Keras has as dense ones are convolutions in tf-slim.
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
from tf_slim.nets import vgg  # noqa: E402

tf1 = tf.compat.v1


def write(folder: Path) -> None:
    """Builds the network with random weights, saves it, and runs it once."""
    inputs = np.random.default_rng(0).normal(0, 1, (1, 224, 224, 3)).astype("float32")
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.set_random_seed(0)
        images = tf1.placeholder(tf.float32, [None, 224, 224, 3])
        # Kernels that keep the size of activations, and biases that are not zero.
        scope = slim.arg_scope(
            [slim.conv2d],
            weights_initializer=tf1.variance_scaling_initializer(2.0),
            biases_initializer=tf1.random_normal_initializer(stddev=0.1),
        )
        with scope:
            logits, _ = vgg.vgg_16(images, is_training=False)
        tf1.train.get_or_create_global_step()
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver().save(session, str(folder / "vgg_16.ckpt"), write_meta_graph=False)
        outputs = session.run(logits, {images: inputs})
    np.savez(folder / "vgg_16.npz", inputs=inputs, logits=outputs)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
