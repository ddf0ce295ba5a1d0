"""Sharded Keras weights: `.weights.json` and the `.weights.h5` files beside it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Mapping
from itertools import chain
from typing import Any

from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats.hdf5.file import MAGIC, Hdf5File, open_hdf5
from keras_trainops.checkpoints.formats.hdf5.values import Values
from keras_trainops.checkpoints.formats.keras.naming import by_number
from keras_trainops.checkpoints.formats.keras.weights import KerasWeightsCheckpoint, scan
from keras_trainops.checkpoints.storage.files import open_regular
from keras_trainops.checkpoints.storage.raw import Fingerprint
from keras_trainops.checkpoints.storage.shards import listed_files
from keras_trainops.errors import RestoreError


class KerasShardsCheckpoint(KerasWeightsCheckpoint):
    """The weights listed in an index by group; a group may be spread over several shards."""

    format = "sharded Keras weights (.weights.json)"

    def __init__(self, location: str, listed: Mapping[str, list[str]]) -> None:
        self._listed = {
            place.strip("/").rpartition("vars")[0].rstrip("/"): paths
            for place, paths in listed.items()
        }
        paths = dict.fromkeys(chain.from_iterable(listed.values()))
        fingerprint = Fingerprint([location, *paths])  # taken before any file is read
        self._shards: dict[str, Hdf5File] = {}
        self._plain_files: dict[str, io.FileIO] = {}
        self._opened = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:  # closes all shards on failure
            for path in paths:
                self._shards[path] = opened.enter_context(contextlib.closing(open_hdf5(path)))
                self._plain_files[path] = opened.enter_context(open_regular(path))
            super().__init__(location, next(iter(self._shards.values())))
            self._fingerprint = fingerprint
            self._opened = opened.pop_all()

    def _find_datasets(self, file: Hdf5File) -> None:
        owners: dict[str, str] = {}
        datasets: dict[tuple[str, str], Values] = {}
        for path, shard in self._shards.items():
            names, found = scan(shard, path)
            for group, name in names.items():  # only one shard of a spread group has its name
                owners[group] = owners.get(group) or name
            self._refuse_repeated(datasets, found)
            listed = {place: found[place] for place in found if self._lists(path, place[0])}
            datasets.update(listed)
        self._refuse_missing({group for group, _ in datasets})
        numbers = {group: number for number, group in enumerate(self._listed)}
        in_order = sorted(datasets, key=lambda place: (numbers[place[0]], by_number(place[1])))
        self._name_datasets(owners, {place: datasets[place] for place in in_order})

    def _lists(self, path: str, group: str) -> bool:
        return path in self._listed.get(group, ())

    def _refuse_repeated(
        self, known: Collection[tuple[str, str]], found: Collection[tuple[str, str]]
    ) -> None:
        for place in found:
            if place in known:
                raise RestoreError(
                    f"{self.location!r}: two of its shards contain {'/'.join(place)!r}."
                )

    def _refuse_missing(self, found: Collection[str]) -> None:
        lost = self._listed.keys() - found
        if lost:
            raise RestoreError(
                f"{self.location!r} lists {min(lost)!r} in {self._listed[min(lost)]}, but it is "
                "missing there."
            )

    def _plain_file(self, values: Values) -> io.FileIO:
        return self._plain_files[values.file]

    def _structure(self) -> Mapping[str, Any]:
        return {}  # no writer uses it

    def close(self) -> None:
        super().close()
        self._opened.close()


def _recognise(candidate: Candidate) -> bool:
    return candidate.shard_head.startswith(MAGIC)


def _open(location: str) -> KerasShardsCheckpoint:
    return KerasShardsCheckpoint(location, listed_files(location))


FORMAT = Format(".weights.json", _recognise, _open)
