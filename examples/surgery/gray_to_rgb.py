"""Adapts a network that was trained on gray images to colours.

Its first kernel has one input channel. `InputChannels` makes three channels that together respond
to gray like the old one. So the network reads gray digits as before, and coloured ones after a
little training. It is compared with a new first layer, and with a network from scratch, all on the
same 300 coloured digits.

`python examples/surgery/gray_to_rgb.py` prints a table and writes
`examples/output/gray_to_rgb.png`.
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

WAYS: dict[str, Any] = {
    "channels from gray": {"adapt": {"conv1/kernel": kt.adapt.InputChannels()}},
    "a new first layer": {"exclude": "conv1"},
    "from scratch": None,
}


def coloured(images: np.ndarray) -> np.ndarray:
    """Paint gray images (n, 28, 28, 1) in random colours on darker ones, as (n, 28, 28, 3)."""
    rng = np.random.default_rng(3)
    ink = rng.uniform(0.5, 1.0, (len(images), 1, 1, 3))
    paper = rng.uniform(0.0, 0.5, (len(images), 1, 1, 3))
    return (paper + (ink - paper) * images).astype("float32")


def main() -> None:
    """Train on gray images, then on coloured ones in three ways, and compare."""
    chosen = options(__doc__, "gray_to_rgb.png", epochs=5)
    keras.utils.set_random_seed(1)
    images, labels = mnist()
    held_out = images[4000:], labels[4000:]
    gray, colour = np.repeat(held_out[0], 3, axis=-1), coloured(held_out[0])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "gray.weights.h5")
        model = compiled(reader(), keras.optimizers.Adam(1e-3))
        model.fit(images[:3000], labels[:3000], batch_size=32, epochs=3, verbose=2)
        model.save_weights(source)

        def build() -> keras.Model:
            return compiled(reader(channels=3), keras.optimizers.Adam(1e-3))

        wider = build()
        kt.restore(wider, source, **WAYS["channels from gray"])
        print(f"\ngray digits, read in gray: {accuracy(model, held_out):.3f}")
        print(f"the same, read as colours: {accuracy(wider, (gray, held_out[1])):.3f}")
        runs = compare(
            build=build,
            source=source,
            ways=WAYS,
            train=(coloured(images[3000:3300]), labels[3000:3300]),
            measure=lambda model: accuracy(model, (colour, held_out[1])),
            epochs=chosen.epochs,
        )
    show(
        "1,000 coloured digits held out",
        ("epochs on 300 coloured digits", "accuracy"),
        runs,
        chosen.output,
    )


if __name__ == "__main__":
    main()
