"""Trains the examples of custom steps, and the steps of their page, on the current backend.

Each runs 20 steps from equal weights on equal data; the weights are written to a file.

    python -m tests.custom_step_weights OUTPUT.npz
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from markdown_it import MarkdownIt

BACKENDS = ("tensorflow", "jax", "torch")
ROOT = Path(__file__).parents[1]
STEPS = 20


def names(folder: Path) -> list[str]:
    """Return the names of the examples."""
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "common")


def of_examples(folder: Path) -> dict[str, np.ndarray]:
    """Train each example; return its weights and logs."""
    import keras

    sys.path.insert(0, str(folder))
    found: dict[str, np.ndarray] = {}
    for name in names(folder):
        example = importlib.import_module(name)
        model = example.build()
        logs = model.fit(example.batches(STEPS), shuffle=False, verbose=0).history
        for i, weight in enumerate(model.weights):
            found[f"{name}/{i}/{weight.path}"] = keras.ops.convert_to_numpy(weight)
        found.update({f"{name}/log/{key}": np.array(value) for key, (value,) in logs.items()})
    return found


def of_page(page: Path) -> dict[str, np.ndarray]:
    """Train with the Keras step of this backend that the page shows, and with the one text."""
    import keras

    blocks = [t.content for t in MarkdownIt().parse(page.read_text("utf-8")) if t.type == "fence"]
    title = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}[keras.backend.backend()]
    chosen = {"keras": f"# Keras on {title}\n", "own": "# One text\n"}
    rng = np.random.default_rng(0)
    x, y, weights = (rng.normal(size=(20 * 8, n)).astype("float32") for n in (32, 1, 1))
    found: dict[str, np.ndarray] = {}
    for kind, heading in chosen.items():
        (block,) = (block for block in blocks if block.startswith(heading))
        namespace: dict[str, Any] = {"__name__": "__page__"}
        exec(compile(block, str(page), "exec"), namespace)
        inputs = keras.Input((32,))
        model = namespace["CustomModel"](inputs, keras.layers.Dense(1)(inputs))
        model.layers[-1].kernel.assign(np.random.default_rng(1).normal(size=(32, 1)))
        model.compile("adam", "mse", weighted_metrics=["mae"])
        logs = model.fit(x, y, 8, sample_weight=abs(weights[:, 0]), shuffle=False, verbose=0)
        found.update(
            {
                f"page/{kind}/{w.name}": np.array(keras.ops.convert_to_numpy(w))
                for w in model.weights
            }
        )
        found.update({f"page/{kind}/log/{key}": np.array(v) for key, (v,) in logs.history.items()})
    return found


def main(output: Path) -> None:
    examples = of_examples(ROOT / "examples" / "custom_steps")
    arrays: dict[str, Any] = {**examples, **of_page(ROOT / "docs" / "custom-steps.md")}
    np.savez(output, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
