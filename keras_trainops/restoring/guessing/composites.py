"""Layers of one side that share a layer of the other: fused projections, halves, experts.

A fused tensor leads to several variables, each of which takes its part; the tensors of many experts
lead to one variable. If the order of the parts is unknown, there is a question instead of a pair.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from keras_trainops import numbering
from keras_trainops.adapt.base import chain_of
from keras_trainops.adapt.combination import Concat, Split
from keras_trainops.layouts.fused import halves_of, only_order, parts_of, stacked, stacked_halves
from keras_trainops.layouts.orders import fused_order, halves_order
from keras_trainops.layouts.positions import position_offset
from keras_trainops.layouts.questions import code_of, question_about_halves, question_about_order
from keras_trainops.layouts.reading import Reading
from keras_trainops.restoring.guessing.columns import Column
from keras_trainops.restoring.guessing.fitting import Fitting, Lead
from keras_trainops.restoring.guessing.pairing import Pairing
from keras_trainops.restoring.guessing.units import Tensor, Unit

_PREFIXES = ("", "cross_", "shared_", "expert_")
_FUSED = (("qkv", ("query", "key", "value")), ("kv", ("key", "value")), ("gate_up", ("gate", "up")))


class Composite(NamedTuple):
    """The columns that belong together, and the leads between their tensors.

    Attributes:
        theirs: Columns of the checkpoint.
        ours: Columns of the model.
        leads: The leads; none if only the user can tell the order of the parts.
        question: What the user must tell.
    """

    theirs: list[Column]
    ours: list[Column]
    leads: list[Lead]
    question: str = ""


def composites(pairing: Pairing) -> list[Composite]:
    """Return the composites among the open columns of a pairing, and take their columns out."""
    found: list[Composite] = []
    found += _positions(pairing)
    for prefix in _PREFIXES:
        for fused, parts in _FUSED:
            found += _fused(pairing, prefix + fused, [prefix + part for part in parts])
        found += _joined(pairing, prefix)
        found += _stacks(pairing, prefix)
    return found


def _taken(pairing: Pairing, found: Composite) -> list[Composite]:
    pairing.take(found.theirs, found.ours)
    return [found]


def _fused(pairing: Pairing, fused: str, parts: Sequence[str]) -> list[Composite]:
    theirs = [column for column in pairing.theirs if column.role == fused]
    ours = [_only(pairing.ours, role) for role in parts]
    if len(theirs) != 1 or None in ours:
        return []
    columns = [column for column in ours if column is not None]
    leads: list[Lead] = []
    for index, unit in enumerate(theirs[0].units):
        found = _split(unit, [column.units[index] for column in columns], pairing.fitting)
        if isinstance(found, str):
            return _taken(pairing, Composite(theirs, columns, [], found)) if found else []
        leads += found
    return _taken(pairing, Composite(theirs, columns, leads))


def _only(columns: Iterable[Column], role: str) -> Column | None:
    found = [column for column in columns if column.role == role]
    return found[0] if len(found) == 1 else None


def _split(unit: Unit, parts: Sequence[Unit], fitting: Fitting) -> list[Lead] | str:
    """Return the leads from a fused layer to its parts; a question, or "" if it does not fit."""
    leads: list[Lead] = []
    for tensor in unit.tensors:
        variables = [part.of(tensor.meaning) for part in parts]
        if all(len(found) == 1 for found in variables):
            paths = [found[0].name for found in variables]
            readings = _parts_of(tensor, paths, fitting)
            if isinstance(readings, str):
                return readings
            leads += [
                Lead((tensor.name,), p, r.adapter) for p, r in zip(paths, readings, strict=True)
            ]
        elif any(variables) or tensor.meaning == "weight":
            return ""
    return leads


def _parts_of(tensor: Tensor, paths: Sequence[str], fitting: Fitting) -> list[Reading] | str:
    """Return how each part is taken from a fused tensor; a question, or "" if it does not fit."""
    layouts = [fitting.layouts[path] for path in paths]
    convention = fitting.convention(tensor) or "torch"
    if len(paths) == 2 and not re.search(r"kv|c_attn", tensor.name):
        halves = halves_order(tensor.name, fitting.config)
        if halves is not None:
            return halves_of(halves, layouts[0], layouts[1], tensor.shape, convention) or ""
        gate, up = layouts
        fits = halves_of("gate_up", gate, up, tensor.shape, convention)
        if not fits:
            return ""
        question = question_about_halves(tensor.name, gate, up, tensor.shape, convention)
        return f"lead the key to {_listed(paths)}. {question}"
    order = fused_order(tensor.name, fitting.config, convention)
    order = order or only_order(layouts, tensor.shape, convention)
    if order is not None:
        return parts_of(order, layouts, tensor.shape, convention) or ""
    if not parts_of("blocks", layouts, tensor.shape, convention):
        return ""
    question = question_about_order(tensor.name, layouts, tensor.shape, convention)
    return f"lead the key to {_listed(paths)}. {question}"


def _joined(pairing: Pairing, prefix: str) -> list[Composite]:
    """Return a query, key and value of the checkpoint that are one layer of the model."""
    theirs = [_only(pairing.theirs, prefix + role) for role in ("query", "key", "value")]
    ours = _only(pairing.ours, f"{prefix}qkv")
    if ours is None or None in theirs:
        return []
    columns = [column for column in theirs if column is not None]
    leads: list[Lead] = []
    for index, unit in enumerate(ours.units):
        parts = [column.units[index] for column in columns]
        found = [_joined_lead(variable, parts, pairing.fitting) for variable in unit.tensors]
        if None in found:
            return []
        leads += [lead for lead in found if lead is not None]
    if fused_order(ours.units[0].tensors[0].name) == "blocks":
        return _taken(pairing, Composite(columns, [ours], leads))
    question = (
        f"{leads[0].path!r} holds a query, key and value, but its name does not reveal their "
        f"order. If all rows of one part come before those of the next, lead "
        f"{_listed(leads[0].keys)} there, in this order, and add "
        f"`{code_of(leads[0].adapter)}` to `adapt=`"
    )
    return _taken(pairing, Composite(columns, [ours], [], question))


def _joined_lead(variable: Tensor, parts: Sequence[Unit], fitting: Fitting) -> Lead | None:
    """Return the lead of a query, key and value to a variable that holds them one by one."""
    tensors = [part.of(variable.meaning) for part in parts]
    if any(len(found) != 1 for found in tensors):
        return None
    every = [found[0] for found in tensors]
    axis = len(every[0].shape) - 1 if fitting.convention(every[0]) == "keras" else 0
    join = Concat(axis)
    try:
        shape = join.shape([tensor.shape for tensor in every], variable.shape)
    except ValueError:
        return None
    reading = fitting.reading(every[0]._replace(shape=shape), variable.name)
    if reading is None:
        return None
    keys = tuple(tensor.name for tensor in every)
    return Lead(keys, variable.name, chain_of([join, *reading.steps]))


def _listed(paths: Sequence[str]) -> str:
    return f"[{', '.join(map(repr, paths))}]"


def _positions(pairing: Pairing) -> list[Composite]:
    """Return tables of positions whose first rows are not positions, as in RoBERTa and OPT."""
    role = "position_embedding"
    theirs = [column for column in pairing.theirs if column.role == role]
    sides = Counter(column.side for column in theirs)
    found: list[Composite] = []
    for one in [column for column in theirs if sides[column.side] == 1]:
        ours = [c for c in pairing.ours if c.role == role and c.side in ("", one.side)]
        if len(ours) == 1:
            found += _positions_of(pairing, one, ours[0])
    return found


def _positions_of(pairing: Pairing, one: Column, other: Column) -> list[Composite]:
    tensor, variable = one.units[0].tensors[0], other.units[0].tensors[0]
    if len(tensor.shape) != 2 or tensor.shape[1:] != variable.shape[1:]:
        return []
    offset = tensor.shape[0] - variable.shape[0]
    if offset <= 0:
        return []
    drop = Split(1, [offset, variable.shape[0]])
    if offset == position_offset(pairing.fitting.config):
        lead = Lead((tensor.name,), variable.name, drop)
        return _taken(pairing, Composite([one], [other], [lead]))
    question = (
        f"{tensor.name!r} has {offset} rows more than {variable.name!r}. Lead it there with "
        f"kt.adapt.{drop!r} if its first rows are no positions (RoBERTa, OPT, BART: 2), or with "
        "kt.adapt.Crop() to keep the first positions"
    )
    return _taken(pairing, Composite([one], [other], [], question))


def _stacks(pairing: Pairing, prefix: str) -> list[Composite]:
    """Return stacks of numbered layers (one per expert) that are one variable of the model."""
    found: list[Composite] = []
    for role in ("gate", "up", "down"):
        ours = _only(pairing.ours, prefix + role)
        lists = _lists(pairing.theirs, prefix + role)
        if ours is not None and len(lists) == 1:
            found += _stack(pairing, lists, ours)
    ours = _only(pairing.ours, prefix + "gate")
    halves = [_lists(pairing.theirs, prefix + role) for role in ("gate", "up")]
    if ours is not None and all(len(lists) == 1 for lists in halves):
        found += _stack(pairing, [halves[0][0], halves[1][0]], ours)
    return found


def _lists(columns: Iterable[Column], role: str) -> list[list[Column]]:
    """Return the columns of a role whose names differ only in one number, in numeric order."""
    of_role = [column for column in columns if column.role == role]
    families: dict[tuple[str, ...], list[Column]] = {}
    for column in of_role:
        families.setdefault(numbering.split(column.inner)[0], []).append(column)
    return [
        sorted(members, key=lambda column: [int(n) for n in numbering.split(column.inner)[1]])
        for members in families.values()
        if len(numbering.split(members[0].inner)[1]) > 0
    ]


def _stack(pairing: Pairing, lists: Sequence[Sequence[Column]], ours: Column) -> list[Composite]:
    """Return the composite of a list of layers, or of gates and up projections together."""
    leads: list[Lead] = []
    for index, unit in enumerate(ours.units):
        every = [column.units[index] for columns in lists for column in columns]
        lead = _stacked_lead(every, len(lists), unit, pairing.fitting)
        if lead is None:
            return []
        leads.append(lead)
    theirs = [column for columns in lists for column in columns]
    return _taken(pairing, Composite(theirs, [ours], leads))


def _stacked_lead(units: Sequence[Unit], halves: int, ours: Unit, fitting: Fitting) -> Lead | None:
    tensors = [unit.tensors[0] for unit in units if len(unit.tensors) == 1]
    if len(tensors) != len(units) or len(ours.tensors) != 1:
        return None
    path, shapes = ours.tensors[0].name, {tensor.shape for tensor in tensors}
    if len(shapes) != 1:
        return None
    layout, shape, convention = fitting.layouts[path], shapes.pop(), fitting.convention(tensors[0])
    if halves == 1:
        readings = stacked(layout, shape, len(tensors))
    else:
        readings = stacked_halves("gate_up", layout, shape, len(tensors) // halves)
    fitting_ones = [r for r in readings if convention in (None, r.convention) or not r.convention]
    if not fitting_ones:
        return None
    return Lead(tuple(t.name for t in tensors), path, fitting_ones[0].adapter)
