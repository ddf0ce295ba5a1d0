"""Adapters: what tensors of a checkpoint become before they are assigned to a variable.

`adapt={pattern: adapter}` of `restore` says for which variables; the first pattern that matches
wins. An adapter is an `Adapter`, a callable that takes the arrays of the keys that lead to the
variable (one each, in the order of the rename rules) and returns one, or a list of these, one after
the other.
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
