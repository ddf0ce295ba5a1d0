"""Base class of HDF5 formats: the tensors are datasets of an open file."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.hdf5.file import Hdf5File
from keras_trainops.checkpoints.formats.hdf5.structure import STRUCTURE, structure_of
from keras_trainops.checkpoints.formats.hdf5.values import Values
from keras_trainops.checkpoints.storage.files import open_regular
from keras_trainops.checkpoints.storage.parts import Index
from keras_trainops.checkpoints.storage.raw import Extent
from keras_trainops.checkpoints.storage.zip_archives import FileWindow


class Hdf5Checkpoint(Checkpoint):
    """A checkpoint over an open HDF5 file; subclasses map keys to datasets.

    Closes the file if the constructor fails, as an open HDF5 file cannot be overwritten.

    Args:
        location: The path, as the user gave it.
        file: The open file.
        source: The file object that `file` was opened from, if any; closed with the checkpoint.
    """

    def __init__(self, location: str, file: Hdf5File, source: io.IOBase | None = None) -> None:
        self._file = file
        self._source = source
        self._datasets: dict[str, Values] = {}
        # The HDF5 file's place on disk, byte for byte; the path is empty if it was unpacked.
        path, self._start = (file.file.filename, 0) if source is None else _place(source)
        super().__init__(location, [path or location])
        self._plain = open_regular(path) if path else None
        try:
            self._find_datasets(file)
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _find_datasets(self, file: Hdf5File) -> None:
        """Set `_datasets` and `training_state`."""

    def _keys(self) -> Mapping[str, Any]:
        return self._datasets

    def _shape(self, key: str) -> tuple[int, ...]:
        return self._datasets[key].shape

    def _dtype(self, key: str) -> np.dtype:
        return self._datasets[key].dtype

    def _extent(self, key: str) -> Extent | None:
        values = self._datasets[key]
        plain = self._plain_file(values)
        if plain is None or values.offset is None or values.dtype.hasobject:
            return None
        return Extent(plain, self._start + values.offset)

    def _plain_file(self, values: Values) -> io.FileIO | None:
        """Return the file that contains `values`; subclasses may have several."""
        return self._plain

    def _read(self, key: str) -> np.ndarray:
        return self._read_part(key, ())

    def _read_part(self, key: str, index: Index) -> np.ndarray:
        return self._datasets[key][index]

    def _structure(self) -> Mapping[str, Any]:
        return {STRUCTURE: structure_of(self._file, self._datasets)}

    def close(self) -> None:
        for opened in (self._file, self._source, self._plain):
            if opened is not None:
                opened.close()


def _place(source: io.IOBase) -> tuple[str, int]:
    return (source.path, source.offset) if isinstance(source, FileWindow) else ("", 0)
