"""Write Orbax checkpoints, through Orbax."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.orbax_tree import (
    CHECKPOINT_METADATA,
    COMMITTED,
    NAME,
    items_of,
    nested,
    trees_in,
    without_items,
)
from keras_trainops.checkpoints.storage.copying import copy_directory
from keras_trainops.checkpoints.storage.limits import refuse_unsafe_names
from keras_trainops.checkpoints.storage.raw import ALIGNMENT
from keras_trainops.checkpoints.storage.writing import UnwritableError
from keras_trainops.errors import RestoreError

_IN_DICT = 2  # the type of a key; 1 is a position in a sequence
_DATA_FILE = 64 * 2**20  # bytes that Orbax collects before it writes them
_INSTALL = "Writing an Orbax checkpoint needs Orbax: pip install 'keras-trainops[orbax]'"


class _Mapped(np.ndarray):
    """An array in a temporary file. Orbax copies arrays in case they change; this one does not."""

    def __deepcopy__(self, memo: Any) -> _Mapped:
        return self


class _Leaf(NamedTuple):
    """A leaf of a tree: a tensor under `key`, or else a `constant`."""

    path: tuple[tuple[str, int], ...]
    key: str | None
    is_scalar: bool = False
    constant: Any = None


class _Tree(NamedTuple):
    place: str  # below the directory
    options: Mapping[str, bool]  # of Orbax's handler
    leaves: Sequence[_Leaf]


def write(
    path: Path,
    checkpoint: Checkpoint,
    keys: Mapping[str, str],
    progress: Callable[[int], None] = lambda nbytes: None,
) -> list[str]:
    """Write a directory; `Writer` describes the arguments.

    It has the trees of the source, in the same places, if no tensor is renamed; of a directory of
    steps, it has the latest. Otherwise it has one tree, with names split at `/`.

    Raises:
        UnwritableError: If Orbax has no such dtype, the tensor is empty or has no place in the
            trees, or a name is both a tensor and a group of tensors; nothing is written.
        RestoreError: If Orbax is not installed.
    """
    about = checkpoint.structure().get(NAME)
    is_same = all(name == key for name, key in keys.items())
    lines = []
    if about is None or not is_same:
        if about is not None:
            lines.append("The tree of the source was left out, as tensors have new names.")
        about = None
        trees = [_Tree("", {}, [_leaf_of(name, key) for name, key in keys.items()])]
    else:
        trees = _trees_of(about, keys)
    _require_writable(checkpoint, keys)
    _require_unique(trees)
    for tree in trees:
        nested((leaf.path, None) for leaf in tree.leaves)  # raises before anything is written
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        arrays = _arrays(Path(temporary, "values"), checkpoint, keys.values(), progress)
        for tree in trees:
            _save(path / tree.place, tree, arrays)
        arrays.clear()  # Windows does not delete mapped files
    return lines + (_add_rest(path, about, trees) if about is not None else [])


def _leaf_of(name: str, key: str) -> _Leaf:
    return _Leaf(tuple((part, _IN_DICT) for part in name.split("/")), key)


def _trees_of(about: Mapping[str, Any], keys: Mapping[str, str]) -> list[_Tree]:
    """Return the trees of the source without the tensors that are not written."""
    refuse_unsafe_names([tree["place"] for tree in about["trees"]], "The structure")
    trees, wanted = [], set(keys.values())
    for tree in about["trees"]:
        leaves = [
            _Leaf(
                tuple((str(part), int(kind)) for part, kind in leaf["path"]),
                leaf["key"],
                is_scalar=leaf["is_scalar"],
                constant=leaf["constant"],
            )
            for leaf in tree["leaves"]
            if leaf["key"] is None or leaf["key"] in wanted
        ]
        found = {leaf.key for leaf in leaves if leaf.key is not None}
        wanted -= found
        if found:
            trees.append(_Tree(tree["place"], tree["options"], leaves))
    if wanted:
        raise UnwritableError(f"{min(wanted)!r} has no place in the trees of the checkpoint.")
    return trees


def _require_writable(checkpoint: Checkpoint, keys: Mapping[str, str]) -> None:
    try:
        import orbax.checkpoint  # noqa: F401
        import tensorstore
    except ImportError:
        raise RestoreError(_INSTALL) from None
    for name, key in keys.items():
        dtype = checkpoint.dtype(key).newbyteorder("=")
        if 0 in checkpoint.shape(key):
            raise UnwritableError(
                f"Orbax cannot store {name!r}, which has no elements. Write .safetensors."
            )
        try:
            tensorstore.dtype(dtype)
        except (TypeError, ValueError):
            dtype = np.dtype(object)
        if dtype.kind not in "biufcV" or dtype.type is np.void:
            raise UnwritableError(
                f"Orbax has no dtype for {name!r}, which is {checkpoint.dtype(key)}. Write .npz."
            )


def _require_unique(trees: Sequence[_Tree]) -> None:
    """Raise if Orbax, which joins the parts of a name by dots, would mix up two tensors.

    Raises:
        UnwritableError: If there are two such tensors, or a name has an empty part.
    """
    for tree in trees:
        seen: set[str] = set()
        for leaf in tree.leaves:
            name = ".".join(part for part, _ in leaf.path)
            if not all(part for part, _ in leaf.path) or name in seen:
                raise UnwritableError(f"Orbax cannot store {name!r}: give it another name.")
            seen.add(name)


def _arrays(
    path: Path, checkpoint: Checkpoint, keys: Iterable[str], progress: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """Write all tensors to a temporary file, and map it, as Orbax takes all of them at once."""
    places: dict[str, int] = {}
    with path.open("wb") as file:
        for key in keys:
            file.write(bytes(-file.tell() % ALIGNMENT))
            places[key] = file.tell()
            for piece in checkpoint.pieces(key):
                native = np.ascontiguousarray(piece, piece.dtype.newbyteorder("="))
                file.write(native.view(np.uint8).data)
                progress(piece.nbytes)
    values = np.memmap(path, np.uint8, "r") if places else np.empty(0, np.uint8)
    arrays: dict[str, np.ndarray] = {}
    for key, place in places.items():
        dtype = checkpoint.dtype(key).newbyteorder("=")
        part = np.asarray(values[place : place + checkpoint.nbytes(key)])
        arrays[key] = part.view(dtype).reshape(checkpoint.shape(key)).view(_Mapped)
    return arrays


def _save(path: Path, tree: _Tree, arrays: Mapping[str, np.ndarray]) -> None:
    import orbax.checkpoint as ocp

    content = nested((leaf.path, _value(leaf, arrays)) for leaf in tree.leaves)
    save = ocp.args.PyTreeSave(content, ocdbt_target_data_file_size=_DATA_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**tree.options)) as checkpointer:
        checkpointer.save(path.absolute(), save)


def _value(leaf: _Leaf, arrays: Mapping[str, np.ndarray]) -> Any:
    if leaf.key is None:
        return leaf.constant
    array = arrays[leaf.key]
    return array.view(np.ndarray)[()] if leaf.is_scalar and not array.shape else array


def _add_rest(path: Path, about: Mapping[str, Any], trees: Sequence[_Tree]) -> list[str]:
    """Add what the source has beside the arrays; return lines about what was left out."""
    lines = [f"{what} was left out." for what in about["others"]]
    places = [tree.place for tree in trees]
    missing = {tree["place"] for tree in about["trees"]} - set(places)
    lines += [f"The tree {place!r} was left out." for place in sorted(missing)]
    if about["steps"] > 1:
        lines.append(f"Only the latest of {about['steps']} steps was written.")
    source = Path(about["source"])
    # A plan can name any directory.
    present = items_of(source, trees_in(source)) if source.is_dir() else []
    for place in about["items"]:
        refuse_unsafe_names([place], "The structure")
        if place in present:
            copy_directory(source / place, path / place)
        else:
            lines.append(f"{place!r} was left out, as {str(source)!r} does not have it any more.")
            missing.add(place)
    for directory in {str(above) for place in places for above in (place, *Path(place).parents)}:
        metadata = about["metadata"].get(directory)
        file = path / directory / CHECKPOINT_METADATA
        file.unlink(missing_ok=True)
        if metadata is not None:
            gone = {Path(place).name for place in missing if str(Path(place).parent) == directory}
            file.write_text(without_items(metadata, gone), encoding="utf-8")
        marker = path / directory / COMMITTED
        if directory in about["committed"] and not marker.exists():
            marker.write_text(f"Checkpoint commit was successful to {path.name}", encoding="utf-8")
    return lines
