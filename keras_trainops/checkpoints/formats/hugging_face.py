"""Directories of Hugging Face: `config.json`, the weights, and the files of a tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats import safetensors, sharded, torch
from keras_trainops.checkpoints.forwarding import ForwardingCheckpoint
from keras_trainops.checkpoints.storage.copying import copy_directory
from keras_trainops.checkpoints.storage.writing import UnwritableError
from keras_trainops.errors import RestoreError

STRUCTURE = "hugging face"  # the name of its entry in `Checkpoint.structure`
_CONFIG = "config.json"
# The first of these files has the weights, as in transformers.
_WEIGHTS = {
    "model.safetensors": safetensors.FORMAT,
    "model.safetensors.index.json": sharded.FORMAT,
    "pytorch_model.bin": torch.FORMAT,
    "pytorch_model.bin.index.json": sharded.FORMAT,
}
# Other copies of the weights, and training state: outdated.
_OUTDATED_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*", "optimizer.bin"),
    *("optimizer.pt", "consolidated*.pth", "tf_model*", "flax_model*", "rust_model.ot"),
    *("model.ckpt*", "*.onnx", "*.onnx_data", "openvino_*", "*.tflite", "*.mlmodel", "*.gguf"),
)
_OUTDATED_DIRECTORIES = ("onnx", "openvino*", "coreml", "*.mlpackage", "original", "checkpoint-*")
_NOT_COPIED = (".cache", ".git")


class HuggingFaceCheckpoint(ForwardingCheckpoint):
    """The weights in a directory.

    Args:
        location: The directory, as the user gave it.
        file: The name of the file with the weights, or of their index.
    """

    def __init__(self, location: str, file: str) -> None:
        super().__init__(_WEIGHTS[file].open(os.path.join(location, file)), location)
        self.format = f"Hugging Face directory, {self.inner.format}"
        self._file = file

    def _structure(self) -> Mapping[str, Any]:
        own = {"directory": os.path.abspath(self.location), "file": self._file}
        return {**self.inner.structure(), STRUCTURE: own}


def write(
    path: Path,
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> list[str]:
    """Write a directory with the source's other files; `Writer` describes the arguments.

    Weights in other formats are left out, as they would still be those of the source.

    Raises:
        UnwritableError: If the checkpoint is not of such a directory, or the format of the weights
            cannot store a tensor.
        RestoreError: If a file cannot be copied: it is a pipe, for example.
    """
    structure = checkpoint.structure().get(STRUCTURE, {})
    file = structure.get("file")
    if file not in _WEIGHTS:
        raise UnwritableError(
            "A Hugging Face directory can only be written like another one, which has its "
            "configuration."
        )
    writer = _WEIGHTS[file].write
    assert writer is not None
    path.mkdir()
    lines = list(writer(path / file, checkpoint, keys, progress) or ())
    source = Path(structure["directory"])
    # A plan can name any directory, so it is checked that this is one with weights.
    if not ((source / _CONFIG).is_file() and (source / file).is_file()):
        return [
            *lines,
            f"Only weights were written, as {str(source)!r} does not contain {file} any more: "
            f"{_CONFIG} and the files of the tokenizer are missing.",
        ]
    written = {entry.name for entry in path.iterdir()}
    left_out = _outdated(source, written)
    not_copied = {*_NOT_COPIED, *(name.rstrip("/") for name in left_out)}

    def is_wanted(below: Path) -> bool:
        top = below.parts[0]
        return not (top in not_copied or below.name in _NOT_COPIED or top in written)

    copy_directory(source, path, is_wanted, follow_links=True)
    if left_out:
        lines.append(f"Not copied, as only {file} has the new weights: {', '.join(left_out)}.")
    return lines


def _outdated(source: Path, written: Collection[str]) -> list[str]:
    """Return what has the old weights: the names of files, and of directories with a slash."""
    found = []
    for entry in sorted(source.iterdir()):
        is_directory = entry.is_dir()
        patterns = _OUTDATED_DIRECTORIES if is_directory else _OUTDATED_FILES
        is_outdated = any(fnmatchcase(entry.name, pattern) for pattern in patterns)
        if is_outdated and entry.name not in written:
            found.append(f"{entry.name}/" if is_directory else entry.name)
    return found


def _weights_in(directory: Path) -> str | None:
    """Return the name of the file with the weights; None if this is not such a directory."""
    if not (directory / _CONFIG).is_file():
        return None
    return next((file for file in _WEIGHTS if (directory / file).is_file()), None)


def _recognise(candidate: Candidate) -> bool:
    return candidate.is_directory and _weights_in(candidate.path) is not None


def _open(location: str) -> HuggingFaceCheckpoint:
    file = _weights_in(Path(location))
    if file is None:
        raise RestoreError(f"{location!r} does not contain weights any more.")
    return HuggingFaceCheckpoint(location, file)


FORMAT = Format("Hugging Face directories", _recognise, _open, (), write)
