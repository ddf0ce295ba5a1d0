"""The trees of an Orbax checkpoint, without their arrays, as plain data."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_trainops.checkpoints.storage.files import load_json, read_file
from keras_trainops.checkpoints.storage.writing import UnwritableError

NAME = "Orbax directories"
METADATA = "_METADATA"
CHECKPOINT_METADATA = "_CHECKPOINT_METADATA"
COMMITTED = "commit_success.txt"
_STRINGS = "_strings.json"
_IN_SEQUENCE = 1  # the type of a key
_EMPTY: dict[str, Any] = {"Dict": {}, "List": [], "None": None}


def structure_of(
    location: Path,
    trees: Mapping[Path, Mapping[str, Any]],
    keys: Mapping[tuple[Path, tuple[str, ...]], str],
) -> dict[str, Any]:
    """Describe a checkpoint.

    Args:
        location: The directory that was opened.
        trees: Metadata by directory of the tree, which is `location` or below it.
        keys: Key by tree and path in it.

    Returns:
        `trees`: for each, its `place` below `location`, the `options` of Orbax, and its leaves.
        `metadata`: text by directory. `committed`: directories that Orbax marked as complete.
        `items`: directories of a checkpoint that are not trees of arrays. `steps`: their number.
        `others`: leaves that cannot be described.
    """
    others: list[str] = []
    described = [
        {
            "place": str(tree.relative_to(location)),
            "options": {
                "use_ocdbt": bool(metadata.get("use_ocdbt")),
                "use_zarr3": bool(metadata.get("use_zarr3")),
            },
            "leaves": _leaves(tree, metadata, keys, others),
        }
        for tree, metadata in trees.items()
    ]
    found = _directories(location, trees)
    steps = [entry for entry in location.iterdir() if entry.name.isdecimal() and entry.is_dir()]
    return {
        "source": str(location.absolute()),
        "trees": described,
        "metadata": _texts(location, trees),
        "committed": [
            str(directory.relative_to(location))
            for directory in found
            if (directory / COMMITTED).is_file()
        ],
        "items": [item for item in items_of(location, trees) if location / item not in trees],
        "steps": len(steps),
        "others": others,
    }


def items_of(location: Path, trees: Iterable[Path]) -> list[str]:
    """Return the directories that a checkpoint lists as its items, below `location`.

    Args:
        location: The directory that was opened.
        trees: The trees of arrays, which may be items.
    """
    texts = _texts(location, trees)
    places = [Path(place, item) for place in texts for item in _items(texts[place], str(location))]
    return [str(place) for place in places if (location / place).is_dir()]


def trees_in(directory: Path) -> list[Path]:
    """Find the trees of a checkpoint.

    Args:
        directory: A tree, a directory of trees, or a directory of steps.

    Returns:
        The directory itself, the trees in it, or the trees of its latest step; empty if there are
        none.
    """
    if _is_tree(directory):
        return [directory]
    entries = sorted(entry for entry in directory.iterdir() if entry.is_dir())
    steps = [entry for entry in entries if entry.name.isdecimal()]
    trees = [entry for entry in entries if _is_tree(entry) and entry not in steps]
    return trees or _trees_of_latest(steps)


def _trees_of_latest(steps: list[Path]) -> list[Path]:
    if not steps:
        return []
    latest = max(steps, key=lambda step: int(step.name))
    return [latest] if _is_tree(latest) else list(filter(_is_tree, sorted(latest.iterdir())))


def _is_tree(directory: Path) -> bool:
    return (directory / METADATA).is_file()


def _directories(location: Path, trees: Iterable[Path]) -> list[Path]:
    """Return the trees and the directories that contain them, up to `location`."""
    above = {path for tree in trees for path in (tree, *tree.parents)}
    return sorted(path for path in above if path.is_relative_to(location))


def _texts(location: Path, trees: Iterable[Path]) -> dict[str, str]:
    """Return the texts of `_CHECKPOINT_METADATA` files by directory."""
    files = {path: path / CHECKPOINT_METADATA for path in _directories(location, trees)}
    return {
        str(path.relative_to(location)): read_file(str(file)).decode("utf-8", "replace")
        for path, file in files.items()
        if file.is_file()
    }


def _items(metadata: str, location: str) -> list[str]:
    """Return the names of a checkpoint's items; none if it is a single tree."""
    try:
        handlers = load_json(metadata.encode(), location).get("item_handlers")
    except (ValueError, AttributeError):
        return []
    names = list(handlers) if isinstance(handlers, dict) else []
    return [name for name in names if name == Path(name).name]


def without_items(metadata: str, items: Collection[str]) -> str:
    """Return the text of a `_CHECKPOINT_METADATA` file without some of its items."""
    if not items:
        return metadata
    content = load_json(metadata.encode(), CHECKPOINT_METADATA)
    handlers = content["item_handlers"]
    if not isinstance(handlers, dict):  # of a single tree
        return metadata
    content["item_handlers"] = {name: handlers[name] for name in handlers if name not in items}
    return json.dumps(content)


def _leaves(
    tree: Path,
    metadata: Mapping[str, Any],
    keys: Mapping[tuple[Path, tuple[str, ...]], str],
    others: list[str],
) -> list[dict[str, Any]]:
    strings = {}
    if (tree / _STRINGS).is_file():
        strings = load_json(read_file(str(tree / _STRINGS)), str(tree))
    found = []
    for entry in metadata["tree_metadata"].values():
        parts = tuple(str(part["key"]) for part in entry["key_metadata"])
        kinds = [int(part["key_type"]) for part in entry["key_metadata"]]
        kind = entry["value_metadata"]["value_type"]
        name = ".".join(parts)
        key = keys.get((tree, parts))
        leaf: dict[str, Any] = {
            "path": [[part, kind] for part, kind in zip(parts, kinds, strict=True)],
            "key": key,
            "is_scalar": kind == "scalar",
            "constant": None,
        }
        if key is None:
            if kind == "string" and name in strings:
                leaf["constant"] = str(strings[name])
            elif kind in _EMPTY:
                leaf["constant"] = _EMPTY[kind]
            else:
                others.append(f"{name!r} ({kind})")
                continue
        found.append(leaf)
    return found


def nested(leaves: Iterable[tuple[Sequence[tuple[str, int]], Any]]) -> Any:
    """Build a tree of dicts and lists from its leaves.

    Args:
        leaves: Pairs of a path, which consists of keys and their types, and a value.

    Raises:
        UnwritableError: If a path leads through a leaf, or a position is impossible.
    """
    root: dict[tuple[str, int], Any] = {}
    count = 0
    for path, value in leaves:
        count += 1
        place = root
        for part in path[:-1]:
            place = place.setdefault(part, _Node())
            if not isinstance(place, _Node):
                raise _conflict(path)
        if not path or path[-1] in place:
            raise _conflict(path)
        place[path[-1]] = value
    return _built(root, count)


class _Node(dict[tuple[str, int], Any]):
    """A container whose kind is not known yet."""


def _conflict(path: Sequence[tuple[str, int]]) -> UnwritableError:
    name = "/".join(part for part, _ in path)
    return UnwritableError(
        f"Orbax cannot store {name!r} in a tree: it is a tensor and a group of tensors at once, or "
        "has no name."
    )


def _built(node: Any, most: int) -> Any:
    if not isinstance(node, dict) or not node:
        return node
    built = {part: _built(value, most) for part, value in node.items()}
    if any(kind != _IN_SEQUENCE for _, kind in built):
        return {part: value for (part, _), value in built.items()}
    positions = {int(part): value for (part, _), value in built.items()}
    if not 0 <= min(positions) <= max(positions) <= len(positions) + most:
        raise UnwritableError(f"Position {max(positions)} of a list is impossible.")
    # `None` keeps the positions of the others.
    return [positions.get(number) for number in range(max(positions) + 1)]
