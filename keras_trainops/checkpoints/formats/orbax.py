"""Orbax checkpoints: directories with the arrays of a tree, as JAX programs save them.

A key is an array's path in the tree, joined by `/` (`params/dense/kernel`), after the item's name
if the checkpoint has several trees. In checkpoints of Keras's `OrbaxCheckpoint` callback, keys are
the variables' paths in the model. TensorStore, on which Orbax is built, reads the arrays; the rest
of Orbax is not needed, and no class named in a file is ever instantiated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.dtypes import nbytes
from keras_trainops.checkpoints.format import Candidate, Format
from keras_trainops.checkpoints.formats.orbax_tree import METADATA, NAME, structure_of, trees_in
from keras_trainops.checkpoints.formats.orbax_writer import write
from keras_trainops.checkpoints.storage.files import load_json, read_file, require_file
from keras_trainops.checkpoints.storage.limits import refuse_bomb, refuse_unsafe_names
from keras_trainops.checkpoints.storage.parts import Index
from keras_trainops.checkpoints.training_state import by_name
from keras_trainops.errors import RestoreError

# TensorStore reads these files whole, so their size is limited.
_HEADERS = frozenset({".zarray", "zarr.json", "manifest.ocdbt"})
_LARGEST_HEADER = 16 * 2**20  # bytes
# The other types of leaves are strings, empty containers and types that programs define.
_ARRAYS = frozenset({"jax.Array", "np.ndarray", "scalar"})
# The trees in which Keras saves weights. Its other trees are training state.
_KERAS_TREES = ("trainable_variables", "non_trainable_variables")


class _Leaf(NamedTuple):
    specification: dict[str, Any]
    directory: Path
    path: tuple[str, ...]


class OrbaxCheckpoint(Checkpoint):
    """An Orbax checkpoint; all arrays are opened at once and read on demand."""

    format = "Orbax checkpoint"

    def __init__(self, location: str) -> None:
        super().__init__(location)
        trees = {tree: list(_leaves(tree, location)) for tree in trees_in(Path(location))}
        trees = {tree: leaves for tree, leaves in trees.items() if leaves}
        leaves: dict[str, _Leaf] = {}
        for tree, found in trees.items():
            prefix = f"{tree.name}/" if len(trees) > 1 else ""
            leaves.update({prefix + _key(leaf, found): leaf for leaf in found})
        if not leaves:
            raise RestoreError(f"The Orbax checkpoint {location!r} contains no arrays.")
        refuse_unsafe_names(leaves, location)
        for tree in trees:
            _require_harmless(tree)
        self._arrays: dict[str, Any] = dict(zip(leaves, _open_all(leaves.values()), strict=True))
        self._sizes: dict[Path, int] = {}
        self._directories = {key: leaf.directory for key, leaf in leaves.items()}
        self.training_state = by_name(self._arrays)
        self._places = {(leaf.directory, leaf.path): key for key, leaf in leaves.items()}

    def _keys(self) -> Mapping[str, Any]:
        return self._arrays

    def _shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._arrays[key].shape)

    def _dtype(self, key: str) -> np.dtype:
        return np.dtype(self._arrays[key].dtype.numpy_dtype)

    def _read(self, key: str) -> np.ndarray:
        return self._read_part(key, ())

    def _read_part(self, key: str, index: Index) -> np.ndarray:
        stored = self._stored(self._directories[key])
        claimed = nbytes(self._shape(key), self._dtype(key))
        refuse_bomb(f"the array {key!r}", claimed, stored, self.location)
        chunk = nbytes(self._arrays[key].chunk_layout.read_chunk.shape or (), self._dtype(key))
        refuse_bomb(f"a chunk of the array {key!r}", chunk, stored, self.location)
        return np.asarray(self._arrays[key][index].read().result())

    def _stored(self, directory: Path) -> int:
        """Return the size of all files of a tree; there may be some for each process."""
        if directory not in self._sizes:
            files = (path for path in directory.rglob("*") if path.is_file())
            self._sizes[directory] = sum(require_file(str(path)) for path in files)
        return self._sizes[directory]

    def _structure(self) -> Mapping[str, Any]:
        trees = {tree for tree, _ in self._places}
        metadata = {tree: _metadata(tree, self.location) for tree in sorted(trees)}
        return {NAME: structure_of(Path(self.location), metadata, self._places)}

    def close(self) -> None:
        self._arrays = dict.fromkeys(self._arrays)


def _recognise(candidate: Candidate) -> bool:
    """Recognise a checkpoint, a single tree or step of one, or a directory of steps."""
    return candidate.is_directory and bool(trees_in(candidate.path))


def _leaves(tree: Path, location: str) -> Iterator[_Leaf]:
    metadata = _metadata(tree, location)
    for entry in metadata["tree_metadata"].values():
        path = tuple(str(part["key"]) for part in entry["key_metadata"])
        if entry["value_metadata"]["value_type"] in _ARRAYS:
            yield _Leaf(_specification(tree, path, metadata), tree, path)


def _metadata(tree: Path, location: str) -> Mapping[str, Any]:
    return load_json(read_file(str(tree / METADATA)), location)


def _require_harmless(tree: Path) -> None:
    """Check all files before TensorStore opens them: a huge header would end the process.

    Raises:
        RestoreError: If a file is not regular, or a header is too large.
    """
    for path in tree.rglob("*"):
        if path.is_dir():
            continue
        size = require_file(str(path))
        if path.name in _HEADERS and size > _LARGEST_HEADER:
            raise RestoreError(
                f"{str(path)!r} has {size:,} bytes, more than the limit of {_LARGEST_HEADER:,} for "
                "this kind of file, so it is not read."
            )


def _specification(
    tree: Path, path: tuple[str, ...], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Return TensorStore's spec of an array: in one database for all, or a directory of its own."""
    files, name = f"{tree.absolute()}/", f"{'.'.join(path)}/"
    store: dict[str, Any] = {"driver": "file", "path": files + name}
    if metadata.get("use_ocdbt"):
        store = {"driver": "ocdbt", "base": {"driver": "file", "path": files}, "path": name}
    return {"driver": "zarr3" if metadata.get("use_zarr3") else "zarr", "kvstore": store}


def _key(leaf: _Leaf, tree: list[_Leaf]) -> str:
    is_from_keras = any(other.path[0] == _KERAS_TREES[0] for other in tree)
    is_weight = is_from_keras and leaf.path[0] in _KERAS_TREES
    return "/".join(leaf.path[1:] if is_weight else leaf.path)


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


FORMAT = Format(NAME, _recognise, OrbaxCheckpoint, ".orbax", write)
