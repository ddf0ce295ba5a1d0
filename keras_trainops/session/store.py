"""A crash-safe directory of checkpoints: each is complete, or it is not there.

A checkpoint is a directory `step-0000000012` of files in formats that others read: arrays as
safetensors, the rest as JSON, and `SHA256SUMS`, which `sha256sum --check` verifies too. While one
is written its name begins with `.writing-`. One that is replaced, as its step is saved again, is
renamed to `.deleting-…` when the new one is complete, and removed when that has its name.

Only directories with exactly such a name are the store's, and only files that it writes itself are
removed from them. Everything else in the directory is somebody else's, and left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_trainops.session.record import DOCUMENTS, Record, parse

ARRAYS = "state.safetensors"
_SUMS = "SHA256SUMS"
_FILES = {ARRAYS, *(f"{name}.json" for name in DOCUMENTS)}
_STEP = re.compile(r"step-(\d{10,})")
_WRITING, _DELETING = ".writing-", ".deleting-"
_ASIDE = re.compile(rf"({re.escape(_WRITING)}|{re.escape(_DELETING)})({_STEP.pattern})")
# The safetensors library writes to such a file, and renames it.
_TEMPORARY = re.compile(r"\.tmp\w{6}")
_MOST_SUMS, _MOST_JSON = 2**16, 2**28  # bytes: more is none of ours


class DamagedCheckpointError(OSError):
    """A checkpoint's files are not what was written."""


@dataclass(frozen=True)
class SavedStep:
    """A complete checkpoint, whose files were verified.

    Attributes:
        path: Its directory.
        record: Where the run stood.
        arrays: The saved arrays, by key.
    """

    path: Path
    record: Record
    arrays: Mapping[str, np.ndarray]


class Store:
    """The checkpoints in one directory.

    Args:
        directory: Where they are; made when the first is written.
        keep: How many to keep.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep
        self._damaged: set[Path] = set()

    def recover(self) -> None:
        """Clears up after a run that was killed while it wrote.

        What is complete and only lacks its name gets it back; the rest is removed.
        """
        found = [(m, p) for p in self._directories() if (m := _ASIDE.fullmatch(p.name))]
        # A complete new one before the one that it was to replace.
        for match, path in sorted(found, key=lambda pair: pair[0][1] != _WRITING):
            place = self.directory / match[2]
            if not os.path.lexists(place) and _is_whole(path, int(match[3])):
                path.rename(place)
                _sync(self.directory)
            else:
                _remove(path, heir=place)

    def paths(self) -> list[Path]:
        """The checkpoints, newest first, complete or not."""
        found = [p for p in self._directories(links=True) if _STEP.fullmatch(p.name)]
        return sorted((p for p in found if _has_files(p)), key=_step, reverse=True)

    def _directories(self, *, links: bool = False) -> Iterator[Path]:
        if self.directory.exists():
            for path in self.directory.iterdir():
                if path.is_dir() and (links or not path.is_symlink()):
                    yield path

    def newest(self, warn: Callable[[str], None]) -> SavedStep | None:
        """The newest checkpoint that is intact, None where there is none at all.

        Args:
            warn: Told of each that is damaged.

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
                f"{damage} There is no other: remove '{self.directory}' to start anew."
            )
        return None

    def write(self, step: int, arrays: Mapping[str, np.ndarray], record: Record) -> Path:
        """Writes a checkpoint aside, syncs it, and gives it its name.

        Raises:
            OSError: If it cannot be written; nothing of it is left, and the others are untouched.
        """
        if not self.directory.exists():
            self.directory.mkdir()
            _sync(self.directory.parent)
        path = self.directory / f"step-{step:010d}"
        aside, leaving = (path.with_name(start + path.name) for start in (_WRITING, _DELETING))
        _remove(aside)
        try:
            aside.mkdir()
            _write_files(aside, arrays, record)
            self._give_name(aside, path, leaving)
        except Exception as error:
            _remove(aside)
            if isinstance(error, OSError):
                raise
            raise OSError(str(error)) from error  # safetensors has an error of its own
        _sync(self.directory)
        _remove(leaving, heir=path)
        self._damaged.discard(path)
        return path

    def _give_name(self, aside: Path, path: Path, leaving: Path) -> None:
        replaces = os.path.lexists(path)
        if replaces:
            if not _is_own(path):
                raise FileExistsError(
                    f"'{path}' is in the way: it is no checkpoint of a session, so it is not "
                    "replaced. Move it elsewhere"
                )
            _remove(leaving, heir=path)
            path.rename(leaving)
        try:
            aside.rename(path)
        except OSError:
            if replaces:
                leaving.rename(path)
            raise

    def prune(self, step: int) -> None:
        """Removes what is older than the `keep` newest good ones.

        Args:
            step: The newest good one. Later ones are damaged, and were fallen back from.

        Raises:
            OSError: If one cannot be removed.
        """
        paths = [p for p in self.paths() if _step(p) <= step and _is_own(p)]
        good = [p for p in paths if p not in self._damaged]
        if len(good) >= self.keep:
            for path in paths[paths.index(good[self.keep - 1]) + 1 :]:
                _remove(path)


def _step(path: Path) -> int:
    match = _STEP.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _has_files(path: Path) -> bool:
    """Whether a directory holds anything that a checkpoint does."""
    return any((path / name).is_file() for name in (_SUMS, *_FILES))


def _is_own(path: Path) -> bool:
    """Whether a checkpoint has a manifest of ours, so that it may be replaced and removed."""
    if path.is_symlink():
        return False
    try:
        return ARRAYS in _sums(path)
    except (OSError, ValueError):
        return False


def _remove(directory: Path, heir: Path | None = None) -> None:
    """Removes the files that we write and, where nothing else is there, the directory.

    The manifest goes last: what is left of a removal that was cut short is damaged, and ours.

    Args:
        directory: The directory; it need not be there.
        heir: What takes its place, and the files in it that are not ours.
    """
    if directory.is_symlink() or not directory.is_dir():
        return
    names = {p.name for p in directory.iterdir()}
    ours = {name for name in names if name in _FILES or _TEMPORARY.fullmatch(name)}
    if heir is not None and heir.is_dir():
        for name in names - ours - {_SUMS}:
            if not os.path.lexists(heir / name):
                (directory / name).rename(heir / name)
    for name in [*sorted(ours), *({_SUMS} & names)]:
        (directory / name).unlink(missing_ok=True)
    if not any(directory.iterdir()):
        directory.rmdir()


def _write_files(directory: Path, arrays: Mapping[str, np.ndarray], record: Record) -> None:
    from safetensors.numpy import save_file

    save_file(dict(arrays), directory / ARRAYS)
    for name, document in record.documents().items():
        text = json.dumps(document, indent=1 if name == "session" else None)
        (directory / f"{name}.json").write_text(text, encoding="utf-8")
    names = sorted(_FILES)
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


def _sums(path: Path) -> dict[str, str]:
    """The checksum of each file that the manifest names."""
    lines = _content(path / _SUMS, _MOST_SUMS).decode("utf-8").splitlines()
    pairs = [line.partition("  ") for line in lines]
    sums = {name: digest for digest, _, name in pairs}
    plain = all(name and Path(name).name == name for name in sums)
    if len(sums) < len(pairs) or not plain:
        raise DamagedCheckpointError(f"{_SUMS} is no list of the checksums of its files")
    return sums


def _content(path: Path, most: int) -> bytes:
    if not path.is_file():  # a pipe or device would have no end
        raise DamagedCheckpointError(f"there is no file {path.name}")
    if path.stat().st_size > most:
        raise DamagedCheckpointError(f"{path.name} is larger than any that a session writes")
    return path.read_bytes()


def _is_whole(path: Path, step: int) -> bool:
    try:
        _read(path, step)
    except (OSError, ValueError):
        return False
    return True


def _read(path: Path, step: int) -> SavedStep:
    """Reads a checkpoint.

    Raises:
        OSError: If it is damaged.
        ValueError: If it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    sums = _sums(path)
    missing = sorted(_FILES - sums.keys())
    if missing:
        raise DamagedCheckpointError(f"{_SUMS} does not name {', '.join(missing)}")
    for name, digest in sums.items():
        if not (path / name).is_file():
            raise DamagedCheckpointError(f"there is no file {name}, which {_SUMS} names")
        if _sha256(path / name) != digest:
            raise DamagedCheckpointError(f"the checksum of {name} is another")
    try:
        arrays = load_file(path / ARRAYS)
    except (SafetensorError, KeyError) as error:
        raise DamagedCheckpointError(f"{ARRAYS} cannot be read: {error}") from error
    texts = {name: _content(path / f"{name}.json", _MOST_JSON) for name in DOCUMENTS}
    record = parse(texts, arrays)
    if record.step != step:
        raise DamagedCheckpointError(f"session.json is of step {record.step}")
    return SavedStep(path, record, arrays)
