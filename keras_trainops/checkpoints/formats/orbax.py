"""Orbax checkpoints: directories that hold the arrays of a tree, as JAX programs save them.

Keys are the array's place in the tree, joined by `/` (`params/dense/kernel`), behind the item's
name where a checkpoint holds several trees. What Keras's own `OrbaxCheckpoint` callback writes has
the variables' paths as they are in the model. Arrays are read by TensorStore, on which Orbax rests;
nothing else of Orbax is needed, and no class that a file names is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_trainops.checkpoints.arrays import nbytes
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.storage.files import load_json, read_file, require_file
from keras_trainops.checkpoints.storage.limits import refuse_bomb, refuse_unsafe_names
from keras_trainops.checkpoints.training_state import by_name
from keras_trainops.errors import RestoreError

_METADATA = "_METADATA"
# What TensorStore reads whole, and how large it may be.
_HEADERS = frozenset({".zarray", "zarr.json", "manifest.ocdbt"})
_LARGEST_HEADER = 16 * 2**20
# Beside these there are strings, empty containers and what programs define for themselves.
_ARRAYS = frozenset({"jax.Array", "np.ndarray", "scalar"})
# The trees of weights in what Keras writes. The others are training state.
_KERAS_TREES = ("trainable_variables", "non_trainable_variables")


class _Leaf(NamedTuple):
    specification: dict[str, Any]
    directory: Path
    path: tuple[str, ...]


class OrbaxCheckpoint(Checkpoint):
    """The arrays of an Orbax checkpoint, opened when it is, read when they are asked for."""

    format = "Orbax checkpoint"

    def __init__(self, location: str) -> None:
        super().__init__(location)
        trees = {tree: list(_leaves(tree, location)) for tree in _trees_in(Path(location))}
        trees = {tree: leaves for tree, leaves in trees.items() if leaves}
        leaves = {}
        for tree, found in trees.items():
            prefix = f"{tree.name}/" if len(trees) > 1 else ""
            leaves.update({prefix + _key(leaf, found): leaf for leaf in found})
        if not leaves:
            raise RestoreError(f"The Orbax checkpoint {location!r} holds no array.")
        refuse_unsafe_names(leaves, location)
        for tree in trees:
            _require_harmless(tree)
        self._arrays = dict(zip(leaves, _open_all(leaves.values()), strict=True))
        self._directories = {key: leaf.directory for key, leaf in leaves.items()}
        self.training_state = by_name(self._arrays)

    def _keys(self) -> Mapping[str, Any]:
        return self._arrays

    def _shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._arrays[key].shape)

    def _dtype(self, key: str) -> np.dtype:
        return np.dtype(self._arrays[key].dtype.numpy_dtype)

    def _read(self, key: str) -> np.ndarray:
        files = (path for path in self._directories[key].rglob("*") if path.is_file())
        stored = sum(require_file(str(path)) for path in files)
        claimed = nbytes(self._shape(key), self._dtype(key))
        refuse_bomb(f"the array {key!r}", claimed, stored, self.location)
        chunk = nbytes(self._arrays[key].chunk_layout.read_chunk.shape or (), self._dtype(key))
        refuse_bomb(f"a chunk of the array {key!r}", chunk, stored, self.location)
        return np.asarray(self._arrays[key].read().result())

    def close(self) -> None:
        self._arrays = dict.fromkeys(self._arrays)


def _recognise(candidate: Candidate) -> bool:
    """Whether a directory is an Orbax checkpoint, a step of one, or holds steps."""
    return candidate.is_directory and any(True for _ in _trees_in(candidate.path))


def _trees_in(directory: Path) -> Iterator[Path]:
    """The trees at `directory`: its own, those in it, or those of the latest step in it."""
    if _is_tree(directory):
        yield directory
        return
    entries = sorted(entry for entry in directory.iterdir() if entry.is_dir())
    trees = [entry for entry in entries if _is_tree(entry) and not entry.name.isdecimal()]
    yield from trees
    steps = [entry for entry in entries if entry.name.isdecimal()]
    if steps and not trees:
        latest = max(steps, key=lambda step: int(step.name))
        yield from [latest] if _is_tree(latest) else filter(_is_tree, sorted(latest.iterdir()))


def _is_tree(directory: Path) -> bool:
    return (directory / _METADATA).is_file()


def _leaves(tree: Path, location: str) -> Iterator[_Leaf]:
    metadata = _metadata(tree, location)
    for entry in metadata["tree_metadata"].values():
        path = tuple(str(part["key"]) for part in entry["key_metadata"])
        if entry["value_metadata"]["value_type"] in _ARRAYS:
            yield _Leaf(_specification(tree, path, metadata), tree, path)


def _metadata(tree: Path, location: str) -> Mapping[str, Any]:
    return load_json(read_file(str(tree / _METADATA)), location)


def _require_harmless(tree: Path) -> None:
    """Looks at all files before TensorStore does, which reads headers whole and ends the process.

    Raises:
        RestoreError: If one is no regular file, or a header is too large to be one.
    """
    for path in tree.rglob("*"):
        if path.is_dir():
            continue
        size = require_file(str(path))
        if path.name in _HEADERS and size > _LARGEST_HEADER:
            raise RestoreError(
                f"{str(path)!r} has {size:,} bytes, too large to be what it should be: at most "
                f"{_LARGEST_HEADER:,} are read."
            )


def _specification(
    tree: Path, path: tuple[str, ...], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """What TensorStore needs to open an array: a database for all, or a directory for each."""
    files, name = f"{tree.absolute()}/", f"{'.'.join(path)}/"
    store: dict[str, Any] = {"driver": "file", "path": files + name}
    if metadata.get("use_ocdbt"):
        store = {"driver": "ocdbt", "base": {"driver": "file", "path": files}, "path": name}
    return {"driver": "zarr3" if metadata.get("use_zarr3") else "zarr", "kvstore": store}


def _key(leaf: _Leaf, tree: list[_Leaf]) -> str:
    by_keras = any(other.path[0] == _KERAS_TREES[0] for other in tree)
    weights = by_keras and leaf.path[0] in _KERAS_TREES
    return "/".join(leaf.path[1:] if weights else leaf.path)


def _open_all(leaves: Any) -> list[Any]:
    try:
        import tensorstore
    except ImportError:
        raise RestoreError(
            "Reading an Orbax checkpoint needs Orbax's TensorStore: "
            "pip install 'keras-trainops[orbax]'"
        ) from None
    opening = [tensorstore.open(leaf.specification, open=True, read=True) for leaf in leaves]
    return [future.result() for future in opening]


FORMAT = Format("Orbax directories", _recognise, OrbaxCheckpoint)
