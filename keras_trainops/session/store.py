"""A durable directory of checkpoints: each is complete, or it is not there.

A checkpoint is a directory of files in formats that others read: arrays as safetensors, the rest
as JSON, and `SHA256SUMS`, which `sha256sum --check` verifies too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ARRAYS = "state.safetensors"
_SUMS = "SHA256SUMS"
_PREFIX = "step-"
_ASIDE = ".writing-"  # what begins so is not complete, or is on its way out
_LEAVING = ".deleting-"


class DamagedCheckpointError(OSError):
    """A checkpoint's files are not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, whose files were verified.

    Attributes:
        path: Its directory.
        documents: What its JSON files hold, by name.
        arrays: The saved arrays, by key.
    """

    path: Path
    documents: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


class Store:
    """The checkpoints in one directory.

    Args:
        directory: Where they are; made when the first is written.
        keep: How many to keep.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep

    def tidy(self) -> None:
        """Removes what a killed run left half-written."""
        for path in self._entries((_ASIDE, _LEAVING)):
            shutil.rmtree(path)

    def paths(self) -> list[Path]:
        """The checkpoints, newest first."""
        return sorted(self._entries((_PREFIX,)), key=_step, reverse=True)

    def _entries(self, prefixes: tuple[str, ...]) -> Iterator[Path]:
        if self.directory.is_dir():
            yield from (p for p in self.directory.iterdir() if p.name.startswith(prefixes))

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is intact, None where there is none at all.

        Args:
            warn: Told of each that is damaged.

        Raises:
            DamagedCheckpointError: If there are checkpoints and all of them are damaged.
        """
        damage = ""
        for path in self.paths():
            try:
                return _read(path)
            except (OSError, ValueError) as error:
                damage = f"The checkpoint '{path}' is damaged: {error}"
                warn(f"{damage}. The one before it is used.")
        if damage:
            raise DamagedCheckpointError(
                f"{damage}. There is no other: remove '{self.directory}' to start anew."
            )
        return None

    def write(
        self, step: int, arrays: Mapping[str, np.ndarray], documents: Mapping[str, Any]
    ) -> Path:
        """Writes a checkpoint aside, syncs it, and renames it; then removes the oldest.

        Raises:
            OSError: If it cannot be written; nothing of it is left, and the others are untouched.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        name = f"{_PREFIX}{step:010d}"
        aside, path = self.directory / f"{_ASIDE}{name}", self.directory / name
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir()
            _write_files(aside, arrays, documents)
            if path.exists():  # a damaged one, which was fallen back from
                self._remove(path)
            aside.rename(path)
        except Exception as error:
            shutil.rmtree(aside, ignore_errors=True)
            if isinstance(error, OSError):
                raise
            raise OSError(str(error)) from error  # safetensors has an error of its own
        _sync(self.directory)
        for old in self.paths()[self.keep :]:
            self._remove(old)
        return path

    def _remove(self, path: Path) -> None:
        """Removes a checkpoint so that at no moment a part of it looks like a whole."""
        leaving = path.with_name(f"{_LEAVING}{path.name}")
        shutil.rmtree(leaving, ignore_errors=True)
        path.rename(leaving)
        shutil.rmtree(leaving)


def _step(path: Path) -> int:
    digits = path.name.removeprefix(_PREFIX)
    return int(digits) if digits.isdigit() else -1


def _write_files(
    directory: Path, arrays: Mapping[str, np.ndarray], documents: Mapping[str, Any]
) -> None:
    from safetensors.numpy import save_file

    save_file(dict(arrays), directory / ARRAYS)
    for name, document in documents.items():
        text = json.dumps(document, indent=1 if name == "session" else None)
        (directory / f"{name}.json").write_text(text, encoding="utf-8")
    names = sorted(path.name for path in directory.iterdir())
    sums = [f"{_sha256(directory / name)}  {name}\n" for name in names]
    (directory / _SUMS).write_text("".join(sums), encoding="utf-8")
    for name in [*names, _SUMS]:
        _sync(directory / name)
    _sync(directory)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> Checkpoint:
    from safetensors.numpy import load_file

    lines = (path / _SUMS).read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("  ") for line in lines)
    sums = {name: digest for digest, _, name in pairs}
    if sums.keys() != {p.name for p in path.iterdir()} - {_SUMS} or ARRAYS not in sums:
        raise DamagedCheckpointError(f"{_SUMS} does not name the files that there are")
    for name, digest in sums.items():
        if _sha256(path / name) != digest:
            raise DamagedCheckpointError(f"the checksum of {name} is another")
    documents = {
        Path(name).stem: json.loads((path / name).read_text(encoding="utf-8"))
        for name in sums
        if name.endswith(".json")
    }
    return Checkpoint(path, documents, load_file(path / ARRAYS))
