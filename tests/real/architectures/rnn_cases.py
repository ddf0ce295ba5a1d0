"""Recurrent networks of PyTorch."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tests.real.architectures.case import Case, Example, save_example
from tests.real.architectures.oracles import Values, linear, mapped
from tests.real.architectures.sources import randomise, save_state

FILE = "model.pt"
FEATURES, UNITS, CLASSES = 5, 6, 4


def network(kind: str, depth: int, both: bool) -> Any:
    """Recurrent layers with a head for every step."""
    from torch import nn

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = getattr(nn, kind.upper())
            self.rnn = layer(FEATURES, UNITS, depth, batch_first=True, bidirectional=both)
            self.head = nn.Linear(UNITS * (1 + both), CLASSES)

        def forward(self, x: Any) -> Any:
            return self.head(self.rnn(x)[0])

    return Tagger()


def source(kind: str, depth: int, both: bool, directory: Path) -> Path:
    import torch

    tagger = randomise(network(kind, depth, both))
    steps = np.random.default_rng(1).normal(size=(2, 7, FEATURES)).astype("float32")
    with torch.no_grad():
        found = tagger(torch.from_numpy(steps))
    save_example(directory, Example({"": steps}, found.numpy()))
    return save_state(tagger, directory / FILE)


def target(kind: str, depth: int, both: bool, _: Path) -> keras.Model:
    cell = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[kind]
    layers: list[keras.Layer] = [keras.Input((None, FEATURES))]
    for _number in range(depth):
        layer = cell(UNITS, return_sequences=True)
        layers.append(keras.layers.Bidirectional(layer) if both else layer)
    return keras.Sequential([*layers, keras.layers.Dense(CLASSES)])


def gates(kind: str, value: np.ndarray) -> np.ndarray:
    """Keras's order of the gates along the last axis: update before reset, in a GRU."""
    if kind == "lstm":
        return value
    reset, update, new = np.split(value, 3, -1)
    return np.concatenate([update, reset, new], -1)


def value(kind: str, arrays: Values, match: re.Match[str], shape: tuple[int, ...]) -> np.ndarray:
    suffix = f"_l{match['number'] or 0}" + ("_reverse" if match["backward"] else "")
    leaf = match["leaf"]
    if leaf == "bias":
        biases = [arrays[f"rnn.bias_{side}{suffix}"] for side in ("ih", "hh")]
        return sum(biases) if kind == "lstm" else gates(kind, np.stack(biases))
    side = "hh" if leaf == "recurrent_kernel" else "ih"
    return gates(kind, arrays[f"rnn.weight_{side}{suffix}"].T)


def rnn_case(name: str, kind: str, depth: int, both: bool) -> Case:
    first = "bidirectional" if both else kind
    direction = (
        rf"(?:(?P<backward>backward)|forward)_{kind}(?:_\d+)?/" if both else "(?P<backward>)"
    )
    path = rf"{first}(?:_(?P<number>\d+))?/{direction}{kind}_cell/(?P<leaf>\w+)"
    rules = {
        path: partial(value, kind),
        "dense/kernel": ("head.weight", linear),
        "dense/bias": "head.bias",
    }
    return Case(
        name,
        "rnn",
        partial(source, kind, depth, both),
        partial(target, kind, depth, both),
        mapped(rules, FILE),
    )


CASES = (
    rnn_case("lstm", "lstm", 1, both=False),
    rnn_case("lstm-bidirectional", "lstm", 2, both=True),
    rnn_case("gru-bidirectional", "gru", 2, both=True),
)
