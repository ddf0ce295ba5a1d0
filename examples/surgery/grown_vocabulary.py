"""Gives a network that continues text a vocabulary three times as large, in another order.

It was trained on some pages of a text with their 500 commonest words; other pages have other common
words. `Rows` moves the vector of each word in both vocabularies, and its output column, to the
word's new index. It is compared with vectors that keep their old indices, which belong to other
words now, and with a network from scratch. The text is Python's language reference, which comes
with Python.

`python examples/surgery/grown_vocabulary.py` prints a table and writes
`examples/output/grown_vocabulary.png`.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from compare import compare, options, show

import keras_trainops as kt

SMALL, LARGE, CONTEXT = 500, 1500, 4


def words(pages: list[str]) -> list[str]:
    """Return the words and punctuation of some pages, in lower case."""
    return re.findall(r"\w+|[^\w\s]", "\n".join(topics[page] for page in pages).lower())


def vocabulary(text: list[str], size: int, file: Path) -> list[str]:
    """Return "<other>" and the commonest words in order, and write them to a text file.

    Args:
        text: The words of the text.
        size: Number of entries.
        file: The text file.
    """
    chosen = ["<other>", *(word for word, _ in Counter(text).most_common(size - 1))]
    file.write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return chosen


def pieces(text: list[str], known: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return `CONTEXT` words as numbers, and the next word, for each position in the text."""
    number = {word: i for i, word in enumerate(known)}
    codes = np.array([number.get(word, 0) for word in text], "int32")
    windows = np.lib.stride_tricks.sliding_window_view(codes, CONTEXT + 1)
    windows = windows[windows[:, -1] != 0]  # "<other>" is not a target
    return windows[:, :-1], windows[:, -1]


def network(size: int) -> kt.TrainOpsModel:
    """Return a network from the last words to logits of the next one."""
    inputs = keras.Input((CONTEXT,), dtype="int32")
    x = keras.layers.Embedding(size, 48, name="words")(inputs)
    x = keras.layers.Dropout(0.3)(keras.layers.Flatten()(x))
    x = keras.layers.Dense(96, activation="relu", name="hidden")(x)
    x = keras.layers.Dropout(0.3)(x)
    model = kt.TrainOpsModel(inputs, keras.layers.Dense(size, name="next")(x), name="writer")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    return model


def main() -> None:
    """Train on pages with few words, then on others with more words in three ways, and compare."""
    chosen = options(__doc__, "grown_vocabulary.png", epochs=4)
    keras.utils.set_random_seed(1)
    pages = sorted(topics)
    first, second, third = words(pages[::2]), words(pages[1::4]), words(pages[3::4])
    with tempfile.TemporaryDirectory() as folder:
        old, new, source = (Path(folder, name) for name in ("old.txt", "new.txt", "old.weights.h5"))
        small, large = vocabulary(first, SMALL, old), vocabulary(second, LARGE, new)
        model = network(SMALL)
        model.fit(*pieces(first, small), batch_size=64, epochs=3, verbose=2)
        model.save_weights(source)
        rows, columns = kt.adapt.Rows(old, new), kt.adapt.Rows(old, new, axis=-1)
        ways: dict[str, Any] = {
            "moved by word": {"adapt": {"words|next/bias": rows, "next/kernel": columns}},
            "left in place": {
                "adapt": {
                    "words|next/bias": kt.adapt.Pad(axis=0),
                    "next/kernel": kt.adapt.Pad(axis=-1),
                }
            },
            "from scratch": None,
        }
        inputs, labels = pieces(second, large)
        tests = pieces(third, large)
        runs = compare(
            build=lambda: network(LARGE),
            source=source,
            ways=ways,
            train=(inputs[:10_000], labels[:10_000]),
            measure=lambda model: model.evaluate(*tests, batch_size=1024, verbose=0),
            epochs=chosen.epochs,
        )
    axes = ("epochs on 10,000 words", "loss per word")
    show(f"pages held out, of {LARGE} words", axes, runs, chosen.output)


if __name__ == "__main__":
    main()
