"""TensorFlow checkpoints: TF1 name-based (V1 and V2), TF2 object-based, SavedModel directories.

The keys of object-based checkpoints are the variables' names (`dense/kernel`), which their object
graph stores. If two objects have the same name or none, the key is the path through the objects
(`model/layers/3/kernel`).
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.dtypes import nbytes
from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats.tensorflow import bundle, files
from keras_trainops.checkpoints.formats.tensorflow.library import tensorflow
from keras_trainops.checkpoints.formats.tensorflow.object_graph import (
    OBJECT_GRAPH,
    copies_in_object_graph,
    names_in_object_graph,
)
from keras_trainops.checkpoints.formats.tensorflow.writer import NAME, write
from keras_trainops.checkpoints.storage.files import open_regular, read_file, require_file
from keras_trainops.checkpoints.storage.limits import refuse_bomb
from keras_trainops.checkpoints.storage.raw import Checksum, Extent
from keras_trainops.checkpoints.training_state import by_name
from keras_trainops.errors import RestoreError

_MOST_STATE = 16 * 2**20  # bytes of a `checkpoint` state file


class _Tensor(NamedTuple):
    tensor_name: str
    shape: tuple[int, ...]
    dtype: np.dtype


class TensorFlowCheckpoint(Checkpoint):
    """A TensorFlow checkpoint.

    Whole tensors of V2 checkpoints are read as plain bytes, and their checksums verified here. All
    others are read and verified by TensorFlow's own reader.

    Args:
        text: The prefix, one of the files, or TensorFlow's name for them.
        location: The path, as the user gave it.
        kind: A description of the format; by default, TF1 or TF2 as recognised.

    Attributes:
        layout: The structure of the directory, if `location` is one.
    """

    checksums = True
    layout: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, text: str, location: str, kind: str | None = None) -> None:
        found = files.files_of(text)
        if found is None:
            raise RestoreError(f"There is no TensorFlow checkpoint at {text!r}.")
        super().__init__(location, found.paths)
        self._files, self._opened = found, dict[str, io.FileIO]()
        self._stored = sum(map(require_file, found.paths))
        with contextlib.ExitStack() as opened:  # closes everything on failure
            self._name = opened.enter_context(files.name_for_tensorflow(found))
            self._reader = tensorflow().compat.v1.train.NewCheckpointReader(self._name)
            self._find_tensors(kind)
            self._links = opened.pop_all()

    def _find_tensors(self, kind: str | None) -> None:
        shapes = self._reader.get_variable_to_shape_map()
        dtypes = self._reader.get_variable_to_dtype_map()
        if not shapes:
            raise RestoreError(
                f"The TensorFlow checkpoint at {self.location!r} contains no tensors. "
                "Pass the checkpoint's prefix, without `.index` or `.data-…`."
            )
        if OBJECT_GRAPH in shapes:
            self.format = kind or "TF2 object-based checkpoint"
            self._graph = self._reader.get_tensor(OBJECT_GRAPH)
            names, state = names_in_object_graph(self._graph, shapes)
        else:
            self._graph = b""
            self.format = kind or "TF1 name-based checkpoint"
            names = {name: name for name in sorted(shapes)}
            state = _name_based_training_state(shapes)
        self._tensors = {
            key: _Tensor(name, tuple(shapes[name]), np.dtype(dtypes[name].as_numpy_dtype))
            for key, name in names.items()
        }
        self.training_state = state

    @functools.cached_property
    def _places(self) -> Mapping[bytes, bundle.TensorPlace]:
        return bundle.places(self._files.prefix) if self._files.is_v2 else {}

    def _extent(self, key: str) -> Extent | None:
        tensor = self._tensors[key]
        place = self._places.get(tensor.tensor_name.encode())
        size = nbytes(tensor.shape, tensor.dtype)
        if place is None or place.size != size or tensor.dtype.hasobject:
            return None
        if place.file not in self._opened:
            self._opened[place.file] = open_regular(place.file)
        checksum = Checksum.of_tensorflow(place.checksum)
        return Extent(self._opened[place.file], place.offset, checksum)

    def _structure(self) -> Mapping[str, Any]:
        copies, unclear = self._copies() if self._graph else ({}, [])
        partitioned = self._partitioned()
        names = {key: tensor.tensor_name for key, tensor in self._tensors.items()}
        return {
            NAME: {
                **self.layout,
                "graph": base64.b64encode(self._graph).decode(),
                "tensors": {key: [name, *copies.get(name, ())] for key, name in names.items()},
                "unclear": unclear,
                "partitioned": partitioned,
                "is_v1": not self._files.is_v2,
                "has_meta": os.path.exists(f"{self._files.prefix}.meta"),
            }
        }

    def _copies(self) -> tuple[dict[str, list[str]], list[str]]:
        """Return the copies of each tensor, and those that are copies of none or of several."""
        copies: dict[str, list[str]] = {}
        unclear = []
        shapes = self._reader.get_variable_to_shape_map()
        for name, candidates in copies_in_object_graph(self._graph, shapes).items():
            same = [candidate for candidate in candidates if self._same(candidate, name)]
            if len(same) == 1:
                copies.setdefault(same[0], []).append(name)
            else:
                unclear.append(name)
        return copies, unclear

    def _same(self, name: str, other: str) -> bool:
        """Return True if two tensors have the same checksum."""
        first, second = self._places.get(name.encode()), self._places.get(other.encode())
        if first is None or second is None:
            return False
        return (first.size, first.checksum) == (second.size, second.checksum)

    def _partitioned(self) -> list[str]:
        names = {key: tensor.tensor_name.encode() for key, tensor in self._tensors.items()}
        return [key for key in names if self._places and names[key] not in self._places]

    def close(self) -> None:
        for file in self._opened.values():
            file.close()
        self._links.close()

    def _keys(self) -> Mapping[str, _Tensor]:
        return self._tensors

    def _shape(self, key: str) -> tuple[int, ...]:
        return self._tensors[key].shape

    def _dtype(self, key: str) -> np.dtype:
        return self._tensors[key].dtype

    def _read(self, key: str) -> np.ndarray:
        claimed = nbytes(self._shape(key), self._dtype(key))
        refuse_bomb(f"the tensor {key!r}", claimed, self._stored, self.location)
        name = self._tensors[key].tensor_name
        if self._files.is_v2:
            return np.asarray(self._reader.get_tensor(name), self._dtype(key))
        # The V1 reader refuses partitioned tensors, but the `Restore` operation reads them.
        tf = tensorflow()
        with tf.init_scope(), tf.device("CPU:0"):
            dtype = self._reader.get_variable_to_dtype_map()[name]
            return np.array(tf.raw_ops.Restore(file_pattern=self._name, tensor_name=name, dt=dtype))


def _is_prefix(candidate: Candidate) -> bool:
    """Recognise a prefix, one of the files, or TensorFlow's name for them."""
    return files.files_of(candidate.location) is not None


def _is_directory(candidate: Candidate) -> bool:
    """Recognise a SavedModel or a directory of checkpoints."""
    path = candidate.path
    return candidate.is_directory and (
        (path / "saved_model.pb").is_file() or bool(files.names_in(path))
    )


def open_prefix(text: str) -> Checkpoint:
    """Open a checkpoint by its prefix, one of its files, or TensorFlow's name for them."""
    return TensorFlowCheckpoint(text, location=text)


def open_directory(text: str) -> Checkpoint:
    """Open a SavedModel, or the latest checkpoint in a directory.

    Args:
        text: Path of the directory.

    Returns:
        The checkpoint.

    Raises:
        RestoreError: If the SavedModel has no variables, or it is unclear which checkpoint is the
            latest.
    """
    directory = Path(text)
    if (directory / "saved_model.pb").is_file():
        prefix = str(directory / "variables" / "variables")
        if files.files_of(prefix) is None:
            raise RestoreError(f"The SavedModel {text!r} has no variables/variables.index.")
        checkpoint = TensorFlowCheckpoint(prefix, location=text, kind="SavedModel")
        checkpoint.layout = {"saved_model": str(directory.absolute())}
        return checkpoint
    names = files.names_in(directory)
    latest = _latest(directory)
    if latest not in names:
        if len(names) != 1:
            raise RestoreError(
                f"{text!r} contains several checkpoints, and no state file names the latest. "
                f"Pass one: {', '.join(repr(os.path.join(text, name)) for name in names)}."
            )
        latest = names[0]
    prefix = os.path.join(text, latest)
    checkpoint = TensorFlowCheckpoint(prefix, location=text)
    checkpoint.layout = {
        "base_name": files.base_name(prefix),
        "has_state": (directory / files.STATE).exists(),
    }
    return checkpoint


def _latest(directory: Path) -> str | None:
    """Return the base name of the latest checkpoint according to the state file.

    The rest of the path may be that of another machine.
    """
    path = directory / files.STATE
    if not path.exists():
        return None
    read_file(str(path), _MOST_STATE)  # checks the size before TensorFlow reads it
    state = tensorflow().train.get_checkpoint_state(str(directory))
    return os.path.basename(state.model_checkpoint_path) if state else None


def _name_based_training_state(names: Iterable[str]) -> frozenset[str]:
    known = set(names)
    # In TF1 graphs, everything named below a variable exists for training.
    return by_name(known) | {name for name in known if name.rpartition("/")[0] in known}


FORMAT = Format(NAME, _is_prefix, open_prefix, ".ckpt", write)
DIRECTORY = Format(NAME, _is_directory, open_directory, write=write)
