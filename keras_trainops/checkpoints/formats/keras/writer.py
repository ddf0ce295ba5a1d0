"""Write `.keras` files and directories: new weights, everything else copied from the source."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.hdf5 import writer as hdf5
from keras_trainops.checkpoints.formats.keras.members import (
    CONFIG,
    WEIGHTS,
    small_file,
    small_member,
)
from keras_trainops.checkpoints.storage.copying import copy_directory
from keras_trainops.checkpoints.storage.limits import refuse_bomb, refuse_unsafe_names
from keras_trainops.checkpoints.storage.writing import UnwritableError
from keras_trainops.checkpoints.storage.zip_archives import refuse_repeated
from keras_trainops.errors import RestoreError

NAME = ".keras"


def whole_model(path: str, config: bytes) -> dict[str, Any]:
    """Return the structure of a model: where the other members are, to copy them.

    Args:
        path: Path of the file or directory.
        config: The model's configuration.
    """
    return {NAME: {"source": str(Path(path).absolute()), "config": zlib.crc32(config)}}


def write_archive(
    path: Path,
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> list[str]:
    """Write a `.keras` file like the source; `Writer` describes the arguments.

    Raises:
        UnwritableError: If the source is not a `.keras` file that is still there, or its weights
            cannot be written; nothing is written.
    """
    source = _source(checkpoint)
    if not zipfile.is_zipfile(source):
        raise _missing(source)
    with (
        tempfile.TemporaryDirectory(dir=path.parent) as temporary,
        zipfile.ZipFile(source) as old,
    ):
        _require_readable(old, str(source))
        _require_same(checkpoint, small_member(old, CONFIG), source)
        weights = Path(temporary, WEIGHTS)
        lines = hdf5.write(weights, checkpoint, keys, progress)
        with zipfile.ZipFile(path, "w") as new:
            for member in old.infolist():
                is_new = member.filename == WEIGHTS
                with (
                    weights.open("rb") if is_new else old.open(member) as content,
                    new.open(_like(member), "w", force_zip64=True) as copied,
                ):
                    shutil.copyfileobj(content, copied, 1 << 20)
    return lines + hdf5.outdated_configuration(checkpoint, keys)


def write_directory(
    path: Path,
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> list[str]:
    """Write an unzipped `.keras` directory like the source; `Writer` describes the arguments.

    Raises:
        UnwritableError: If the source is not a directory that is still there, or its weights cannot
            be written; nothing is written.
    """
    source = _source(checkpoint)
    if not (source / WEIGHTS).is_file():
        raise _missing(source)
    _require_same(checkpoint, small_file(source / CONFIG), source)
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        weights = Path(temporary, WEIGHTS)
        lines = hdf5.write(weights, checkpoint, keys, progress)
        copy_directory(source, path, lambda below: below != Path(WEIGHTS))
        weights.rename(path / WEIGHTS)
    return lines + hdf5.outdated_configuration(checkpoint, keys)


def _like(member: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """Return an entry for a new member with the name, time and compression of another."""
    entry = zipfile.ZipInfo(member.filename, member.date_time)
    entry.compress_type, entry.external_attr = member.compress_type, member.external_attr
    return entry


def _source(checkpoint: Checkpoint) -> Path:
    about = checkpoint.structure().get(NAME)
    if about is None:
        raise UnwritableError(
            "A .keras file contains the model's configuration, so it is only written like another "
            "one. For a model, call `model.save('….keras')`."
        )
    return Path(about["source"])


def _missing(source: Path) -> UnwritableError:
    return UnwritableError(
        f"{str(source)!r} is no longer there: the configuration and the assets are copied from it. "
        "Put it back, or save the model with `model.save('….keras')`."
    )


def _require_same(checkpoint: Checkpoint, config: bytes, source: Path) -> None:
    """Raise if the source has another configuration than when it was opened, or none.

    Raises:
        UnwritableError: If it differs, or is missing.
    """
    if not config:
        raise UnwritableError(f"{str(source)!r} contains no {CONFIG}, so it is not copied.")
    if zlib.crc32(config) != checkpoint.structure()[NAME]["config"]:
        raise UnwritableError(f"{str(source)!r} is another model than it was: open it again.")


def _require_readable(archive: zipfile.ZipFile, location: str) -> None:
    """Raise if the archive could not be opened as a checkpoint.

    Raises:
        RestoreError: If a member is ambiguous, leads elsewhere, or claims far more than is stored.
    """
    refuse_repeated(archive, location)
    refuse_unsafe_names([name.rstrip("/") for name in archive.namelist()], location)
    for member in archive.infolist():
        if member.filename != WEIGHTS:
            what = f"the member {member.filename!r}"
            refuse_bomb(what, member.file_size, member.compress_size, location)
    if WEIGHTS not in archive.namelist():
        raise RestoreError(f"{location!r} contains no {WEIGHTS}.")
