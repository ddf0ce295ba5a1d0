"""TensorFlow checkpoints: TF1 name-based (V1 and V2), TF2 object-based, SavedModel directories.

The keys of object-based checkpoints are the variables' names (`dense/kernel`), which their object
graph stores. If two objects have the same name or none, the key is the path through the objects
(`model/layers/3/kernel`).
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.dtypes import nbytes
from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats.tensorflow import bundle, files
from keras_trainops.checkpoints.storage.files import open_regular, read_file, require_file
from keras_trainops.checkpoints.storage.limits import refuse_bomb
from keras_trainops.checkpoints.storage.raw import Extent
from keras_trainops.checkpoints.training_state import by_name, is_counter, optimizer_scopes
from keras_trainops.errors import RestoreError

_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
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
    """

    checksums = True

    def __init__(self, text: str, location: str, kind: str | None = None) -> None:
        found = files.files_of(text)
        if found is None:
            raise RestoreError(f"There is no TensorFlow checkpoint at {text!r}.")
        super().__init__(location, found.paths)
        self._files, self._opened = found, dict[str, io.FileIO]()
        self._stored = sum(map(require_file, found.paths))
        with contextlib.ExitStack() as opened:  # closes everything on failure
            self._name = opened.enter_context(files.name_for_tensorflow(found))
            self._reader = _tensorflow().compat.v1.train.NewCheckpointReader(self._name)
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
        if _OBJECT_GRAPH in shapes:
            self.format = kind or "TF2 object-based checkpoint"
            names, state = _names_in_object_graph(self._reader.get_tensor(_OBJECT_GRAPH), shapes)
        else:
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
        return Extent(self._opened[place.file], place.offset, place.checksum)

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
            return np.asarray(self._reader.get_tensor(name))
        # The V1 reader refuses partitioned tensors, but the `Restore` operation reads them.
        tf = _tensorflow()
        with tf.init_scope(), tf.device("CPU:0"):
            dtype = self._reader.get_variable_to_dtype_map()[name]
            return np.array(tf.raw_ops.Restore(file_pattern=self._name, tensor_name=name, dt=dtype))


def _tensorflow() -> Any:
    try:
        import tensorflow
    except ImportError:
        raise RestoreError(
            "Reading a TensorFlow checkpoint needs TensorFlow: pip install tensorflow"
        ) from None
    return tensorflow


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
        return TensorFlowCheckpoint(prefix, location=text, kind="SavedModel")
    names = files.names_in(directory)
    latest = _latest(directory)
    if latest not in names:
        if len(names) != 1:
            raise RestoreError(
                f"{text!r} contains several checkpoints, and no state file names the latest. "
                f"Pass one: {', '.join(repr(os.path.join(text, name)) for name in names)}."
            )
        latest = names[0]
    return TensorFlowCheckpoint(os.path.join(text, latest), location=text)


def _latest(directory: Path) -> str | None:
    """Return the base name of the latest checkpoint according to the state file.

    The rest of the path may be that of another machine.
    """
    path = directory / "checkpoint"
    if not path.exists():
        return None
    read_file(str(path), _MOST_STATE)  # checks the size before TensorFlow reads it
    state = _tensorflow().train.get_checkpoint_state(str(directory))
    return os.path.basename(state.model_checkpoint_path) if state else None


def _name_based_training_state(names: Iterable[str]) -> frozenset[str]:
    known = set(names)
    # In TF1 graphs, everything named below a variable exists for training.
    return by_name(known) | {name for name in known if name.rpartition("/")[0] in known}


class _Saved(NamedTuple):
    """A variable of an object graph; `full_name` may be empty."""

    full_name: str
    object_path: str
    tensor_name: str


def _names_in_object_graph(
    serialized: bytes, shapes: Mapping[str, Any]
) -> tuple[dict[str, str], frozenset[str]]:
    """Parse an object graph.

    Args:
        serialized: A serialized `TrackableObjectGraph`.
        shapes: Mapping whose keys are the names of the stored tensors.

    Returns:
        Mapping from key to tensor name, and the keys that are training state.
    """
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(serialized)
    saved = _without_repeated(_saved_variables(graph, shapes))
    slots = _slot_tensors(graph)
    optimizers = optimizer_scopes(entry.object_path for entry in saved)
    counts = Counter(entry.full_name for entry in saved)
    names, state = {}, set()
    for entry in saved:
        is_unique = entry.full_name and counts[entry.full_name] == 1
        key = entry.full_name if is_unique else entry.object_path
        names[key] = entry.tensor_name
        if entry.tensor_name in slots or _is_training_state(entry, optimizers):
            state.add(key)
    return names, frozenset(state)


def _saved_variables(graph: Any, shapes: Mapping[str, Any]) -> Iterator[_Saved]:
    for node in graph.nodes:
        for attribute in node.attributes:
            key = attribute.checkpoint_key
            if key in shapes:
                yield _Saved(attribute.full_name, key.removesuffix(_VALUE_SUFFIX), key)


def _slot_tensors(graph: Any) -> set[str]:
    found: set[str] = set()
    for node in graph.nodes:
        for slot in node.slot_variables:
            attributes = graph.nodes[slot.slot_variable_node_id].attributes
            found.update(attribute.checkpoint_key for attribute in attributes)
    return found


def _is_training_state(entry: _Saved, optimizers: Iterable[str]) -> bool:
    return (
        any(_is_optimizers_own(entry.object_path, scope) for scope in optimizers)
        or is_counter(entry.full_name or entry.object_path)
        or entry.object_path.startswith("keras_api/metrics/")
    )


def _is_optimizers_own(object_path: str, optimizer: str) -> bool:
    """Return True for an optimizer's own variables; it also lists those of the model."""
    below = object_path.removeprefix(optimizer)
    return below != object_path and not below.startswith("_trainable_variables/")


def _without_repeated(saved: Iterable[_Saved]) -> list[_Saved]:
    """Drop the second copies that SavedModels store in their lists of variables.

    An exported model lists a variable under `variables` and again under `_all_variables`. If
    several lists at the root contain the same name, the first in the graph is used.
    """
    first_list: dict[str, str] = {}
    kept = []
    for entry in saved:
        root, _, rest = entry.object_path.partition("/")
        place = root if rest.isdigit() else entry.object_path
        if first_list.setdefault(entry.full_name, place) == place or not rest.isdigit():
            kept.append(entry)
    return kept


_NAME = "TensorFlow checkpoints (TF1, TF2, SavedModel)"
FORMAT = Format(_NAME, _is_prefix, open_prefix)
DIRECTORY = Format(_NAME, _is_directory, open_directory)
