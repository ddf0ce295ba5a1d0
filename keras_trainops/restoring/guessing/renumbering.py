"""Layers whose names differ only in automatic numbers, as `dense_7` and `dense`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from keras_trainops import numbering
from keras_trainops.restoring.guessing.columns import NAMES
from keras_trainops.restoring.guessing.fitting import Fitting
from keras_trainops.restoring.guessing.units import Unit
from keras_trainops.restoring.naming import auto

RECOUNTED = "automatic numbers"


def renumbered(
    theirs: Sequence[Unit], ours: Sequence[Unit], fitting: Fitting
) -> dict[str, list[tuple[Unit, Unit]]]:
    """Return layers that differ only in automatic numbers, if both sides have equally many.

    Args:
        theirs: The layers of the checkpoint.
        ours: The layers of the model.
        fitting: Compares layers.

    Returns:
        The pairs by reason: names, or recounted numbers of layers with equal shapes.
    """
    found: dict[str, list[tuple[Unit, Unit]]] = {}
    for pairs in _kinds_of(_pairs(theirs, ours, fitting)):
        found.setdefault(RECOUNTED if _rests_on_order(pairs) else NAMES, []).extend(pairs)
    return found


def _shapes(units: Iterable[Unit]) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for unit in units for tensor in unit.tensors}


def _pairs(
    theirs: Sequence[Unit], ours: Sequence[Unit], fitting: Fitting
) -> Iterator[tuple[Unit, Unit]]:
    """Yield layers that have the same name after a recount, and fit as a whole.

    Args:
        theirs: The layers of the checkpoint.
        ours: The layers of the model.
        fitting: Compares layers.
    """
    certain = {key: path for path, key in auto.pair(_shapes(ours), _shapes(theirs)).key_of.items()}
    their_numbers = numbering.sibling_numbers(unit.owner for unit in theirs)
    our_numbers = numbering.sibling_numbers(unit.owner for unit in ours)
    unit_of = {tensor.name: unit for unit in ours for tensor in unit.tensors}
    for unit in theirs:
        other = unit_of.get(certain.get(unit.tensors[0].name, ""))
        if other is None:
            continue
        leads = fitting.leads(unit, other) or []
        there, here = _numbered_places(unit.owner), _numbered_places(other.owner)
        if (
            leads
            and all(certain.get(key) == lead.path for lead in leads for key in lead.keys)
            and [stem for _, stem in there] == [stem for _, stem in here]
            and all(
                len(their_numbers[one]) == len(our_numbers[two])
                for one, two in zip(there, here, strict=True)
            )
        ):
            yield unit, other


def _kinds_of(pairs: Iterable[tuple[Unit, Unit]]) -> list[list[tuple[Unit, Unit]]]:
    kinds: dict[object, list[tuple[Unit, Unit]]] = {}
    for pair in pairs:
        kind = tuple(stem for _, stem in _numbered_places(pair[1].owner))
        kinds.setdefault(kind, []).append(pair)
    return list(kinds.values())


def _rests_on_order(pairs: Sequence[tuple[Unit, Unit]]) -> bool:
    """Return True if layers of one shape got new numbers."""
    shapes = [tuple(tensor.shape for tensor in one.tensors) for one, _ in pairs]
    renamed = any(_last_number(a.owner) != _last_number(b.owner) for a, b in pairs)
    return renamed and len(set(shapes)) < len(shapes)


def _last_number(name: str) -> list[int]:
    return [number for _, number in numbering.automatic_numbers(name)]


def _numbered_places(name: str) -> list[numbering.Place]:
    return [place for place, _ in numbering.automatic_numbers(name)]
