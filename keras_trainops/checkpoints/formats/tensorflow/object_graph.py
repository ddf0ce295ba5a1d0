"""The object graph of a TF2 checkpoint: which tensor is the value of which variable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from keras_trainops.checkpoints.training_state import is_counter, optimizer_scopes

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # the tensor that contains it
_VALUE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


class _Saved(NamedTuple):
    """A variable of an object graph; `full_name` may be empty."""

    full_name: str
    object_path: str
    tensor_name: str


def names_in_object_graph(
    serialized: bytes, shapes: Mapping[str, Any]
) -> tuple[dict[str, str], frozenset[str]]:
    """Parse an object graph.

    Args:
        serialized: A serialized `TrackableObjectGraph`.
        shapes: Mapping whose keys are the names of the stored tensors.

    Returns:
        Mapping from key to tensor name, and the keys that are training state.
    """
    graph = _parse(serialized)
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


def copies_in_object_graph(serialized: bytes, shapes: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return, by name, the tensors that a SavedModel stores again, with those they may repeat.

    A variable has one name in all lists. If several have the same name, only values tell.
    """
    saved = list(_saved_variables(_parse(serialized), shapes))
    kept = _without_repeated(saved)
    named: dict[str, list[str]] = {}
    for entry in kept:
        named.setdefault(entry.full_name, []).append(entry.tensor_name)
    first = frozenset(kept)
    repeated = [entry for entry in saved if entry not in first]
    return {entry.tensor_name: named.get(entry.full_name, []) for entry in repeated}


def pruned(serialized: bytes, written: Collection[str]) -> bytes:
    """Return an object graph without the values and slots of tensors that are not written."""
    graph = _parse(serialized)
    if all(value.checkpoint_key in written for node in graph.nodes for value in node.attributes):
        return serialized
    emptied = set()
    for number, node in enumerate(graph.nodes):
        values = [value for value in node.attributes if value.checkpoint_key in written]
        if node.attributes and not values:
            emptied.add(number)
        del node.attributes[:]
        node.attributes.extend(values)
    for node in graph.nodes:
        slots = [s for s in node.slot_variables if s.slot_variable_node_id not in emptied]
        del node.slot_variables[:]
        node.slot_variables.extend(slots)
    return graph.SerializeToString(deterministic=True)


def _parse(serialized: bytes) -> Any:
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(serialized)
    return graph


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
