"""Checkpoints of a `TrainingSession`: directories that say themselves what is in them.

A step's directory holds the arrays as safetensors and `SHA256SUMS`, which names each file of it
with its checksum. The log directory of a run, and the `checkpoints` in it, mean the newest step
whose files are what was written.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from pathlib import Path

from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats.safetensors import SafetensorsCheckpoint
from keras_trainops.checkpoints.storage.files import open_regular, read_file
from keras_trainops.errors import RestoreError

_ARRAYS = "state.safetensors"
_SUMS = "SHA256SUMS"
_STEPS = "checkpoints"
_TRAINING = ("optimizer/", "metrics/")  # what keys begin with that are no weights
_STEP = re.compile(r"step-(\d+)")
_MOST_SUMS = 1 << 20


class SessionCheckpoint(SafetensorsCheckpoint):
    """A step that a session saved, by the path of its directory or of one that it lies in."""

    def __init__(self, location: str, step: Path) -> None:
        super().__init__(location, str(step / _ARRAYS))
        self.format = f"training session ({step.name})"
        own = (key for key in self._slices if key.startswith(_TRAINING))
        self.training_state |= frozenset(own)


def _recognise(candidate: Candidate) -> bool:
    """Whether a directory is a step of a session, its `checkpoints` or its log directory."""
    path = candidate.path
    return candidate.is_directory and (_is_step(path) or bool(_steps_in(path)))


def open_directory(text: str) -> SessionCheckpoint:
    """Opens a step, or the newest one in a directory that is not damaged.

    Raises:
        RestoreError: If it is damaged, or all of them are.
    """
    directory = Path(text)
    if _is_step(directory):
        damage = _damage(directory)
        if damage:
            raise RestoreError(f"The session's checkpoint {text!r} is damaged: {damage}.")
        return SessionCheckpoint(text, directory)
    for step in _steps_in(directory):
        damage = _damage(step)
        if not damage:
            return SessionCheckpoint(text, step)
        warnings.warn(
            f"The session's checkpoint {str(step)!r} is damaged: {damage}. The one before it is "
            "used.",
            stacklevel=2,
        )
    raise RestoreError(f"All checkpoints of the session in {text!r} are damaged.")


def _is_step(directory: Path) -> bool:
    return (directory / _SUMS).is_file() and (directory / _ARRAYS).is_file()


def _steps_in(directory: Path) -> list[Path]:
    """The steps of a run, newest first, also those that are damaged."""
    inside = directory / _STEPS
    entries = [*directory.iterdir(), *(inside.iterdir() if inside.is_dir() else ())]
    numbered = [(_STEP.fullmatch(entry.name), entry) for entry in entries if entry.is_dir()]
    steps = [(int(match[1]), entry) for match, entry in numbered if match is not None]
    return [entry for _, entry in sorted(steps, reverse=True)]


def _damage(step: Path) -> str:
    """What is wrong with the files of a step, as `sha256sum --check` would tell; empty if nothing.

    Files that it does not name, such as those that a file manager leaves, do not count.
    """
    try:
        lines = read_file(str(step / _SUMS), _MOST_SUMS).decode().splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        if _ARRAYS not in sums:
            return f"{_SUMS} does not name {_ARRAYS}"
        for name, digest in sums.items():
            if Path(name).name != name:
                return f"{_SUMS} names {name!r}, which is not in it"
            with open_regular(str(step / name)) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return f"the checksum of {name} is another"
    except (OSError, ValueError) as error:  # `RestoreError` is a `ValueError`
        return str(error)
    return ""


FORMAT = Format("what a TrainingSession saved", _recognise, open_directory)
