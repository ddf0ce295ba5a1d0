"""The music tagger of the `musicnn` package, and where the weights of its checkpoint go."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
from keras import layers


def musicnn(frames: int = 187, mels: int = 96, classes: int = 50) -> keras.Model:
    """Builds the network that `musicnn` calls `MTT_musicnn`.

    Args:
        frames: Frames of a spectrogram.
        mels: Mel bands of a spectrogram.
        classes: Number of tags.

    Returns:
        A model from log-mel spectrograms `(batch, frames, mels)` to logits `(batch, classes)`.
    """
    spectrogram = keras.Input((frames, mels), name="spectrogram")
    x = layers.Reshape((frames, mels, 1), name="to_image")(spectrogram)
    x = layers.BatchNormalization(name="input_norm")(x)
    padded = _pad_time(x, "timbral")
    front = layers.Concatenate(name="front")(
        [
            # Timbral: most of the spectrum, padded in time alone; the maximum over all positions.
            _frontend(padded, 204, (7, int(0.4 * mels)), "valid", "timbral_narrow"),
            _frontend(padded, 204, (7, int(0.7 * mels)), "valid", "timbral_wide"),
            # Temporal: one band each.
            _frontend(x, 51, (128, 1), "same", "temporal_128"),
            _frontend(x, 51, (64, 1), "same", "temporal_64"),
            _frontend(x, 51, (32, 1), "same", "temporal_32"),
        ]
    )
    mid1 = _midend(front, 64, "mid1")
    mid2 = layers.Add(name="mid2_add")([_midend(mid1, 64, "mid2"), mid1])
    mid3 = layers.Add(name="mid3_add")([_midend(mid2, 64, "mid3"), mid2])
    features = layers.Concatenate(name="features")([front, mid1, mid2, mid3])
    # The maximum and the mean over time, which alternate: max of feature 0, mean of feature 0, …
    pooled = keras.ops.stack(
        [keras.ops.max(features, axis=1), keras.ops.mean(features, axis=1)], axis=-1
    )
    x = layers.Flatten(name="pooled")(pooled)
    x = layers.Dropout(0.5)(layers.BatchNormalization(name="pooled_norm")(x))
    x = layers.Dense(200, activation="relu", name="penultimate")(x)
    x = layers.Dropout(0.5)(layers.BatchNormalization(name="penultimate_norm")(x))
    return keras.Model(spectrogram, layers.Dense(classes, name="tags")(x), name="musicnn")


def _pad_time(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Three frames of zeros on both sides, for kernels of seven frames."""
    return layers.ZeroPadding2D(((3, 3), (0, 0)), name=f"{name}_pad")(x)


def _frontend(
    x: keras.KerasTensor, filters: int, kernel: tuple[int, int], padding: str, name: str
) -> keras.KerasTensor:
    """`(batch, frames, mels, 1)` to `(batch, frames, filters)`."""
    x = layers.Conv2D(filters, kernel, padding=padding, activation="relu", name=f"{name}_conv")(x)
    x = layers.BatchNormalization(name=f"{name}_norm")(x)
    return keras.ops.max(x, axis=2)


def _midend(x: keras.KerasTensor, filters: int, name: str) -> keras.KerasTensor:
    """`(batch, frames, features)` to `(batch, frames, filters)`, over all features at once."""
    frames, features = x.shape[1:]
    x = _pad_time(layers.Reshape((frames, features, 1), name=f"{name}_to_image")(x), name)
    x = layers.Conv2D(filters, (7, features), activation="relu", name=f"{name}_conv")(x)
    x = layers.BatchNormalization(name=f"{name}_norm")(x)
    return layers.Reshape((frames, filters), name=f"{name}_to_sequence")(x)


# The checkpoint numbers its layers by kind, in the order in which they were made.
RENAME = {
    r"batch_normalization/(\w+)": r"input_norm/\1",
    r"conv2d/(\w+)": r"timbral_narrow_conv/\1",
    r"batch_normalization_1/(\w+)": r"timbral_narrow_norm/\1",
    r"conv2d_1/(\w+)": r"timbral_wide_conv/\1",
    r"batch_normalization_2/(\w+)": r"timbral_wide_norm/\1",
    r"conv2d_2/(\w+)": r"temporal_128_conv/\1",
    r"batch_normalization_3/(\w+)": r"temporal_128_norm/\1",
    r"conv2d_3/(\w+)": r"temporal_64_conv/\1",
    r"batch_normalization_4/(\w+)": r"temporal_64_norm/\1",
    r"conv2d_4/(\w+)": r"temporal_32_conv/\1",
    r"batch_normalization_5/(\w+)": r"temporal_32_norm/\1",
    r"conv2d_5/(\w+)": r"mid1_conv/\1",
    r"batch_normalization_6/(\w+)": r"mid1_norm/\1",
    r"conv2d_6/(\w+)": r"mid2_conv/\1",
    r"batch_normalization_7/(\w+)": r"mid2_norm/\1",
    r"conv2d_7/(\w+)": r"mid3_conv/\1",
    r"batch_normalization_8/(\w+)": r"mid3_norm/\1",
    r"batch_normalization_9/(\w+)": r"pooled_norm/\1",
    r"dense/(\w+)": r"penultimate/\1",
    r"batch_normalization_10/(\w+)": r"penultimate_norm/\1",
    r"dense_1/(\w+)": r"tags/\1",
}


def reference_logits(
    folder: Path, spectrograms: np.ndarray, prefix: Path | None = None
) -> np.ndarray:
    """Logits of the authors' own graph, which `.meta` ships.

    Args:
        folder: Holds the checkpoint, whose base name is empty.
        spectrograms: `(batch, 187, 96)`.
        prefix: Of a checkpoint of the weights alone; None for that of `folder`.

    Returns:
        `(batch, 50)`.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import meta_graph_pb2

    meta = meta_graph_pb2.MetaGraphDef()
    meta.ParseFromString((folder / ".meta").read_bytes())
    for node in meta.graph_def.node:
        # TensorFlow 1.12 inferred for the gradients shapes that later versions contradict.
        node.attr.pop("_output_shapes", None)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        saver = tf.compat.v1.train.import_meta_graph(meta)
        if prefix is not None:
            stored = tf.train.load_checkpoint(str(prefix))
            variables = tf.compat.v1.global_variables()
            kept = [each for each in variables if stored.has_tensor(each.op.name)]
            saver = tf.compat.v1.train.Saver(kept)
        saver.restore(session, f"{folder}/" if prefix is None else str(prefix))
        feed = {"model/Placeholder:0": spectrograms, "model/Placeholder_2:0": False}
        # The second placeholder (labels) is not needed; the third is `is_training`.
        return session.run("model/dense_1/BiasAdd:0", feed)
