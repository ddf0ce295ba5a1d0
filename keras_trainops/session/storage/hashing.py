"""SHA-256 of files, while they are written and later."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class HashedFile:
    """A new file, with the SHA-256 of what is written to it.

    Attributes:
        digest: The checksum in hexadecimal digits, once the file is closed.
    """

    def __init__(self, path: Path) -> None:
        self._file, self._hash = path.open("wb"), hashlib.sha256()
        self.digest = ""

    def write_all(self, pieces: Iterable[Any]) -> None:
        """Write bytes, piece by piece."""
        for piece in pieces:
            self._hash.update(piece)
            self._file.write(piece)

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self.digest = self._hash.hexdigest()


def sha256(path: Path) -> str:
    """Return the checksum of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
