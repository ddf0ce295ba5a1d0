"""Adapters convert tensors of a checkpoint before they are assigned to a variable.

`restore(..., adapt={pattern: adapter})` adapts the variables that match the pattern; the first
matching pattern wins. An adapter is an `Adapter`, a callable from arrays to one array, or a list of
these, applied in order. A callable gets one array per key that leads to the variable, in the order
of the rename rules.
"""

import importlib
from typing import TYPE_CHECKING, Any

from keras_trainops.adapt.arithmetic import Add, Repeat
from keras_trainops.adapt.base import Adapter, Chain
from keras_trainops.adapt.channels import InputChannels
from keras_trainops.adapt.combination import Concat, Split, Stack, Sum
from keras_trainops.adapt.layout import (
    Flip,
    Gates,
    Reshape,
    Transpose,
    channels_first_flatten,
)
from keras_trainops.adapt.positions import ResizePositions
from keras_trainops.adapt.slices import Crop, Pad
from keras_trainops.adapt.vocabulary import Rows

if TYPE_CHECKING:
    from keras_trainops.layouts.from_torch import from_torch

__all__ = [
    "Adapter",
    "Add",
    "Chain",
    "Concat",
    "Crop",
    "Flip",
    "Gates",
    "InputChannels",
    "Pad",
    "Repeat",
    "Reshape",
    "ResizePositions",
    "Rows",
    "Split",
    "Stack",
    "Sum",
    "Transpose",
    "channels_first_flatten",
    "from_torch",
]


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # the layouts import the adapters

    def __getattr__(name: str) -> Any:
        if name != "from_torch":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module("keras_trainops.layouts.from_torch")
        globals()[name] = module.from_torch
        return module.from_torch
