"""Checkpoints of every format as one lazy mapping, and the formats.

A new format is a module in `formats/` and a line of `FORMATS` in `open.py`; one of your own is
registered with `register_format`.
"""

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.format import Candidate, Format, Writer
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.checkpoints.open import FORMATS, open_checkpoint, register_format

__all__ = [
    "FORMATS",
    "ArraysCheckpoint",
    "Candidate",
    "Checkpoint",
    "Format",
    "Writer",
    "open_checkpoint",
    "register_format",
]
