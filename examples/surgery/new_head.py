"""Gives a network that reads eight digits a head for ten, with its classes in another order.

`Rows` moves the columns of the old head to the indices of their classes in the new one; the two new
classes keep their initial values. It is compared with usual fine-tuning, in which the whole head
starts anew, and with a network from scratch, all on the same 200 digits.

`python examples/surgery/new_head.py` prints a table and writes `examples/output/new_head.png`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from compare import compare, options, show
from digits import accuracy, compiled, mnist, reader

import keras_trainops as kt

OLD = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
NEW = sorted([*OLD, "eight", "nine"])  # eight, five, four, …: every class gets another index
WAYS: dict[str, Any] = {
    "old classes by name": {
        "adapt": {
            "head/kernel": kt.adapt.Rows(OLD, NEW, axis=-1),
            "head/bias": kt.adapt.Rows(OLD, NEW),
        }
    },
    "a new head": {"exclude": "head"},
    "from scratch": None,
}


def main() -> None:
    """Train on eight classes, then on ten in three ways, and compare."""
    chosen = options(__doc__, "new_head.png", epochs=5)
    keras.utils.set_random_seed(1)
    images, digits = mnist()
    labels = np.array([NEW.index(name) for name in [*OLD, "eight", "nine"]])[digits]
    with tempfile.TemporaryDirectory() as folder:
        source, eight = Path(folder, "eight_digits.keras"), digits[:3000] < len(OLD)
        model = compiled(reader(len(OLD)), keras.optimizers.Adam(1e-3))
        model.fit(images[:3000][eight], digits[:3000][eight], batch_size=32, epochs=3, verbose=2)
        model.save(source)
        runs = compare(
            build=lambda: compiled(reader(len(NEW)), keras.optimizers.Adam(1e-3)),
            source=source,
            ways=WAYS,
            train=(images[3000:3200], labels[3000:3200]),
            measure=lambda model: accuracy(model, (images[4000:], labels[4000:])),
            epochs=chosen.epochs,
        )
    show(
        "1,000 digits of ten classes, held out",
        ("epochs on 200 digits", "accuracy"),
        runs,
        chosen.output,
    )


if __name__ == "__main__":
    main()
