"""Sharded safetensors: `model.safetensors.index.json` and the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats.safetensors import SafetensorsCheckpoint
from keras_trainops.checkpoints.storage.raw import Extent
from keras_trainops.checkpoints.storage.shards import listed_files
from keras_trainops.checkpoints.training_state import by_name
from keras_trainops.errors import RestoreError


class SafetensorsIndexCheckpoint(Checkpoint):
    """The tensors listed in an index, each read from its shard."""

    format = "sharded safetensors"

    def __init__(self, location: str, files: Mapping[str, list[str]]) -> None:
        super().__init__(location, [location, *chain.from_iterable(files.values())])
        self._shards: dict[str, SafetensorsCheckpoint] = {}
        try:
            self._shard_of = {key: self._shard(key, paths) for key, paths in files.items()}
        except BaseException:
            self.close()
            raise
        self.training_state = by_name(self._shard_of)

    def _shard(self, key: str, paths: list[str]) -> SafetensorsCheckpoint:
        if len(paths) != 1:
            raise RestoreError(f"{self.location!r}: {key!r} is not in one file, but in {paths}.")
        (path,) = paths
        if path not in self._shards:
            self._shards[path] = SafetensorsCheckpoint(path)
        if key not in self._shards[path]:
            raise RestoreError(f"{self.location!r} lists {key!r} in {path!r}, which lacks it.")
        return self._shards[path]

    def _keys(self) -> Mapping[str, SafetensorsCheckpoint]:
        return self._shard_of

    def _shape(self, key: str) -> tuple[int, ...]:
        return self._shard_of[key].shape(key)

    def _dtype(self, key: str) -> np.dtype:
        return self._shard_of[key].dtype(key)

    def _extent(self, key: str) -> Extent | None:
        return self._shard_of[key]._extent(key)

    def _read(self, key: str) -> np.ndarray:
        return self._shard_of[key][key]

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()


def _recognise(candidate: Candidate) -> bool:
    return bool(candidate.shard_head)


def _open(location: str) -> SafetensorsIndexCheckpoint:
    return SafetensorsIndexCheckpoint(location, listed_files(location))


FORMAT = Format("the index of .safetensors", _recognise, _open)
