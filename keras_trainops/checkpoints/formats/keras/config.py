"""Layer names and vocabularies from the configuration in a `.keras` file.

Weights files of Keras 2, and of Keras 3 before 3.6, do not store layer names. A group of such a
file is named after the layer's class, with a number (`layers/dense_1`). The configuration lists
the layers in the same order, so together they give the layers' names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

# The names that Keras 3 gives to the cells of recurrent layers, which the configuration lacks.
_CELLS = {"LSTM": "lstm_cell", "GRU": "gru_cell", "SimpleRNN": "simple_rnn_cell"}
_SETTINGS = ("epsilon", "padding", "activation", "strides", "dilation_rate")
_LOOKUPS = ("StringLookup", "IntegerLookup", "TextVectorization")


def owners_from_config(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the layer name of each group of the weights file.

    Args:
        config: The content of `config.json` in a `.keras` file.

    Returns:
        Mapping from group to name, such as `{"layers/dense_1": "head"}`.

    Example:
        >>> dense = {"class_name": "Dense", "config": {"name": "head"}}
        >>> owners_from_config({"class_name": "Sequential", "config": {"layers": [dense]}})
        {'layers/dense': 'head'}
    """
    return {group: name for group, name in _layer_names(config, "") if group and name}


def _layer_names(entry: Any, group: str, direction: str = "") -> Iterator[tuple[str, str]]:
    """Yield group and name of a layer and of the layers below it.

    Args:
        entry: The configuration of the layer.
        group: The layer's group.
        direction: The prefix of the name in a bidirectional layer, such as "forward_".
    """
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
        yield from _layer_names(forward, _below(group, "forward_layer"), "forward_")
        yield from _layer_names(backward, _below(group, "backward_layer"), "backward_")
    else:
        yield from _layer_names(config.get("layer"), _below(group, "layer"))
    yield from _layer_names(config.get("cell"), _below(group, "cell"))
    for container in ("layers", "cells"):
        if isinstance(config.get(container), list):
            yield from _in_order(config[container], _below(group, container))


def _in_direction(direction: str, name: str) -> str:
    """Add a direction, as bidirectional layers rename `lstm` to `forward_lstm`.

    Some versions of Keras save the new name.
    """
    if not direction:
        return name
    return direction + name.removeprefix("forward_").removeprefix("backward_")


def _in_order(entries: list[Any], group: str) -> Iterator[tuple[str, str]]:
    seen: Counter[str] = Counter()
    for entry in entries:
        if not isinstance(entry, Mapping) or "keras.src.ops" in str(entry.get("module")):
            continue  # operations of functional models are not layers and have no group
        place = _snake_case(str(entry.get("class_name")))
        number = seen[place]
        seen[place] += 1
        yield from _layer_names(entry, _below(group, f"{place}_{number}" if number else place))


def _below(group: str, name: str) -> str:
    return f"{group}/{name}" if group else name


def _snake_case(class_name: str) -> str:
    """Convert a class name as Keras does: `SeparableConv2D` to `separable_conv2d`."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def settings_from_config(config: Any) -> dict[str, dict[str, Any]]:
    """Return what each layer computes beside its weights: epsilon, padding, activation, strides.

    Args:
        config: The content of `config.json` in a `.keras` file.

    Returns:
        Mapping from layer name to settings, without names that occur more than once.

    Example:
        >>> norm = {"name": "bn", "epsilon": 0.001, "axis": -1}
        >>> settings_from_config({"class_name": "BatchNormalization", "config": norm})
        {'bn': {'epsilon': 0.001}}
    """
    found = [*_settings(config)]
    count = Counter(name for name, _ in found)
    return {name: settings for name, settings in found if count[name] == 1 and settings}


def _settings(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for _, settings in _layers(config):
        if isinstance(settings.get("name"), str):
            yield settings["name"], {key: settings[key] for key in _SETTINGS if key in settings}


def _layers(entry: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield class name and configuration of each layer, and of the layers below it."""
    if isinstance(entry, list):
        for part in entry:
            yield from _layers(part)
    if not isinstance(entry, Mapping):
        return
    if isinstance(entry.get("config"), Mapping):
        yield str(entry.get("class_name")), entry["config"]
    for part in entry.values():
        yield from _layers(part)


def lookups_from_config(config: Any) -> dict[str, tuple[str, ...]]:
    """Return the vocabularies of lookup layers.

    Args:
        config: The content of `config.json` in a `.keras` file.

    Returns:
        Mapping from layer name to vocabulary, without names that occur more than once. A vocabulary
        is empty if it is stored in an asset.

    Example:
        >>> words = {"name": "words", "vocabulary": ["cat"], "oov_token": "[UNK]"}
        >>> lookups_from_config({"class_name": "StringLookup", "config": words})
        {'words': ('[UNK]', 'cat')}
    """
    found = [*_lookups(config)]
    count = Counter(name for name, _ in found)
    return {name: entries for name, entries in found if count[name] == 1}


def _lookups(config: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    for class_name, settings in _layers(config):
        if class_name in _LOOKUPS:
            yield str(settings.get("name")), _vocabulary(class_name, settings)


def _vocabulary(class_name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a vocabulary, starting with the tokens for padding and for unknown words."""
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
