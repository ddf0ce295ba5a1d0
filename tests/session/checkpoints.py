"""Checkpoints that a store writes, and edits of their files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from keras_trainops.session.state import randomness
from keras_trainops.session.state.record import DataState, Position, Record
from keras_trainops.session.storage.store import SavedStep, Store

DIRECTORY = Path("checkpoints")


def folder(step: int) -> Path:
    return DIRECTORY / f"step-{step:010d}"


def save(step: int, keep: int = 9, value: float = 0.0) -> None:
    states = randomness.to_document(randomness.state())
    data = DataState(
        Position(0, step, True, 0, step),
        dict.fromkeys(("fit", "made", "used", "now"), states),
        batch_size=4,
    )
    callbacks = {
        "EarlyStopping/0": {"best": float("inf"), "best_weights": [{"array": "callbacks/b"}]}
    }
    record = Record(step, 0, step, "", 10, (0.1,), callbacks, ("net/w", "seed"), data)
    arrays = {
        "net/w": np.full(3, value),
        "seed": np.zeros(2, "uint32"),
        "callbacks/b": np.ones(2),
    }
    store = Store(DIRECTORY, keep)
    store.write(step, arrays, record)
    store.prune(step)


def newest(keep: int = 9) -> tuple[SavedStep | None, list[str]]:
    """Recover the directory; return the newest intact checkpoint and the warnings."""
    store, warnings = Store(DIRECTORY, keep), []
    store.recover()
    return store.newest(warnings.append), warnings


def content(root: Path = Path()) -> dict[str, bytes | str]:
    """Return all files and links under a directory."""
    return {
        str(p): os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else ""
        for p in root.rglob("*")
    }


def rewrite(path: Path, name: str, text: str | bytes) -> None:
    """Replace a file of a checkpoint, and its checksum in the manifest."""
    (path / name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    sums = path / "SHA256SUMS"
    digest = hashlib.sha256((path / name).read_bytes()).hexdigest()
    listed = sums.read_text(encoding="utf-8")
    sums.write_text(re.sub(rf"\w+(?=  {re.escape(name)}\n)", digest, listed), encoding="utf-8")


def edit(path: Path, name: str, **fields: Any) -> None:
    """Replace fields of a JSON file of a checkpoint."""
    document = json.loads((path / name).read_text(encoding="utf-8"))
    rewrite(path, name, json.dumps({**document, **fields}))
