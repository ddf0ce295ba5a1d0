"""Checkpoints of a `TrainingSession`.

The directory of a step contains the arrays as safetensors, `SHA256SUMS` with the checksums of its
files, and perhaps an Orbax checkpoint of variables that were divided among processes. A run's log
directory, or `checkpoints` in it, opens the newest step that is undamaged.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats.orbax import OrbaxCheckpoint
from keras_trainops.checkpoints.formats.safetensors import SafetensorsCheckpoint
from keras_trainops.checkpoints.storage.files import load_json, open_regular, read_file
from keras_trainops.checkpoints.storage.parts import Index
from keras_trainops.checkpoints.storage.raw import Extent
from keras_trainops.errors import RestoreError

_ARRAYS, _SHARDS, _VARIABLES = "state.safetensors", "shards", "variables.json"
_SUMS = "SHA256SUMS"
_STEPS = "checkpoints"
_TRAINING_STATE = ("optimizer/", "metrics/")  # prefixes of keys
_STEP = re.compile(r"step-(\d+)")
_MOST_SUMS, _MOST_VARIABLES = 1 << 20, 1 << 28  # bytes


class SessionCheckpoint(SafetensorsCheckpoint):
    """A step saved by a session, with the variables that were divided among processes.

    Args:
        location: The path, as the user gave it: that of the step or of a directory around it.
        step: The step's directory.
    """

    def __init__(self, location: str, step: Path) -> None:
        super().__init__(location, str(step / _ARRAYS))
        self.format = f"training session ({step.name})"
        self._divided: OrbaxCheckpoint | None = None
        self._names: dict[str, str] = {}  # in that checkpoint
        if (step / _SHARDS).is_dir():
            try:
                self._divided = OrbaxCheckpoint(str(step / _SHARDS))
                self._names = names_of_shards(self._divided, step)
            except BaseException:
                self.close()
                raise
        own = (key for key in self._keys() if key.startswith(_TRAINING_STATE))
        self.training_state |= frozenset(own)

    def _keys(self) -> Mapping[str, object]:
        return {**self._slices, **self._names}

    def _shape(self, key: str) -> tuple[int, ...]:
        inner, name = self._place(key)
        return super()._shape(key) if inner is None else inner.shape(name)

    def _dtype(self, key: str) -> np.dtype:
        inner, name = self._place(key)
        return super()._dtype(key) if inner is None else inner.dtype(name)

    def _extent(self, key: str) -> Extent | None:
        return super()._extent(key) if self._place(key)[0] is None else None

    def _read(self, key: str) -> np.ndarray:
        inner, name = self._place(key)
        return super()._read(key) if inner is None else inner[name]

    def _read_part(self, key: str, index: Index) -> np.ndarray:
        inner, name = self._place(key)
        return super()._read_part(key, index) if inner is None else inner.part(name, index)

    def _place(self, key: str) -> tuple[OrbaxCheckpoint | None, str]:
        return (self._divided, self._names[key]) if key in self._names else (None, key)

    def close(self) -> None:
        super().close()
        if self._divided is not None:
            self._divided.close()


def names_of_shards(divided: Checkpoint, step: Path) -> dict[str, str]:
    """Return the name of each variable in `shards/`: its position in a list.

    Args:
        divided: The checkpoint in `shards/`.
        step: The step's directory.

    Raises:
        RestoreError: If the list has no such position.
    """
    keys = load_json(read_file(str(step / _VARIABLES), _MOST_VARIABLES), str(step))
    try:
        return {str(keys[int(name)]): name for name in divided}
    except (ValueError, LookupError, TypeError) as error:
        raise RestoreError(
            f"The session's checkpoint {str(step)!r} is damaged: {_SHARDS} has other arrays than "
            f"{_VARIABLES} lists."
        ) from error


def _recognise(candidate: Candidate) -> bool:
    """Recognise a step, a directory of steps, or a log directory."""
    path = candidate.path
    return candidate.is_directory and (_is_step(path) or bool(_steps_in(path)))


def open_directory(text: str) -> SessionCheckpoint:
    """Open a step, or the newest undamaged step in a directory.

    Warns about damaged steps that it skips.

    Args:
        text: Path of the step, of a directory of steps, or of a log directory.

    Returns:
        The checkpoint.

    Raises:
        RestoreError: If the step is damaged, or all steps are.
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
    """Return the steps of a run, newest first, including damaged ones."""
    inside = directory / _STEPS
    entries = [*directory.iterdir(), *(inside.iterdir() if inside.is_dir() else ())]
    numbered = [(_STEP.fullmatch(entry.name), entry) for entry in entries if entry.is_dir()]
    steps = [(int(match[1]), entry) for match, entry in numbered if match is not None]
    return [entry for _, entry in sorted(steps, reverse=True)]


def _damage(step: Path) -> str:
    """Check a step like `sha256sum --check`, and return a description of the damage, if any.

    Files without a checksum, such as those of file managers, are ignored.
    """
    try:
        lines = read_file(str(step / _SUMS), _MOST_SUMS).decode().splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        if _ARRAYS not in sums:
            return f"{_SUMS} does not name {_ARRAYS}"
        for name, digest in sums.items():
            damage = _damage_of(step, name, digest)
            if damage:
                return damage
    except (OSError, ValueError) as error:  # `RestoreError` is a `ValueError`
        return str(error)
    return ""


def _damage_of(step: Path, name: str, digest: str) -> str:
    if Path(name).name != name:
        return f"{_SUMS} names {name!r}, which is not in its directory"
    with open_regular(str(step / name)) as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == digest
    return "" if same else f"the checksum of {name} does not match"


FORMAT = Format("checkpoints of a TrainingSession", _recognise, open_directory)
