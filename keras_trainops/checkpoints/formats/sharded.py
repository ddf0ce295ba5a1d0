"""Weights in several files with an index, as transformers writes them.

The index is `model.safetensors.index.json` or `pytorch_model.bin.index.json`; the files beside it
are `.safetensors` files or PyTorch state dicts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats import safetensors, torch
from keras_trainops.checkpoints.forwarding import Restructured
from keras_trainops.checkpoints.storage.parts import Index
from keras_trainops.checkpoints.storage.raw import Extent
from keras_trainops.checkpoints.storage.shards import is_plain, listed_files, other_entries
from keras_trainops.checkpoints.storage.writing import UnwritableError
from keras_trainops.checkpoints.training_state import by_name
from keras_trainops.errors import RestoreError

STRUCTURE = "sharded"  # the name of its entry in `Checkpoint.structure`
_KINDS = {"torch": torch.FORMAT, "safetensors": safetensors.FORMAT}  # the formats of shards


class ShardedCheckpoint(Checkpoint):
    """The tensors listed in an index, each read from its shard."""

    format = "sharded safetensors"

    def __init__(self, location: str, files: Mapping[str, list[str]]) -> None:
        super().__init__(location, [location, *chain.from_iterable(files.values())])
        self._beside_map = other_entries(location)
        self._shards: dict[str, Checkpoint] = {}
        self._kind = ""
        try:
            shard_of = {key: self._shard(key, paths) for key, paths in files.items()}
        except BaseException:
            self.close()
            raise
        # An index is sorted by name, which is not the order of a shard.
        in_order = ((key, shard) for shard in self._shards.values() for key in shard)
        self._shard_of = {key: shard for key, shard in in_order if shard_of.get(key) is shard}
        self.training_state = by_name(self._shard_of)
        if self._kind == "torch":
            self.format = "sharded PyTorch state dict"

    def _shard(self, key: str, paths: list[str]) -> Checkpoint:
        if len(paths) != 1:
            raise RestoreError(f"{self.location!r}: {key!r} is not in one file, but in {paths}.")
        (path,) = paths
        if path not in self._shards:
            self._shards[path] = self._open(path)
        if key not in self._shards[path]:
            raise RestoreError(f"{self.location!r} lists {key!r} in {path!r}, which lacks it.")
        return self._shards[path]

    def _open(self, path: str) -> Checkpoint:
        """Open a shard; the first one decides the format of all."""
        if not self._kind:
            is_torch = torch.FORMAT.recognise(Candidate(path))
            self._kind = "torch" if is_torch else "safetensors"
        return _KINDS[self._kind].open(path)

    def _structure(self) -> Mapping[str, Any]:
        names = {id(shard): Path(path).name for path, shard in self._shards.items()}
        structure = {
            "kind": self._kind,
            "index": self._beside_map,
            "files": {key: names[id(shard)] for key, shard in self._shard_of.items()},
            "shards": {names[id(shard)]: shard.structure() for shard in self._shards.values()},
        }
        return {STRUCTURE: structure}

    def _keys(self) -> Mapping[str, Checkpoint]:
        return self._shard_of

    def _shape(self, key: str) -> tuple[int, ...]:
        return self._shard_of[key].shape(key)

    def _dtype(self, key: str) -> np.dtype:
        return self._shard_of[key].dtype(key)

    def _extent(self, key: str) -> Extent | None:
        return self._shard_of[key]._extent(key)

    def _read(self, key: str) -> np.ndarray:
        return self._shard_of[key][key]

    def _read_part(self, key: str, index: Index) -> np.ndarray:
        return self._shard_of[key].part(key, index)

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()


def write(
    path: Path,
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> list[str]:
    """Write an index and the shards beside it; `Writer` describes the arguments.

    Raises:
        UnwritableError: If the checkpoint has no shards, one of them would not be beside the
            index, or the format of the shards cannot store a tensor.
    """
    structure = checkpoint.structure().get(STRUCTURE)
    if structure is None or structure.get("kind") not in _KINDS:
        raise UnwritableError(
            "An index of shards can only be written like another index, which names the shards."
        )
    kind = _KINDS[structure["kind"]]
    assert kind.write is not None
    file_of = {name: structure["files"].get(key) for name, key in keys.items()}
    lines: list[str] = []
    for file in dict.fromkeys(file_of.values()):
        _refuse_other_places(file, path, kind)
        inside = {name: key for name, key in keys.items() if file_of[name] == file}
        shard = Restructured(checkpoint, structure["shards"].get(file, {}))
        lines += kind.write(path.with_name(file), shard, inside, progress) or ()
    size = sum(checkpoint.nbytes(key) for key in keys.values())
    index = {**_resized(structure["index"], size), "weight_map": file_of}
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return lines


def _refuse_other_places(file: object, index: Path, kind: Format) -> None:
    """Raise if a shard is not a weights file beside the index: the structure may be of a plan.

    Raises:
        UnwritableError: If its name is a path, or not one of a weights file.
    """
    is_name = isinstance(file, str) and is_plain(file) and file.endswith(kind.suffixes)
    if not is_name or file == index.name:
        raise UnwritableError(
            f"A shard cannot be named {file!r}: it is no weights file beside OUT."
        )


def _resized(index: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return the entries of an index for tensors of another total size in bytes."""
    metadata = index.get("metadata")
    if not isinstance(metadata, Mapping) or metadata.get("total_size") in (None, size):
        return dict(index)
    kept = {name: value for name, value in metadata.items() if name != "total_parameters"}
    return {**index, "metadata": {**kept, "total_size": size}}


def _recognise(candidate: Candidate) -> bool:
    return bool(candidate.shard_head)


def _open(location: str) -> ShardedCheckpoint:
    return ShardedCheckpoint(location, listed_files(location))


FORMAT = Format("the index of shards (.index.json)", _recognise, _open, (), write)
