"""Compare configurations: networks whose weights fit may still compute different outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_trainops import keras_private
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.keras.weights import KerasWeightsCheckpoint
from keras_trainops.layouts.layers import kernel_axes
from keras_trainops.layouts.roles import roles_in_block
from keras_trainops.restoring.configuration import config_beside

_EPSILONS = ("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", "norm_eps", "norm_epsilon")
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation")
_HEADS = {"query": ("num_attention_heads", "n_head"), "key": ("num_key_value_heads",)}
# Names of activations in transformers -> in Keras; gelu without more is exact in both.
_SAME = {
    "gelu_new": "gelu_approximate",
    "gelu_pytorch_tanh": "gelu_approximate",
    "gelu_fast": "gelu_approximate",
    "swish": "silu",
}


def differences(
    model: keras.Model, checkpoint: Checkpoint, pairs: Iterable[tuple[str, keras.Variable]]
) -> list[str]:
    """Return a line for each setting in which a checkpoint's network differs from a model.

    Args:
        model: The model.
        checkpoint: A checkpoint; a `.keras` file or a `config.json` beside it shows settings.
        pairs: Keys, each with the variable that it leads to.
    """
    owners = {
        id(variable): layer
        for layer in keras_private.all_layers(model)
        for variable in keras_private.own_variables(layer)
    }
    found = [(key, owners[id(v)]) for key, v in pairs if id(v) in owners]
    if isinstance(checkpoint, KerasWeightsCheckpoint) and checkpoint.settings:
        return [*_of_layers(checkpoint.settings, found)]
    config = config_beside(checkpoint.location)
    layers = list({id(layer): layer for _, layer in found}.values())
    return [] if config is None else [*_of_network(config, layers)]


def _of_layers(
    settings: Mapping[str, Mapping[str, Any]], pairs: Sequence[tuple[str, keras.layers.Layer]]
) -> Iterator[str]:
    """Yield the differences between layers of a `.keras` file and of the model."""
    told: dict[tuple[str, str, str], dict[str, None]] = {}
    for key, layer in pairs:
        for name in key.split("/")[-2:-1]:
            for setting, theirs in settings.get(name, {}).items():
                ours = getattr(layer, setting, None)
                if ours is not None and _spelled(theirs) != _spelled(ours):
                    difference = (setting, _spelled(theirs), _spelled(ours))
                    told.setdefault(difference, {})[layer.name] = None
    for (setting, theirs, ours), names in told.items():
        yield f"{setting} is {theirs} in the file, but {ours} in {_listed(names)}"


def _spelled(value: Any) -> str:
    """Return a setting as text, alike for a configuration and a layer."""
    if isinstance(value, Mapping):
        value = value.get("config", value.get("class_name"))
    if isinstance(value, str):
        return value
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    if isinstance(value, (list, tuple)):
        return str(tuple(value))
    return str(value)


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    more = f" and {len(shown) - 3} more layers" if len(shown) > 3 else ""
    return ", ".join(shown[:3]) + more


def _of_network(config: Mapping[str, Any], layers: Sequence[keras.layers.Layer]) -> Iterator[str]:
    """Yield the differences between a `config.json` of transformers and the model."""
    yield from _epsilon(config, layers)
    yield from _activation(config, layers)
    for role, names in _HEADS.items():
        yield from _heads(config, layers, role, names)


def _first(config: Mapping[str, Any], names: Iterable[str]) -> tuple[str, Any]:
    return next(
        ((name, config[name]) for name in names if config.get(name) is not None), ("", None)
    )


def _epsilon(config: Mapping[str, Any], layers: Sequence[keras.layers.Layer]) -> Iterator[str]:
    name, theirs = _first(config, _EPSILONS)
    epsilons = {
        layer.epsilon
        for layer in layers
        if isinstance(getattr(layer, "epsilon", None), float)
        and "norm" in type(layer).__name__.lower()
    }
    if isinstance(theirs, float) and epsilons and theirs not in epsilons:
        ours = " and ".join(str(epsilon) for epsilon in sorted(epsilons))
        yield f"config.json has {name}={theirs}, but the model's normalizations have epsilon={ours}"


def _activation(config: Mapping[str, Any], layers: Sequence[keras.layers.Layer]) -> Iterator[str]:
    name, theirs = _first(config, _ACTIVATIONS)
    if not isinstance(theirs, str):
        return
    wanted = _SAME.get(theirs, theirs)
    for layer in layers:
        role = next(iter(roles_in_block([_last_words(layer)]).values()))
        activation = _spelled(getattr(layer, "activation", None))
        ours = _SAME.get(activation, activation)
        known = re.fullmatch(r"relu|gelu|gelu_approximate|silu|tanh", ours) is not None
        if role == "up" and known and ours != wanted and re.fullmatch(r"[a-z_]+", wanted):
            yield f"config.json has {name}={theirs!r}, but {layer.name!r} has activation={ours!r}"
            return


def _last_words(layer: keras.layers.Layer) -> str:
    return str(getattr(layer, "path", layer.name)).rpartition("/")[2]


def _heads(
    config: Mapping[str, Any], layers: Sequence[keras.layers.Layer], role: str, names: Sequence[str]
) -> Iterator[str]:
    """Yield a line if a projection to heads has another number of them.

    The tensors fit all the same: their rows are heads times the size of a head.
    """
    name, theirs = _first(config, names)
    found = {
        layer.kernel.shape[1]
        for layer in layers
        if isinstance(layer, keras.layers.EinsumDense)
        and layer.name.startswith(role)
        and _makes_heads(layer.equation)
    }
    if isinstance(theirs, int) and len(found) == 1 and theirs not in found:
        yield f"config.json has {name}={theirs}, but the model has {found.pop()} heads"


def _makes_heads(equation: str) -> bool:
    """Return True if the kernel's axes are the inputs, the heads and their size."""
    axes, inputs, outputs = kernel_axes(equation)
    return (len(inputs), len(outputs)) == (1, 2) and axes == inputs + outputs
