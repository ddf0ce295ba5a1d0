"""Adapters convert tensors of a checkpoint before they are assigned to a variable.

`restore(..., adapt={pattern: adapter})` adapts the variables that match the pattern; the first
matching pattern wins. An adapter is an `Adapter`, a callable from arrays to one array, or a list of
these, applied in order. A callable gets one array per key that leads to the variable, in the order
of the rename rules.
"""

from keras_trainops.adapt.base import Adapter, Chain
from keras_trainops.adapt.channels import InputChannels
from keras_trainops.adapt.combination import Concat, Split, Stack, Sum
from keras_trainops.adapt.layout import Gates, Reshape, Transpose, channels_first_flatten
from keras_trainops.adapt.positions import ResizePositions
from keras_trainops.adapt.slices import Crop, Pad
from keras_trainops.adapt.torch_layouts import from_torch
from keras_trainops.adapt.vocabulary import Rows

__all__ = [
    "Adapter",
    "Chain",
    "Concat",
    "Crop",
    "Gates",
    "InputChannels",
    "Pad",
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
