"""The values of one checkpoint with the structure of another, as a plan stores it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import keras_trainops as kt
from keras_trainops.checkpoints import ArraysCheckpoint


class WithStructure(ArraysCheckpoint):
    """Arrays, with the structure of a source that need not exist any more."""

    def __init__(self, arrays: dict[str, np.ndarray], structure: Any) -> None:
        super().__init__(arrays, "arrays")
        self._given = json.loads(json.dumps(dict(structure)))

    def _structure(self) -> Any:
        return self._given


def content_like(like: str, keep: Callable[[str], bool] = lambda key: True) -> WithStructure:
    """The values and the structure of a checkpoint, which is closed."""
    with kt.open_checkpoint(like) as checkpoint:
        values = {key: checkpoint[key] for key in checkpoint if keep(key)}
        return WithStructure(values, checkpoint.structure())


def rewrite(
    write: Any, like: str, target: str, keep: Callable[[str], bool] = lambda key: True
) -> list[str]:
    """Write a checkpoint again, and return the lines of the writer."""
    content = content_like(like, keep)
    return write(Path(target), content, {key: key for key in content})
