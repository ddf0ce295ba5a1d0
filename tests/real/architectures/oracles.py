"""Right values: from converters of the target library, or from a mapping written by hand."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tests.real.architectures.case import is_float
from tests.real.architectures.sources import read

Values = Mapping[str, np.ndarray]
Take = Callable[[Values, re.Match[str], tuple[int, ...]], np.ndarray]


def configuration(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text(encoding="utf-8"))


def _loader(directory: Path) -> Any:
    from keras_hub.src.utils.timm.preset_loader import TimmPresetLoader
    from keras_hub.src.utils.transformers.preset_loader import TransformersPresetLoader

    config = configuration(directory)
    kind = TimmPresetLoader if "architecture" in config else TransformersPresetLoader
    return kind(str(directory), config)


def preset_target(backbone: str, directory: Path, **options: Any) -> keras.Model:
    """A keras_hub backbone as `from_preset` configures it, with new weights."""
    import keras_hub

    loader = _loader(directory)
    convert = loader.converter.convert_backbone_config
    cls = getattr(keras_hub.models, backbone)
    more = (cls,) if len(inspect.signature(convert).parameters) > 1 else ()
    return cls(**{**convert(loader.config, *more), **options})


def preset_oracle(directory: Path, model: keras.Model) -> None:
    """Let keras_hub's own converter assign the weights of a directory, but those it lacks."""
    from keras_hub.src.utils.transformers.safetensor_utils import SafetensorLoader
    from safetensors import SafetensorError

    class Present(SafetensorLoader):
        def port_weight(self, keras_variable: Any, hf_weight_key: str, hook_fn: Any = None) -> None:
            def shaped(tensor: np.ndarray, shape: Any) -> np.ndarray:
                value = hook_fn(tensor, shape) if hook_fn else tensor
                return value.reshape(shape) if value.size == 1 else value

            with contextlib.suppress(SafetensorError):
                super().port_weight(keras_variable, hf_weight_key, shaped)

    loader = _loader(directory)
    prefix = "" if "architecture" in loader.config else None
    silent = contextlib.redirect_stdout(io.StringIO())  # some converters print each layer
    with silent, Present(str(directory), prefix=prefix) as tensors:
        loader.converter.convert_weights(model, tensors, loader.config)


Oracle = Callable[[Path, keras.Model], None]
Part = Callable[[keras.Model], Sequence[keras.Variable]]


def together(*oracles: Oracle) -> Oracle:
    def assign(directory: Path, model: keras.Model) -> None:
        for oracle in oracles:
            oracle(directory, model)

    return assign


def everything(model: keras.Model) -> Sequence[keras.Variable]:
    return model.weights


def listed(keys: Sequence[str], file: str, part: Part = everything) -> Oracle:
    """An oracle from the keys of the variables in their order; "" for what the file lacks.

    For models whose variables have running numbers in their paths, or have the paths of others.
    """

    def assign(directory: Path, model: keras.Model) -> None:
        arrays = read(directory / file)
        variables = [variable for variable in part(model) if is_float(variable)]
        for variable, key in zip(variables, keys, strict=True):
            if key:
                change = same
                if "kernel" in variable.path:
                    change = linear if arrays[key].ndim == 2 else conv
                variable.assign(change(arrays[key], tuple(variable.shape)))

    return assign


def mapped(
    rules: Mapping[str, str | tuple[str, Take] | Take], file: str, part: Part = everything
) -> Oracle:
    """An oracle from patterns of variables' paths to keys, written by hand.

    A key is a template for `re.Match.expand`, taken with `linear`; or stands beside what makes the
    value; or a function of all arrays, the match and the variable's shape does it all. The first
    pattern that matches the end of a path wins.
    """

    def assign(directory: Path, model: keras.Model) -> None:
        arrays = read(directory / file)
        for variable in part(model):
            found = ((re.search(f"(?:^|/){rule}$", variable.path), rule) for rule in rules)
            match, rule = next((pair for pair in found if pair[0]), (None, ""))
            if match:
                make = rules[rule]
                take = (
                    make if callable(make) else key(*((make,) if isinstance(make, str) else make))
                )
                value = take(arrays, match, tuple(variable.shape))
                assert value.shape == tuple(variable.shape), (variable.path, value.shape)
                variable.assign(value)

    return assign


def key(template: str, change: Any = None) -> Take:
    """Take the array of one key; `change` gets it and the variable's shape."""
    change = change or same

    def take(arrays: Values, match: re.Match[str], shape: tuple[int, ...]) -> np.ndarray:
        return change(arrays[match.expand(template)], shape)

    return take


def same(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """As it is, but for axes of one."""
    return value.reshape(shape)


def linear(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(out, in) of PyTorch, where each of the two may be several axes."""
    return value.T.reshape(shape)


def conv(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(out, in, *space) of PyTorch as (*space, in, out)."""
    return np.moveaxis(value, (0, 1), (-1, -2)).reshape(shape)


def depthwise(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(channels * multiplier, 1, *space) of PyTorch as (*space, channels, multiplier)."""
    return np.moveaxis(value, (0, 1), (-2, -1)).reshape(shape)


def part(index: int, of: int, axis: int = 0, then: Any = linear) -> Any:
    """One of equal parts along an axis."""

    def change(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return then(np.split(value, of, axis)[index], shape)

    return change


def per_head(index: int, of: int) -> Any:
    """A part of every head: rows (head, part, size)."""

    def change(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        heads, size = shape[-2:]
        parts = value.reshape(heads, of, size, *value.shape[1:])[:, index]
        return linear(parts.reshape(heads * size, *value.shape[1:]), shape)

    return change
