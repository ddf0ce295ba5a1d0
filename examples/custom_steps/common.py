"""Handwritten digits, small networks, and batches that are the same on every backend."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

OUTPUT = Path(__file__).parents[1] / "output"
Data = tuple[np.ndarray, np.ndarray]


def digits() -> tuple[Data, Data]:
    """Return 1,200 digits to train on and 597 held out: float32 (n, 64) in [0, 1], labels (n,)."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order].astype("float32") / 16, labels[order].astype("int32")
    return (images[:1200], labels[:1200]), (images[1200:], labels[1200:])


class Batches(keras.utils.PyDataset):
    """Batches with random numbers in them: the generators of the backends differ.

    Args:
        draw: Returns a batch, drawn with a NumPy generator.
        steps: The number of batches.
        seed: A seed for all of them.
    """

    def __init__(
        self, draw: Callable[[np.random.Generator], tuple[Any, ...]], steps: int, seed: int = 0
    ) -> None:
        super().__init__()
        self.draw, self.steps, self.seed = draw, steps, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.draw(np.random.default_rng((self.seed, index)))


def drawn(steps: int, size: int, *arrays: np.ndarray) -> Batches:
    """Return batches of rows that are drawn from arrays, the same rows from each."""

    def batch(rng: np.random.Generator) -> tuple[Any, ...]:
        chosen = rng.integers(len(arrays[0]), size=size)
        return tuple(array[chosen] for array in arrays)

    return Batches(batch, steps)


def mlp(
    inputs: int,
    *sizes: int,
    activation: str = "relu",
    last: str | None = None,
    last_bias: bool = True,
    norm: bool = False,
) -> keras.Sequential:
    """Return a network of dense layers.

    Args:
        inputs: Number of inputs.
        *sizes: Number of units of each layer.
        activation: The activation of all layers but the last.
        last: The activation of the last layer.
        last_bias: Whether the last layer has a bias.
        norm: Whether to normalise by batch, before each activation but the last. A layer before a
            batch norm has no bias: it would have no effect, and its gradient would be 0 but for
            rounding errors, from which Adam makes steps of full size.
    """
    layers: list[Any] = [keras.Input((inputs,))]
    for size in sizes[:-1]:
        layers.append(keras.layers.Dense(size, use_bias=not norm))
        layers += [keras.layers.BatchNormalization()] if norm else []
        layers.append(keras.layers.Activation(activation))
    layers.append(keras.layers.Dense(sizes[-1], activation=last, use_bias=last_bias))
    return keras.Sequential(layers)


def with_equal_start(model: Any, seed: int = 0) -> Any:
    """Give kernels random values that are the same on every backend, and return the model."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.path.endswith("kernel"):
            fan_in = int(np.prod(weight.shape[:-1]))
            weight.assign(rng.normal(size=weight.shape, scale=1.4 / np.sqrt(fan_in)))
    return model


def accuracy(model: Any, data: Data) -> float:
    """Return the fraction of images whose largest logit is that of the label."""
    images, labels = data
    return float((model.predict(images, verbose=0).argmax(-1) == labels).mean())


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Fréchet distance between the normal distributions of two sets of images.

    References: Heusel et al. 2017, who take the features of a network in place of pixels.
    """
    (mean, cov), (mean2, cov2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (first, second))
    roots = np.sqrt(np.maximum(np.linalg.eigvals(cov @ cov2).real, 0))
    squared = np.square(mean - mean2).sum() + np.trace(cov + cov2) - 2 * roots.sum()
    return float(np.sqrt(max(squared, 0)))


def options(doc: str | None, steps: int, picture: str | None = None) -> argparse.Namespace:
    """Parse the command line of an example.

    Args:
        doc: Docstring of the example; its first line describes the command.
        steps: Default number of training steps.
        picture: Name of the picture in `examples/output/`; None if there is none.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=steps, help=f"default: {steps}")
    if picture:
        parser.add_argument("--output", type=Path, default=OUTPUT / picture)
    return parser.parse_args()


def draw(rows: Mapping[str, np.ndarray], title: str, output: Path) -> None:
    """Draw a row of digits (n, 64) in [0, 1] under each name."""
    columns = min(len(images) for images in rows.values())
    figure, axes = plt.subplots(len(rows), columns, figsize=(0.6 * columns, 0.75 * len(rows) + 0.4))
    for axis_row, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(axis_row, images, strict=False):
            axis.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            axis.axis("off")
        axis_row[0].set_title(name, loc="left", fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=80)
    plt.close(figure)
    print(f"picture: {output}")
