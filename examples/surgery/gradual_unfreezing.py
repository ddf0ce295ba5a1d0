"""Fine-tunes a network from its head downwards, with smaller steps below, so that it forgets less.

As in ULMFiT (Howard and Ruder 2018), the head is trained alone first, then one more layer in each
stage (`variables_to_train`), and each layer's step is 0.3 of that above it (`LayerwiseDecay`). The
network reads one kind of digits, and learns another kind from 100 of them. It is compared with the
same number of steps with all layers at one rate, from the same weights and from scratch.

`python examples/surgery/gradual_unfreezing.py` prints a table and writes
`examples/output/unfreezing.png`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import keras
from compare import curves, options, table
from digits import Data, accuracy, coarse_digits, compiled, mnist, reader

import keras_trainops as kt

LAYERS = ["conv1", "conv2", "hidden", "head"]


class Digits(NamedTuple):
    """Data that the network was trained on, and data that it learns.

    Attributes:
        old: Held-out digits of the old kind.
        train: Digits of the new kind to train on.
        new: Held-out digits of the new kind.
    """

    old: Data
    train: Data
    new: Data


class Run:
    """A network, with its accuracies on both kinds of digits before and after each epoch."""

    def __init__(self, digits: Digits, start: Path | None) -> None:
        keras.utils.set_random_seed(1)
        self.digits, self.model = digits, reader()
        self.optimizer = keras.optimizers.Adam(2e-3)
        if start is not None:
            kt.restore(self.model, start)
        self.old, self.new = [accuracy(self.model, digits.old)], [accuracy(self.model, digits.new)]

    def train(self, epochs: int, layers: list[str], decay: float = 1.0) -> None:
        """Train these layers only, each with `decay` times the rate of the next.

        Args:
            epochs: Number of epochs.
            layers: Names of the layers, from the input to the head.
            decay: Ratio of the rates of two successive layers.
        """
        rates = kt.transforms.LayerwiseDecay(decay, layers)
        # The same optimizer in all stages keeps its state for a variable.
        compiled(self.model, self.optimizer, variables_to_train=layers, gradient_transforms=rates)
        for _ in range(epochs):
            self.model.fit(*self.digits.train, batch_size=20, verbose=0)
            self.old.append(accuracy(self.model, self.digits.old))
            self.new.append(accuracy(self.model, self.digits.new))


def main() -> None:
    """Train on one kind of digits, fine-tune on another in three ways, and compare."""
    chosen = options(__doc__, "unfreezing.png", epochs=3)
    keras.utils.set_random_seed(1)
    (old, old_labels), (new, new_labels) = mnist(), coarse_digits()
    digits = Digits(
        (old[4000:], old_labels[4000:]),
        (new[:100], new_labels[:100]),
        (new[600:], new_labels[600:]),
    )
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder, "start.weights.h5")
        model = compiled(reader(), keras.optimizers.Adam(1e-3))
        model.fit(old[:4000], old_labels[:4000], batch_size=64, epochs=5, verbose=2)
        model.save_weights(start)
        runs = {
            "from the head downwards": Run(digits, start),
            "all layers at once": Run(digits, start),
            "from scratch": Run(digits, None),
        }
    gradually, at_once, scratch = runs.values()
    for stage in range(1, 1 + len(LAYERS)):
        gradually.train(chosen.epochs, LAYERS[-stage:], decay=0.3)
    for run in (at_once, scratch):
        run.train(chosen.epochs * len(LAYERS), LAYERS)
    rows = {name: [run.new[0], run.new[-1], run.old[0], run.old[-1]] for name, run in runs.items()}
    columns = ["fine-tuned on 100 new digits", "new: before", "after", "old: before", "after"]
    table("Accuracy on digits held out", columns, rows)
    panels = {
        "new digits": {name: run.new for name, run in runs.items()},
        "old digits": {name: run.old for name, run in runs.items()},
    }
    curves(panels, ("epochs", "accuracy"), chosen.output)


if __name__ == "__main__":
    main()
