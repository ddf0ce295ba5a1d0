"""A case: a file that a real library wrote, a Keras model for it, and the right values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

EXAMPLE = "example.npz"


@dataclass(frozen=True)
class Case:
    """One architecture.

    Attributes:
        name: Unique, as on the command line.
        group: `transformers`, `cnn`, `flax` or `rnn`.
        source: Write the file (and a configuration beside it) into a directory; return its path.
            May also write an example (`save_example`) of what the network computes.
        target: Build the Keras model; the directory of `source` has the configuration.
        oracle: Assign the right values to all variables of a target that the file has.
        lacks: Pattern of the variables that it does not have.
    """

    name: str
    group: str
    source: Callable[[Path], Path]
    target: Callable[[Path], keras.Model]
    oracle: Callable[[Path, keras.Model], None]
    lacks: str = "nothing"


@dataclass(frozen=True)
class Example:
    """Inputs of the Keras model and what the network in the file computes of them.

    Attributes:
        inputs: By name; one input alone has the name "".
        outputs: One array.
        name: Which of the Keras model's outputs it is; "" if there is one.
    """

    inputs: dict[str, np.ndarray]
    outputs: np.ndarray
    name: str = ""


def save_example(directory: Path, example: Example) -> None:
    arrays = {f"input/{name}": value for name, value in example.inputs.items()}
    np.savez(directory / EXAMPLE, **arrays, **{f"output/{example.name}": example.outputs})


def load_example(directory: Path) -> Example | None:
    if not (directory / EXAMPLE).exists():
        return None
    with np.load(directory / EXAMPLE) as stored:
        arrays = dict(stored)
    name = next(key for key in arrays if key.startswith("output/"))
    inputs = {k.removeprefix("input/"): v for k, v in arrays.items() if k.startswith("input/")}
    return Example(inputs, arrays[name], name.removeprefix("output/"))


def difference(model: keras.Model, example: Example) -> float:
    """The largest difference of outputs, relative to the size of what the source computes."""
    inputs: Any = example.inputs.get("", example.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the model's own
        outputs = model(inputs, training=False)
    if example.name:
        outputs = outputs[example.name]
    ours = keras.ops.convert_to_numpy(outputs)
    if ours.shape != example.outputs.shape:
        return float("inf")
    return float(np.abs(ours - example.outputs).max() / np.abs(example.outputs).max())


def is_float(variable: keras.Variable) -> bool:
    return keras.backend.is_float_dtype(variable.dtype)


def mark(model: keras.Model) -> list[np.ndarray]:
    """Give each variable values that no file has, so that it shows which were restored."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if is_float(variable):
            variable.assign(rng.uniform(5, 6, variable.shape).astype("float32"))
    return values(model)


def neutralise(
    model: keras.Model, right: Sequence[np.ndarray | None], initial: Sequence[np.ndarray]
) -> None:
    """Give what the file lacks its initial value again."""
    for variable, value, old in zip(model.weights, right, initial, strict=True):
        if value is None:
            variable.assign(old)


def values(model: keras.Model) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in model.weights]
