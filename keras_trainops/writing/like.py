"""The source that a new file should be like: a checkpoint, or a plan of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import keras

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.format import Format
from keras_trainops.checkpoints.locations import location_of
from keras_trainops.checkpoints.open import known_formats
from keras_trainops.restoring.planning.saved_plan import (
    PlannedCheckpoint,
    SavedPlan,
    is_plan,
    load_plan,
)
from keras_trainops.restoring.restore import Source, open_source


class Like(NamedTuple):
    """The opened `like`.

    Attributes:
        checkpoint: The source. That of a plan has no values.
        format: Its format; None if it is not from a file.
        plan: The plan, if the source is one.
    """

    checkpoint: Checkpoint
    format: Format | None
    plan: SavedPlan | None = None

    @property
    def has_values(self) -> bool:
        """False if the source is a plan."""
        return self.plan is None


@contextlib.contextmanager
def open_like(source: Source, model: keras.Model) -> Iterator[Like]:
    """Open a source that `write_back` accepts.

    Raises:
        RestoreError: If it cannot be read.
        ValueError: If it has another type.
    """
    if isinstance(source, (str, bytes, os.PathLike)):
        location = location_of(source)
        if is_plan(location):
            plan = load_plan(location)
            yield Like(PlannedCheckpoint(location, plan), _named(plan.writer), plan)
            return
    with open_source(source, model) as checkpoint:
        yield Like(checkpoint, checkpoint.opened_as)


def _named(name: str) -> Format | None:
    return next((one for one in known_formats() if one.name == name), None)
