"""Write TensorFlow checkpoints and SavedModels, through TensorFlow's own operations."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.tensorflow import files
from keras_trainops.checkpoints.formats.tensorflow.library import tensorflow
from keras_trainops.checkpoints.formats.tensorflow.object_graph import OBJECT_GRAPH, pruned
from keras_trainops.checkpoints.storage.copying import copy_directory
from keras_trainops.checkpoints.storage.writing import UnwritableError
from keras_trainops.errors import RestoreError

NAME = "TensorFlow checkpoints (TF1, TF2, SavedModel)"
_PREFIX = ".ckpt"  # a path that ends so is never a directory
_VARIABLES = Path("variables", "variables")  # the prefix in a SavedModel
_GRAPHS = Path("saved_model.pb")
_HASHES = Path("fingerprint.pb")
_GROUP = 64 * 2**20  # bytes that are written at once


class _Part(NamedTuple):
    """A tensor to write: `read` returns its value."""

    name: str
    nbytes: int
    read: Callable[[], Any]


def write(
    path: Path,
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> list[str]:
    """Write a V2 checkpoint under the prefix `path`; `Writer` describes the arguments.

    It is object-based if the source is and no tensor is renamed, and name-based otherwise. If the
    source is a directory, `path` becomes one like it: with a state file, or a SavedModel. A path
    that ends in `.ckpt` is always a prefix.

    Raises:
        UnwritableError: If TensorFlow has no such dtype or reserves the name, a tensor has no place
            in the object graph, or the source SavedModel is gone; nothing is written.
    """
    structure = {} if path.name.endswith(_PREFIX) else checkpoint.structure().get(NAME, {})
    about = checkpoint.structure().get(NAME, {})
    tensors, graph = _named(about, keys)
    _require_writable(checkpoint, tensors)
    parts = list(_parts(checkpoint, tensors, progress))
    lines = _lines(about, keys, object_based=bool(graph))
    if "saved_model" in structure:
        return lines + _write_saved_model(path, Path(structure["saved_model"]), parts)
    if graph:
        parts.append(_Part(OBJECT_GRAPH, len(graph), lambda: graph))
    if "base_name" not in structure:
        _write_bundle(str(path), parts)
        return lines
    base_name = os.path.basename(structure["base_name"])
    path.mkdir()
    _write_bundle(os.path.join(path, base_name), parts)
    if structure["has_state"]:
        _write_state(path / files.STATE, base_name)
    return lines


def _named(about: Mapping[str, Any], keys: Mapping[str, str]) -> tuple[dict[str, str], bytes]:
    """Return a mapping from tensor name to key, and the object graph; empty if name-based.

    Raises:
        UnwritableError: If a tensor has no place in the object graph, or it is unclear which.
    """
    graph = base64.b64decode(about.get("graph", ""))
    if not graph or any(name != key for name, key in keys.items()):
        return dict(keys), b""
    for key in keys.values():
        if key not in about["tensors"]:
            raise UnwritableError(f"{key!r} is not in the object graph of the checkpoint.")
    if about["unclear"]:
        raise UnwritableError(
            f"{about['unclear'][0]!r} has the name of another variable, so it is unclear which "
            "value it gets. Restore the model from the source, and save it again."
        )
    tensors = {name: key for key in keys.values() for name in about["tensors"][key]}
    return tensors, pruned(graph, tensors.keys())


def _require_writable(checkpoint: Checkpoint, tensors: Mapping[str, str]) -> None:
    tf = tensorflow()
    for name, key in tensors.items():
        if name in ("", OBJECT_GRAPH):
            raise UnwritableError(f"TensorFlow reserves the name {name!r}. Give it another name.")
        dtype = checkpoint.dtype(key)
        try:
            tf.as_dtype(dtype.newbyteorder("="))
        except TypeError:
            raise UnwritableError(
                f"TensorFlow has no dtype for {key!r}, which is {dtype}. Write .npz."
            ) from None


def _parts(
    checkpoint: Checkpoint, tensors: Mapping[str, str], progress: Callable[[int], None]
) -> Iterator[_Part]:
    def reader(key: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            array = checkpoint[key]
            progress(array.nbytes)
            return array.astype(array.dtype.newbyteorder("="), copy=False)

        return read

    for name, key in tensors.items():
        yield _Part(name, checkpoint.nbytes(key), reader(key))


def _lines(about: Mapping[str, Any], keys: Mapping[str, str], *, object_based: bool) -> list[str]:
    found = []
    if about.get("graph") and not object_based:
        found.append("The object graph was left out, as tensors have new names.")
    if about.get("is_v1"):
        found.append("The source has the V1 format; the new checkpoint has V2.")
    partitioned = set(about.get("partitioned", ())) & set(keys.values())
    if partitioned:
        found.append(f"{len(partitioned)} partitioned tensors were written whole.")
    if about.get("has_meta"):
        found.append("The graph (.meta) beside the source was not copied.")
    return found


def _write_saved_model(path: Path, source: Path, parts: list[_Part]) -> list[str]:
    """Write a SavedModel with new values, everything else from the source.

    Raises:
        UnwritableError: If the source is not a SavedModel with these tensors any more.
    """
    is_there = (source / _GRAPHS).is_file()
    bundle = files.files_of(str(source / _VARIABLES)) if is_there else None
    if bundle is None:
        raise UnwritableError(
            f"{str(source)!r} is no longer there: the graphs of the SavedModel are copied from it. "
            "Put it back, or export the model."
        )
    with files.name_for_tensorflow(bundle) as name:
        reader = tensorflow().train.load_checkpoint(name)
        shapes = reader.get_variable_to_shape_map()
        names = {part.name for part in parts}
        if not names <= shapes.keys():
            raise UnwritableError(f"{str(source)!r} has other tensors than it had: open it again.")
        rest = sorted(shapes.keys() - names)
        parts = parts + [_of_source(reader, name) for name in rest]
        copy_directory(source, path, lambda below: not _is_replaced(below))
        (path / _VARIABLES).parent.mkdir(exist_ok=True)
        _write_bundle(str(path / _VARIABLES), parts)
    kept = [name for name in rest if name != OBJECT_GRAPH]
    lines = [f"{len(kept)} other tensors have the values of the source."] if kept else []
    if (source / _HASHES).exists():
        lines.append(f"{_HASHES} was left out: it contains a hash of the old values.")
    return lines


def _of_source(reader: Any, name: str) -> _Part:
    shape = reader.get_variable_to_shape_map()[name]
    size = int(np.prod(shape)) * reader.get_variable_to_dtype_map()[name].size
    return _Part(name, size, lambda: reader.get_tensor(name))


def _is_replaced(below: Path) -> bool:
    is_bundle = below.parent == _VARIABLES.parent and below.name.startswith("variables.")
    return is_bundle or below == _HASHES


def _write_state(path: Path, base_name: str) -> None:
    # The text of protocol buffers quotes like JSON; TensorFlow refuses an empty name.
    name = json.dumps(base_name or "./", ensure_ascii=False)
    state = f"model_checkpoint_path: {name}\nall_model_checkpoint_paths: {name}\n"
    path.write_text(state, encoding="utf-8")


def _write_bundle(prefix: str, parts: Iterable[_Part]) -> None:
    """Write groups of tensors to bundles of their own, and merge these without copying."""
    tf = tensorflow()

    def save(directory: str) -> None:
        written = []
        for number, group in enumerate(_groups(parts)):
            written.append(os.path.join(directory, str(number)))
            tensors = [_tensor(tf, part.read()) for part in group]
            with _full_disk(tf):
                tf.raw_ops.SaveV2(
                    prefix=written[-1],
                    tensor_names=[part.name for part in group],
                    shape_and_slices=[""] * len(group),
                    tensors=tensors,
                )
        with _full_disk(tf):
            tf.raw_ops.MergeV2Checkpoints(
                checkpoint_prefixes=written, destination_prefix=prefix, delete_old_dirs=False
            )

    with tempfile.TemporaryDirectory(dir=os.path.dirname(prefix)) as temporary:
        _run_eagerly(tf, lambda: save(temporary))


def _run_eagerly(tf: Any, action: Callable[[], None]) -> None:
    """Run operations at once and on the CPU, whatever graph the caller builds.

    Raises:
        RestoreError: If the program has disabled eager execution.
    """

    def on_cpu() -> None:
        with tf.init_scope(), tf.device("CPU:0"):
            if not tf.executing_eagerly():
                raise RestoreError(
                    "TensorFlow's eager execution is disabled, but writing a checkpoint needs it."
                )
            action()

    with tf.init_scope():
        is_eager = tf.executing_eagerly()
    if is_eager:
        on_cpu()
        return
    with ThreadPoolExecutor(1) as thread:  # the graph is the default of this thread only
        thread.submit(on_cpu).result()


def _tensor(tf: Any, value: Any) -> Any:
    is_text = isinstance(value, bytes) or (isinstance(value, np.ndarray) and value.dtype.hasobject)
    return tf.constant(value, tf.string) if is_text else tf.convert_to_tensor(value)


def _groups(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    group: list[_Part] = []
    size = 0
    for part in parts:
        if group and size + part.nbytes > _GROUP:
            yield group
            group, size = [], 0
        group.append(part)
        size += part.nbytes
    yield group


@contextlib.contextmanager
def _full_disk(tf: Any) -> Iterator[None]:
    """Turn TensorFlow's errors for a full disk, and a file that grows too large, into Python's."""
    try:
        yield
    except (tf.errors.ResourceExhaustedError, tf.errors.OutOfRangeError) as error:
        is_limit = isinstance(error, tf.errors.OutOfRangeError)
        number = errno.EFBIG if is_limit else errno.ENOSPC
        raise OSError(number, os.strerror(number)) from error
