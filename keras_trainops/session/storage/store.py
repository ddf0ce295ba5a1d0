"""A crash-safe directory of checkpoints: each one is complete or absent.

A checkpoint is a directory `step-0000000012` of files in common formats: arrays as safetensors, the
rest as JSON, and `SHA256SUMS`, which `sha256sum --check` verifies too. While it is being written,
its name begins with `.writing-`. If its step was saved before, the old checkpoint is renamed to
`.deleting-…` once the new one is complete, and removed when the new one has its name.

The store owns only directories with exactly such names, and removes only files from them that it
writes itself. It leaves everything else in the directory alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.checkpoints.formats.safetensors import content
from keras_trainops.session.state.record import DOCUMENTS, Record, parse
from keras_trainops.session.storage import shards
from keras_trainops.session.storage.hashing import HashedFile, sha256

ARRAYS = "state.safetensors"
SHARDS = shards.DIRECTORY
_UNFINISHED_SHARDS = f"{SHARDS}.orbax-checkpoint-tmp"
_REMOVED_SHARDS = f"{_UNFINISHED_SHARDS}-removed"
_SUMS = "SHA256SUMS"
_FILES = {ARRAYS, *(f"{name}.json" for name in DOCUMENTS)}
_STEP = re.compile(r"step-(\d{10,})")
_WRITING, _DELETING = ".writing-", ".deleting-"
_UNFINISHED = re.compile(rf"({re.escape(_WRITING)}|{re.escape(_DELETING)})({_STEP.pattern})")
# Earlier versions wrote to such a file and renamed it.
_TEMPORARY = re.compile(r"\.tmp\w{6}")
_MAX_SUMS_BYTES, _MAX_JSON_BYTES = 2**16, 2**28  # a session writes less


class DamagedCheckpointError(OSError):
    """The files of a checkpoint differ from those that were written."""


@dataclass(frozen=True)
class SavedStep:
    """A complete checkpoint with verified files.

    Attributes:
        path: Its directory.
        record: The state of the run, apart from arrays.
        arrays: The saved arrays, by key; some may be `ShardedArray`.
    """

    path: Path
    record: Record
    arrays: Mapping[str, Any]


class Store:
    """The checkpoints in one directory.

    Args:
        directory: The directory; the first checkpoint creates it.
        keep: Number of checkpoints to keep.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep
        self._damaged: set[Path] = set()

    def recover(self) -> None:
        """Clean up after a run that was killed during a save.

        Complete checkpoints that only lack their final name get it; all others are removed.
        """
        found = [(m, p) for p in self._directories() if (m := _UNFINISHED.fullmatch(p.name))]
        # A complete new checkpoint takes precedence over the one that it was to replace.
        for match, path in sorted(found, key=lambda pair: pair[0][1] != _WRITING):
            final = self.directory / match[2]
            if not os.path.lexists(final) and _is_complete(path, int(match[3])):
                path.rename(final)
                _sync(self.directory)
            else:
                _remove(path, successor=final)

    def paths(self) -> list[Path]:
        """Return the checkpoints, newest first, complete or not."""
        found = [p for p in self._directories(links=True) if _STEP.fullmatch(p.name)]
        return sorted((p for p in found if _has_files(p)), key=_step, reverse=True)

    def _directories(self, *, links: bool = False) -> Iterator[Path]:
        if self.directory.exists():
            for path in self.directory.iterdir():
                if path.is_dir() and (links or not path.is_symlink()):
                    yield path

    def newest(self, warn: Callable[[str], None]) -> SavedStep | None:
        """Return the newest intact checkpoint, or None without any checkpoint.

        Args:
            warn: Function called with a message about each damaged checkpoint.

        Raises:
            DamagedCheckpointError: If there are checkpoints and all of them are damaged.
        """
        damage, paths = "", self.paths()
        for path in paths:
            try:
                return _read(path, _step(path))
            except (OSError, ValueError) as error:
                self._damaged.add(path)
                damage = f"The checkpoint '{path}' is damaged: {error}."
                warn(damage + (" The one before it is used." if path != paths[-1] else ""))
        if damage:
            raise DamagedCheckpointError(
                f"{damage} There is no other: remove '{self.directory}' to start over."
            )
        return None

    def begin(self, step: int) -> Path:
        """Make the directory that becomes a checkpoint, and return it.

        Raises:
            OSError: If that fails.
        """
        if not self.directory.exists():
            self.directory.mkdir()
            _sync(self.directory.parent)
        new = self.unfinished(step)
        _remove(new)
        new.mkdir()
        return new

    def unfinished(self, step: int) -> Path:
        """Return the directory in which a checkpoint is written."""
        return self.directory / f"{_WRITING}{_name(step)}"

    def read(self, step: int) -> SavedStep:
        """Read the checkpoint of a step.

        Raises:
            OSError: If it is damaged or there is none.
            ValueError: If it is damaged.
        """
        return _read(self.directory / _name(step), step)

    def write(
        self,
        step: int,
        arrays: Mapping[str, np.ndarray],
        record: Record,
        wait_for_shards: Callable[[], None] | None = None,
    ) -> Path:
        """Write a checkpoint under a temporary name, sync it, and rename it.

        Args:
            step: The step of the checkpoint.
            arrays: The arrays to save, by key.
            record: The state of the run, apart from arrays.
            wait_for_shards: Waits for those who write `SHARDS` into the directory that `begin` has
                returned. None if nobody does.

        Returns:
            The directory of the checkpoint.

        Raises:
            OSError: If it cannot be written. Nothing of it is left, and other checkpoints are
                untouched.
        """
        path = self.directory / _name(step)
        new, old = self.unfinished(step), path.with_name(_DELETING + path.name)
        try:
            if wait_for_shards is None:
                self.begin(step)
            else:
                wait_for_shards()
            _write_files(new, arrays, record)
            self._publish(new, path, old)
        except Exception as error:
            _remove(new)
            if isinstance(error, OSError):
                raise
            raise OSError(str(error)) from error  # safetensors and Orbax raise their own
        _sync(self.directory)
        _remove(old, successor=path)
        self._damaged.discard(path)
        return path

    def _publish(self, new: Path, path: Path, old: Path) -> None:
        """Give a checkpoint its final name.

        Args:
            new: The complete checkpoint, under its temporary name.
            path: Its final name.
            old: The new name of a checkpoint that is already at `path`.

        Raises:
            OSError: If that fails, or if something at `path` is not a checkpoint of a session.
        """
        replaces = os.path.lexists(path)
        if replaces:
            if not _is_ours(path):
                raise FileExistsError(
                    f"'{path}' is in the way: it is not a checkpoint of a session, so it is not "
                    "replaced. Move it elsewhere"
                )
            _remove(old, successor=path)
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if replaces:
                old.rename(path)
            raise

    def prune(self, step: int) -> None:
        """Remove all checkpoints that are older than the `keep` newest intact ones.

        Args:
            step: The step of the newest intact checkpoint. Later ones are damaged and stay.

        Raises:
            OSError: If one cannot be removed.
        """
        paths = [p for p in self.paths() if _step(p) <= step and _is_ours(p)]
        intact = [p for p in paths if p not in self._damaged]
        if len(intact) >= self.keep:
            for path in paths[paths.index(intact[self.keep - 1]) + 1 :]:
                _remove(path)


def _name(step: int) -> str:
    return f"step-{step:010d}"


def _step(path: Path) -> int:
    match = _STEP.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _has_files(path: Path) -> bool:
    """Return True if a directory has any file of a checkpoint."""
    return any((path / name).is_file() for name in (_SUMS, *_FILES))


def _is_ours(path: Path) -> bool:
    """Return True if a session wrote this checkpoint, so that it may be replaced or removed."""
    if path.is_symlink():
        return False
    try:
        return ARRAYS in _checksums(path)
    except (OSError, ValueError):
        return False


def _remove(directory: Path, successor: Path | None = None) -> None:
    """Remove the files that the store writes, and the directory if that leaves it empty.

    Does nothing if the directory does not exist. The manifest is removed last: after an interrupted
    removal the checkpoint is damaged, but still recognised as the store's.

    Args:
        directory: The directory.
        successor: The checkpoint that replaces it and receives the files that the store did not
            write.
    """
    if directory.is_symlink() or not directory.is_dir():
        return
    names = {p.name for p in directory.iterdir()}
    ours = {name for name in names if _is_own(directory / name)}
    if successor is not None and successor.is_dir():
        _move(names - ours - {_SUMS}, directory, successor)
    for name in [*sorted(ours, reverse=True), *({_SUMS} & names)]:
        if _is_shards(directory / name):
            doomed = directory / _REMOVED_SHARDS  # recognised until all of it is gone
            (directory / name).rename(doomed)
            shutil.rmtree(doomed)
        else:
            (directory / name).unlink(missing_ok=True)
    if not any(directory.iterdir()):
        directory.rmdir()


def _is_own(path: Path) -> bool:
    return path.name in _FILES or _TEMPORARY.fullmatch(path.name) is not None or _is_shards(path)


def _is_shards(path: Path) -> bool:
    """Return True for the directory that Orbax writes, complete or not."""
    if path.is_symlink() or not path.is_dir():
        return False
    is_unfinished = path.name.startswith(_UNFINISHED_SHARDS)
    return is_unfinished or (path.name == SHARDS and (path / "_CHECKPOINT_METADATA").exists())


def _move(names: set[str], source: Path, target: Path) -> None:
    """Move the entries that `target` does not have yet."""
    for name in names:
        if not os.path.lexists(target / name):
            (source / name).rename(target / name)


def _write_files(directory: Path, arrays: Mapping[str, np.ndarray], record: Record) -> None:
    """Write and sync all files of a checkpoint, the manifest last.

    Checksums are taken while the bytes are written: reading them again takes time from training.
    """
    sums = {}
    with HashedFile(directory / ARRAYS) as file:
        file.write_all(content(ArraysCheckpoint(arrays), {key: key for key in arrays}))
    sums[ARRAYS] = file.digest
    for name, document in record.documents().items():
        text = json.dumps(document, indent=1 if name == "session" else None)
        with HashedFile(directory / f"{name}.json") as file:
            file.write_all([text.encode()])
        sums[f"{name}.json"] = file.digest
    lines = [f"{sums[name]}  {name}\n" for name in sorted(sums)]
    (directory / _SUMS).write_text("".join(lines), encoding="utf-8")
    for name in [*sorted(sums), _SUMS]:
        _sync(directory / name)
    _sync(directory)


def _sync(path: Path) -> None:
    """Wait until a file, or the entries of a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksums(path: Path) -> dict[str, str]:
    """Read the manifest: the checksum of each file."""
    lines = _read_bytes(path / _SUMS, _MAX_SUMS_BYTES).decode("utf-8").splitlines()
    pairs = [line.partition("  ") for line in lines]
    sums = {name: digest for digest, _, name in pairs}
    are_plain_names = all(name and Path(name).name == name for name in sums)
    if len(sums) < len(pairs) or not are_plain_names:
        raise DamagedCheckpointError(f"{_SUMS} is not a list of the checksums of its files")
    return sums


def _read_bytes(path: Path, most: int) -> bytes:
    if not path.is_file():  # reading a pipe or device could go on forever
        raise DamagedCheckpointError(f"there is no file {path.name}")
    if path.stat().st_size > most:
        raise DamagedCheckpointError(f"{path.name} is larger than any that a session writes")
    return path.read_bytes()


def _is_complete(path: Path, step: int) -> bool:
    try:
        _read(path, step)
    except (OSError, ValueError):
        return False
    return True


def _read(path: Path, step: int) -> SavedStep:
    """Read and verify a checkpoint.

    Raises:
        OSError: If it is damaged.
        ValueError: If it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    _verify(path)
    try:
        arrays: dict[str, Any] = load_file(path / ARRAYS)
    except (SafetensorError, KeyError) as error:
        raise DamagedCheckpointError(f"{ARRAYS} cannot be read: {error}") from error
    texts = {name: _read_bytes(path / f"{name}.json", _MAX_JSON_BYTES) for name in DOCUMENTS}
    if _is_shards(path / SHARDS):
        arrays |= shards.read(path)
    record = parse(texts, arrays)
    if record.step != step:
        raise DamagedCheckpointError(f"session.json is for step {record.step}")
    return SavedStep(path, record, arrays)


def _verify(path: Path) -> None:
    """Compare all files of a checkpoint with its manifest."""
    sums = _checksums(path)
    missing = sorted(_FILES - sums.keys())
    if missing:
        raise DamagedCheckpointError(f"{_SUMS} does not name {', '.join(missing)}")
    for name, digest in sums.items():
        if not (path / name).is_file():
            raise DamagedCheckpointError(f"there is no file {name}, which {_SUMS} names")
        if sha256(path / name) != digest:
            raise DamagedCheckpointError(f"the checksum of {name} does not match")
