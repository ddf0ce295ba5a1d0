"""TensorFlow checkpoints: TF1 name-based (V1 and V2), TF2 object-based, SavedModel directories.

Object-based checkpoints are keyed by the names the variables had (`dense/kernel`), recovered from
the object graph that such a checkpoint carries; where two objects share a name, or have none, by
their path through the objects (`model/layers/3/kernel`).
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_trainops.checkpoints.arrays import nbytes
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats.tensorflow import bundle, files
from keras_trainops.checkpoints.storage.files import open_regular, read_file, require_file
from keras_trainops.checkpoints.storage.limits import refuse_bomb
from keras_trainops.checkpoints.storage.raw import Extent
from keras_trainops.checkpoints.training_state import OPTIMIZER_COUNTERS, by_name, is_counter
from keras_trainops.errors import RestoreError

_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_MOST_STATE = 16 * 2**20  # bytes of a `checkpoint` file, which lists paths


class _Tensor(NamedTuple):
    tensor_name: str
    shape: tuple[int, ...]
    dtype: np.dtype


class TensorFlowCheckpoint(Checkpoint):
    """A checkpoint by its prefix, through TensorFlow's own reader (which checks its checksums).

    Whole tensors of a V2 checkpoint are read as plain bytes, and their checksums compared here;
    TensorFlow puts together those that were partitioned.
    """

    checksums = True

    def __init__(self, text: str, location: str, kind: str | None = None) -> None:
        found = files.files_of(text)
        if found is None:
            raise RestoreError(f"There is no TensorFlow checkpoint at {text!r}.")
        super().__init__(location, found.paths)
        self._files, self._opened = found, dict[str, io.FileIO]()
        self._stored = sum(map(require_file, found.paths))
        with contextlib.ExitStack() as opened:  # closes all of it unless all goes well
            self._name = opened.enter_context(files.name_for_tensorflow(found))
            self._reader = _tensorflow().compat.v1.train.NewCheckpointReader(self._name)
            self._find_tensors(kind)
            self._links = opened.pop_all()

    def _find_tensors(self, kind: str | None) -> None:
        shapes = self._reader.get_variable_to_shape_map()
        dtypes = self._reader.get_variable_to_dtype_map()
        if not shapes:
            raise RestoreError(
                f"The TensorFlow checkpoint at {self.location!r} holds no tensor. One is named "
                "by its prefix, without `.index` or `.data-…`."
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
    def _places(self) -> Mapping[bytes, bundle.Place]:
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
        # The reader of V1 refuses what was partitioned; the operation that restores it does not.
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
    """Whether a path names a checkpoint or one of its files."""
    return files.files_of(candidate.location) is not None


def _is_directory(candidate: Candidate) -> bool:
    """Whether a directory is a SavedModel or holds a checkpoint."""
    path = candidate.path
    return candidate.is_directory and (
        (path / "saved_model.pb").is_file() or bool(files.names_in(path))
    )


def open_prefix(text: str) -> Checkpoint:
    """Opens a checkpoint by its prefix, by one of its files, or by TensorFlow's name for them."""
    return TensorFlowCheckpoint(text, location=text)


def open_directory(text: str) -> Checkpoint:
    """Opens a SavedModel, or the latest checkpoint of a directory.

    The `checkpoint` state file may name a path of another machine: only the base name counts.
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
                f"{text!r} holds several checkpoints and no state file says which is the latest. "
                f"Name one: {', '.join(repr(os.path.join(text, name)) for name in names)}."
            )
        latest = names[0]
    return TensorFlowCheckpoint(os.path.join(text, latest), location=text)


def _latest(directory: Path) -> str | None:
    """The base name of the checkpoint that a state file says is the latest."""
    path = directory / "checkpoint"
    if not path.exists():
        return None
    read_file(str(path), _MOST_STATE)  # looked at before TensorFlow reads it whole
    state = _tensorflow().train.get_checkpoint_state(str(directory))
    return os.path.basename(state.model_checkpoint_path) if state else None


def _name_based_training_state(names: Iterable[str]) -> frozenset[str]:
    """What names tell; and in a graph of TF1 whatever hangs on a variable is made for training."""
    known = set(names)
    return by_name(known) | {name for name in known if name.rpartition("/")[0] in known}


class _Saved(NamedTuple):
    full_name: str
    object_path: str
    tensor_name: str


def _names_in_object_graph(
    serialized: bytes, shapes: Mapping[str, Any]
) -> tuple[dict[str, str], frozenset[str]]:
    """Key -> tensor name, and the keys of training state, out of a serialized object graph."""
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(serialized)
    saved = _once_each(
        _Saved(
            attribute.full_name,
            attribute.checkpoint_key.removesuffix(_VALUE_SUFFIX),
            attribute.checkpoint_key,
        )
        for node in graph.nodes
        for attribute in node.attributes
        if attribute.checkpoint_key in shapes
    )
    slots = {slot.slot_variable_node_id for node in graph.nodes for slot in node.slot_variables}
    slot_tensors = {
        attribute.checkpoint_key
        for node_id in slots
        for attribute in graph.nodes[node_id].attributes
    }
    optimizers = [
        f"{parent}/"
        for parent, _, name in (entry.object_path.rpartition("/") for entry in saved)
        if name in OPTIMIZER_COUNTERS and parent
    ]
    counts = Counter(entry.full_name for entry in saved)
    names, state = {}, set()
    for entry in saved:
        unique = entry.full_name and counts[entry.full_name] == 1
        key = entry.full_name if unique else entry.object_path
        names[key] = entry.tensor_name
        if (
            entry.tensor_name in slot_tensors
            or any(_is_optimizers_own(entry.object_path, place) for place in optimizers)
            or is_counter(entry.full_name or entry.object_path)
            or entry.object_path.startswith("keras_api/metrics/")
        ):
            state.add(key)
    return names, frozenset(state)


def _is_optimizers_own(object_path: str, optimizer: str) -> bool:
    """Whether an object below an optimizer is its state; it lists the model's variables as well."""
    below = object_path.removeprefix(optimizer)
    return below != object_path and not below.startswith("_trainable_variables/")


def _once_each(saved: Iterable[_Saved]) -> list[_Saved]:
    """Drops what a SavedModel stores again in its lists of all variables.

    An exported model lists a variable under `variables` and once more under `_all_variables`: of
    several lists at the root with the same name in them, the first in the graph counts.
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
