"""The containers of a PyTorch file: the names of its tensors, and the tree as plain data.

In the tree, plain values and lists are themselves; everything else is a dict with one of the keys
"tensor", "dict", "OrderedDict", "tuple", "Size" and "float".
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_trainops.checkpoints.nested import flattened
from keras_trainops.checkpoints.storage.writing import UnwritableError

_MOST = 1 << 24  # values and characters in a tree, except tensors and the containers that hold them
_DEEPEST = 40  # containers: each takes two of JSON, of which at most 100 are read
_NAMED = 20  # values that are left out
_LONGEST = 1024  # bits of an integer
_GONE: Any = object()


def named_tensors(content: Any, location: str) -> Iterator[tuple[str, Any]]:
    """Yield names and tensors in order, without looking into containers that have no tensor."""
    with_tensors = _containers_of(content, _is_tensor)

    def entries(value: Any, name: str) -> list[tuple[str, Any]] | None:
        if _is_tensor(value):
            return None
        return [(str(k), v) for k, v in _pairs(value)] if id(value) in with_tensors else []

    for name, tensor in flattened(content, entries, repr(location)):
        yield name or Path(location).stem, tensor


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _containers_of(content: Any, is_value: Callable[[Any], bool]) -> set[int]:
    """Return the ids of containers that contain values at any depth, visiting each item once."""
    holders: dict[int, list[int]] = {}  # from the id of an item to those of its containers
    met, found, waiting = {id(content)}, set[int](), [content]
    reached: list[int] = []
    while waiting:
        value = waiting.pop()
        if is_value(value):
            reached.append(id(value))
        for _, entry in _pairs(value):
            holders.setdefault(id(entry), []).append(id(value))
            if id(entry) not in met:
                met.add(id(entry))
                waiting.append(entry)
    while reached:
        new = set(holders.get(reached.pop(), ())) - found
        found |= new
        reached += new
    return found


def _pairs(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()


def _joined(above: str, key: object) -> str:
    return f"{above}/{key}" if above else str(key)


class Encoder:
    """Turns the content of a file into plain data that `content_of` turns back.

    Args:
        content: The content; its tensors have no values.
        location: Path of the file.

    Attributes:
        omitted: Names of the values that cannot be encoded; of many, the first ones and "…".
    """

    def __init__(self, content: Any, location: str) -> None:
        self.omitted: list[str] = []
        self._content, self._stem = content, Path(location).stem
        self._with_tensors = _containers_of(content, _is_tensor)
        self._left = _MOST

    def tree(self) -> Any:
        """Return the tree."""
        return self._node(self._content, "", 0)

    def _node(self, value: Any, name: str, depth: int) -> Any:
        """Return a node, or `_GONE` for what cannot be encoded."""
        import torch

        if isinstance(value, torch.Tensor):
            return self._tensor(value, name)
        if id(value) not in self._with_tensors and not self._has_room(value, depth):
            return self._omit(name)
        if isinstance(value, Mapping):
            return self._mapping(value, name, depth)
        if isinstance(value, (list, tuple)):
            nodes = [self._node(v, _joined(name, k), depth + 1) for k, v in enumerate(value)]
            nodes = [None if node is _GONE else node for node in nodes]  # the others keep places
            kind = "Size" if isinstance(value, torch.Size) else "tuple"
            return nodes if isinstance(value, list) else {kind: nodes}
        if type(value) is float and not math.isfinite(value):
            return {"float": str(value)}
        return value if _is_plain(value) else self._omit(name)

    def _tensor(self, tensor: Any, name: str) -> dict[str, Any]:
        import torch

        node: dict[str, Any] = {"tensor": name or self._stem}
        flags = {
            "parameter": isinstance(tensor, torch.nn.Parameter),
            "requires_grad": tensor.requires_grad,
        }
        return node | {name: True for name, is_set in flags.items() if is_set}

    def _mapping(self, value: Mapping[Any, Any], name: str, depth: int) -> dict[str, Any]:
        entries = []
        for key, entry in value.items():
            full = _joined(name, key)
            node = self._node(entry, full, depth + 1) if _is_plain(key) else self._omit(full)
            if node is not _GONE:
                entries.append((key, node))
        only_texts = all(isinstance(key, str) for key, _ in entries)
        kind = "OrderedDict" if isinstance(value, OrderedDict) else "dict"
        node = {kind: dict(entries) if only_texts else [list(entry) for entry in entries]}
        metadata = vars(value).get("_metadata") if kind == "OrderedDict" else None
        encoded = None if metadata is None else self._node(metadata, f"{name}._metadata", depth + 1)
        return node if encoded in (None, _GONE) else {**node, "metadata": encoded}

    def _has_room(self, value: Any, depth: int) -> bool:
        self._left -= 1 + (len(value) if isinstance(value, str) else 0)
        return self._left >= 0 and depth <= _DEEPEST

    def _omit(self, name: str) -> Any:
        if len(self.omitted) <= _NAMED:
            self.omitted.append(name if len(self.omitted) < _NAMED else "…")
        return _GONE


def _is_plain(value: Any) -> bool:
    if type(value) is int:
        return value.bit_length() <= _LONGEST
    return value is None or type(value) in (bool, float, str)


def content_of(
    tree: Any, names: Mapping[str, Sequence[str]], tensor: Callable[[str, Mapping[str, Any]], Any]
) -> Any:
    """Return the content that a tree describes.

    An entry that had tensors and has none any more is left out; in a list it is None.

    Args:
        tree: What `Encoder` returns.
        names: Mapping from the key of a tensor to its names in the new file.
        tensor: Called in order with each name and the tensor's node; returns the tensor.

    Raises:
        UnwritableError: If a tensor cannot be where its name says.
    """
    missing = names.keys() - set(_keys_in(tree))
    if missing:
        raise UnwritableError(f"the source has no container for {min(missing)!r}")
    return _Content(names, tensor).of(tree, "")


class _Content:
    def __init__(
        self,
        names: Mapping[str, Sequence[str]],
        tensor: Callable[[str, Mapping[str, Any]], Any],
    ) -> None:
        self._names, self._tensor = names, tensor

    def of(self, node: Any, name: str) -> Any:
        """Return the value of a node that `_lasts`, which had the name `name`."""
        if isinstance(node, list):
            return self._items(node, name)
        if not isinstance(node, dict):
            return node
        if "tensor" in node:
            (key,) = self._require_places(node["tensor"], [node["tensor"]])
            return self._tensor(key, node)
        if "tuple" in node:
            return tuple(self._items(node["tuple"], name))
        if "Size" in node:
            import torch

            return torch.Size(self._items(node["Size"], name))
        return float(node["float"]) if "float" in node else self._mapping(node, name)

    def _items(self, nodes: list[Any], name: str) -> list[Any]:
        return [
            self.of(node, _joined(name, place)) if self._lasts(node) else None
            for place, node in enumerate(nodes)
        ]

    def _mapping(self, node: Mapping[str, Any], name: str) -> dict[Any, Any]:
        is_ordered = "OrderedDict" in node
        found: dict[Any, Any] = OrderedDict() if is_ordered else {}
        for key, entry in _entries(node):
            if not self._lasts(entry):
                continue
            for new, value in self._entry(key, entry, name):
                if new in found:
                    raise UnwritableError(f"{_joined(name, new)!r} is the name of another value")
                found[new] = value
        if is_ordered and "metadata" in node:
            vars(found)["_metadata"] = self.of(node["metadata"], name)
        return found

    def _entry(self, key: Any, node: Any, above: str) -> Iterator[tuple[Any, Any]]:
        """Yield the entries for one of the source: a tensor may have other or several names."""
        if not (isinstance(node, dict) and "tensor" in node):
            yield key, self.of(node, _joined(above, key))
            return
        prefix = f"{above}/" if above else ""
        names = self._names[node["tensor"]]
        inside = [name for name in names if name.startswith(prefix)]
        for name in self._require_places(node["tensor"], inside):
            new = name.removeprefix(prefix)
            yield key if new == str(key) else new, self._tensor(name, node)

    def _require_places(self, key: str, possible: Sequence[str]) -> Sequence[str]:
        """Return the names of a tensor; raise unless all are possible in its container."""
        for name in self._names[key]:
            if name not in possible:
                raise UnwritableError(f"{name!r} is not in the container that has {key!r}")
        return self._names[key]

    def _lasts(self, node: Any) -> bool:
        """Return False for what had tensors of which none are written."""
        keys = list(_keys_in(node))
        return not keys or any(key in self._names for key in keys)


def _entries(node: Mapping[str, Any]) -> Iterable[tuple[Any, Any]]:
    entries = node["OrderedDict" if "OrderedDict" in node else "dict"]
    return entries.items() if isinstance(entries, dict) else [(k, v) for k, v in entries]


def _keys_in(node: Any) -> Iterator[str]:
    """Yield the keys of the tensors in a tree."""
    if isinstance(node, list):
        for inner in node:
            yield from _keys_in(inner)
    elif isinstance(node, dict):
        if "tensor" in node:
            yield node["tensor"]
        elif "dict" in node or "OrderedDict" in node:
            for _, inner in _entries(node):
                yield from _keys_in(inner)
        else:
            yield from _keys_in(node.get("tuple"))
