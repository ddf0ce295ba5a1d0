"""The layers' names out of a saved model's configuration.

Keras 2, and Keras 3 before 3.6, wrote weights files without the layers' names: a layer's place is
its class and a number (`layers/dense_1`). The number is the layer's in the order in which the
model's configuration lists the layers too, so that a `.keras` file, which holds both, tells the
names after all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

# A recurrent layer's cell has no entry of its own; this is what Keras 3 calls it.
_CELLS = {"LSTM": "lstm_cell", "GRU": "gru_cell", "SimpleRNN": "simple_rnn_cell"}


def owners_from_config(config: Mapping[str, Any]) -> dict[str, str]:
    """Layer name by group of the weights file, as in `{"layers/dense_1": "head"}`.

    Args:
        config: The content of a `.keras` file's `config.json`.

    Example:
        >>> dense = {"class_name": "Dense", "config": {"name": "head"}}
        >>> owners_from_config({"class_name": "Sequential", "config": {"layers": [dense]}})
        {'layers/dense': 'head'}
    """
    return {group: name for group, name in _named(config, "") if group and name}


def _named(entry: Any, group: str, direction: str = "") -> Iterator[tuple[str, str]]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("config"), Mapping):
        return
    config, class_name = entry["config"], str(entry.get("class_name"))
    name = config.get("name")
    yield group, _in_direction(direction, name) if isinstance(name, str) else ""
    if class_name in _CELLS:
        yield _below(group, "cell"), _CELLS[class_name]
    if class_name == "Bidirectional":
        forward = config.get("layer")
        backward = config.get("backward_layer") or forward
        yield from _named(forward, _below(group, "forward_layer"), "forward_")
        yield from _named(backward, _below(group, "backward_layer"), "backward_")
    else:
        yield from _named(config.get("layer"), _below(group, "layer"))
    yield from _named(config.get("cell"), _below(group, "cell"))
    for container in ("layers", "cells"):
        if isinstance(config.get(container), list):
            yield from _in_order(config[container], _below(group, container))


def _in_direction(direction: str, name: str) -> str:
    """`lstm` is `forward_lstm` in a bidirectional layer; some versions save it under that name."""
    if not direction:
        return name
    return direction + name.removeprefix("forward_").removeprefix("backward_")


def _in_order(entries: list[Any], group: str) -> Iterator[tuple[str, str]]:
    seen: Counter[str] = Counter()
    for entry in entries:
        if not isinstance(entry, Mapping) or "keras.src.ops" in str(entry.get("module")):
            continue  # an operation of a functional model is no layer and has no group
        place = _snake_case(str(entry.get("class_name")))
        number = seen[place]
        seen[place] += 1
        yield from _named(entry, _below(group, f"{place}_{number}" if number else place))


def _below(group: str, name: str) -> str:
    return f"{group}/{name}" if group else name


def _snake_case(class_name: str) -> str:
    """How Keras spells a class in a weights file: `SeparableConv2D` is `separable_conv2d`."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def lookups_from_config(config: Any) -> dict[str, tuple[str, ...]]:
    """The vocabularies of a saved model's lookup layers, by name; of two with one name, neither.

    Empty is a vocabulary that a file beside the configuration has.

    Args:
        config: The content of a `.keras` file's `config.json`.

    Example:
        >>> words = {"name": "words", "vocabulary": ["cat"], "oov_token": "[UNK]"}
        >>> lookups_from_config({"class_name": "StringLookup", "config": words})
        {'words': ('[UNK]', 'cat')}
    """
    found = [*_lookups(config)]
    count = Counter(name for name, _ in found)
    return {name: entries for name, entries in found if count[name] == 1}


def _lookups(entry: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    if isinstance(entry, list):
        for part in entry:
            yield from _lookups(part)
    if not isinstance(entry, Mapping):
        return
    config = entry.get("config")
    if entry.get("class_name") in _LOOKUPS and isinstance(config, Mapping):
        yield str(config.get("name")), _entries(str(entry["class_name"]), config)
        return
    for part in entry.values():
        yield from _lookups(part)


_LOOKUPS = ("StringLookup", "IntegerLookup", "TextVectorization")


def _entries(class_name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """A vocabulary with what stands in front of its words: for padding, and unknown words."""
    vocabulary = config.get("vocabulary")
    if not isinstance(vocabulary, list):
        return ()
    words, unknown = [str(word) for word in vocabulary], str(config.get("oov_token"))
    mask: Any = config.get("mask_token")
    count = config.get("num_oov_indices", 1)
    if class_name == "TextVectorization":
        unknown, mask, count = "[UNK]", "", 1
    front = [unknown] * (count if isinstance(count, int) and 0 <= count < 1 << 16 else 1)
    if mask is not None and config.get("output_mode", "int") == "int":
        front = [str(mask), *front]
    return tuple(words if words[: len(front)] == front else [*front, *words])
