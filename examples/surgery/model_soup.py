"""Averages the weights of several fine-tuned networks, from their files, without building one.

A "model soup" (Wortsman et al. 2022): networks that were fine-tuned from the same weights, with
different learning rates and orders of the data, lie in one valley of the loss, and their mean is
often better than most of them. `average` opens all files and reads one tensor of each at a time.

`python examples/surgery/model_soup.py` prints a table and writes
`examples/output/soup.safetensors`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
from compare import options, table
from digits import accuracy, coarse_digits, compiled, mnist, reader
from safetensors.numpy import save_file

import keras_trainops as kt


def average(paths: Sequence[Path], output: Path) -> None:
    """Write the mean of checkpoints of any format, key by key.

    Args:
        paths: The checkpoints.
        output: The `.safetensors` file to write.

    Raises:
        ValueError: If their keys or shapes differ.
    """
    with contextlib.ExitStack() as files:
        members = [files.enter_context(kt.open_checkpoint(path)) for path in paths]
        shapes = [{key: member.shape(key) for key in member} for member in members]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(f"These checkpoints have different keys or shapes: {paths}")
        soup = {
            key: np.mean([member[key] for member in members], axis=0, dtype="float64")
            for key in members[0]
            if key not in members[0].training_state
        }
    save_file({key: array.astype("float32") for key, array in soup.items()}, output)


def main() -> None:
    """Fine-tune several networks from one, average them, and compare."""
    chosen = options(__doc__, "soup.safetensors", members=5, epochs=5)
    keras.utils.set_random_seed(1)
    (old, old_labels), (new, new_labels) = mnist(), coarse_digits()
    train, held_out = (new[:300], new_labels[:300]), (new[600:], new_labels[600:])
    with tempfile.TemporaryDirectory() as folder:
        start, files = Path(folder, "start.weights.h5"), []
        model = compiled(reader(), keras.optimizers.Adam(1e-3))
        model.fit(old, old_labels, batch_size=64, epochs=2, verbose=2)
        model.save_weights(start)
        rows = {"before fine-tuning": [accuracy(model, held_out)]}
        for i in range(chosen.members):
            keras.utils.set_random_seed(i)  # another order of the data
            rate = (0.001, 0.002, 0.004)[i % 3]
            model = compiled(reader(), keras.optimizers.Adam(rate))
            model.fit(*train, batch_size=16, epochs=chosen.epochs, verbose=0,
                      callbacks=[kt.WarmStart(start, verbose=0)])  # fmt: skip
            files.append(Path(folder, f"member{i}.weights.h5"))
            model.save_weights(files[-1])
            rows[f"member {i} (rate {rate})"] = [accuracy(model, held_out)]
        average(files, chosen.output)
    members = [share for (share,) in list(rows.values())[1:]]
    rows["mean of the members"] = [float(np.mean(members))]
    print(kt.restore(model, chosen.output))
    rows["soup"] = [accuracy(model, held_out)]
    table(f"Digits of other writers, {len(held_out[0])} held out", ["", "accuracy"], rows)
    print(f"soup: {chosen.output}")


if __name__ == "__main__":
    main()
