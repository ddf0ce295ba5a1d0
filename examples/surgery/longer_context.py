"""Gives a transformer that continues text a context four times as long.

It has learned a vector for each of 32 positions. `ResizePositions` stretches them over 128
positions; `Pad` keeps them in place and leaves the other 96 at their initial values. Both are
compared with a network from scratch. The text is Python's language reference, which comes with
Python.

`python examples/surgery/longer_context.py` prints a table and writes
`examples/output/longer_context.png`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from compare import compare, options, show

import keras_trainops as kt

SHORT, LONG, WIDTH = 32, 128, 64
CHARACTERS = np.array([10, *range(32, 127)])  # ASCII codes: line feed and printable
POSITIONS = "positions/embeddings"
WAYS: dict[str, Any] = {
    "positions stretched": {"adapt": {POSITIONS: kt.adapt.ResizePositions(new_grid=LONG)}},
    "the first positions kept": {"adapt": {POSITIONS: kt.adapt.Pad(axis=0)}},
    "from scratch": None,
}


def text() -> np.ndarray:
    """Return the pages of Python's `help()` as indices into `CHARACTERS`, int32 (n,)."""
    codes = np.frombuffer("\n".join(topics[name] for name in sorted(topics)).encode(), "uint8")
    codes = codes[np.isin(codes, CHARACTERS)]
    return np.searchsorted(CHARACTERS, codes).astype("int32")


def pieces(codes: np.ndarray, context: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random pieces of the text, (count, context), and the next character of each position.

    Args:
        codes: The text.
        context: Length of a piece.
        count: Number of pieces.
        seed: Seed of the random positions.
    """
    starts = np.random.default_rng(seed).integers(0, len(codes) - context - 1, count)
    windows = codes[starts[:, None] + np.arange(context + 1)]
    return windows[:, :-1], windows[:, 1:]


class Positions(keras.layers.Layer):
    """Adds a learned vector to each position."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.embeddings = self.add_weight(
            shape=shape[1:], initializer="random_normal", name="embeddings"
        )

    def call(self, x: Any) -> Any:
        return x + self.embeddings


def transformer(context: int, blocks: int = 2) -> kt.TrainOpsModel:
    """Return a transformer from `context` characters to logits of the next one at each position."""
    layers = keras.layers
    inputs = keras.Input((context,), dtype="int32")
    x = layers.Embedding(len(CHARACTERS), WIDTH, name="characters")(inputs)
    x = Positions(name="positions")(x)
    for i in range(blocks):
        y = layers.LayerNormalization(name=f"block{i}_norm1")(x)
        attention = layers.MultiHeadAttention(4, WIDTH // 4, name=f"block{i}_attention")
        x = x + attention(y, y, use_causal_mask=True)
        y = layers.LayerNormalization(name=f"block{i}_norm2")(x)
        y = layers.Dense(4 * WIDTH, activation="gelu", name=f"block{i}_wide")(y)
        x = x + layers.Dense(WIDTH, name=f"block{i}_narrow")(y)
    x = layers.LayerNormalization(name="norm")(x)
    model = kt.TrainOpsModel(inputs, layers.Dense(len(CHARACTERS), name="next")(x), name="writer")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss)
    return model


def main() -> None:
    """Train with a short context, then with a long one in three ways, and compare."""
    chosen = options(__doc__, "longer_context.png", epochs=4, pieces=6_000)
    keras.utils.set_random_seed(1)
    codes = text()
    train, held_out = codes[:-50_000], codes[-50_000:]
    tests = pieces(held_out, LONG, 64, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "short.weights.h5")
        model = transformer(SHORT)
        model.fit(*pieces(train, SHORT, chosen.pieces, seed=1), batch_size=32, epochs=2, verbose=2)
        model.save_weights(source)
        runs = compare(
            build=lambda: transformer(LONG),
            source=source,
            ways=WAYS,
            train=pieces(train, LONG, 256, seed=2),
            measure=lambda model: model.evaluate(*tests, batch_size=64, verbose=0),
            epochs=chosen.epochs,
        )
    show(
        f"text held out, {LONG} characters in context",
        ("epochs on 256 pieces of text", "loss per character"),
        runs,
        chosen.output,
    )


if __name__ == "__main__":
    main()
