"""Find the counterparts of the layers of a checkpoint in a model.

Blocks come first (`alignment.py`). The layers of aligned blocks are paired for all blocks of a kind
at once (`pairing.py`), then what several layers of one side share with one of the other
(`composites.py`), and in the end the layers outside of blocks.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from keras_trainops.layouts.roles import attention_roles, roles_outside, side_of
from keras_trainops.restoring.guessing.alignment import Alignment, next_alignment
from keras_trainops.restoring.guessing.columns import NAMES, Column, columns_of
from keras_trainops.restoring.guessing.composites import composites
from keras_trainops.restoring.guessing.families import Block, families_of
from keras_trainops.restoring.guessing.fitting import Fitting, Lead
from keras_trainops.restoring.guessing.pairing import Pairing
from keras_trainops.restoring.guessing.units import Unit


@dataclass
class Found:
    """What a search has found.

    Attributes:
        leads: The leads, by reason.
        open: Groups of layers that fit each other in several ways: of the checkpoint, of the model.
        questions: What only the user can know, with the choices as code.
    """

    leads: dict[str, list[Lead]] = field(default_factory=dict)
    open: list[tuple[list[Unit], list[Unit]]] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)

    @property
    def every_lead(self) -> list[Lead]:
        """The leads of all reasons."""
        return [*itertools.chain.from_iterable(self.leads.values())]

    def add(self, leads: Iterable[Lead], reason: str) -> None:
        """Add leads for a reason."""
        self.leads.setdefault(reason, []).extend(leads)


class Search:
    """A search for the counterparts of layers.

    Args:
        theirs: The layers of the checkpoint.
        ours: The layers of the model.
        fitting: Compares layers.
        is_ordered: If True, the checkpoint keeps the order in which layers were created.
    """

    def __init__(
        self, theirs: Sequence[Unit], ours: Sequence[Unit], fitting: Fitting, is_ordered: bool
    ) -> None:
        is_auxiliary = any(_is_auxiliary(unit) for unit in ours)
        self._theirs = [unit for unit in theirs if is_auxiliary or not _is_auxiliary(unit)]
        self._ours = ours
        self._fitting, self._is_ordered = fitting, is_ordered
        self.found = Found()

    def run(self) -> Found:
        """Pair as many layers as possible."""
        theirs, ours = self._theirs, self._ours
        done: set[tuple[str, str]] = set()
        while alignment := next_alignment(theirs, ours, self._fitting, done):
            done.add((alignment.theirs.prefix, alignment.ours.prefix))
            self._pair_blocks(alignment)
            _mark(alignment)
            theirs, ours = self._open_units()
        self._pair_outside(
            [unit for unit in theirs if unit.block is None],
            [unit for unit in ours if unit.block is None],
        )
        self._tell_what_is_open()
        return self.found

    def _tell_what_is_open(self) -> None:
        """Keep the groups of layers that fit each other and are not paired."""
        theirs, ours = self._open_units()
        pairing = Pairing(
            _columns_outside(theirs), _columns_outside(ours), self._fitting, self._is_ordered
        )
        for some, others in pairing.groups():
            if some and others:
                self.found.open.append((_units(some), _units(others)))

    def _open_units(self) -> tuple[list[Unit], list[Unit]]:
        """Return the layers of both sides that have no lead yet."""
        leads = self.found.every_lead
        used = {key for lead in leads for key in lead.keys} | {lead.path for lead in leads}
        asked = {id(unit) for group in self.found.open for side in group for unit in side}
        theirs, ours = (
            [
                unit
                for unit in units
                if id(unit) not in asked and used.isdisjoint(t.name for t in unit.tensors)
            ]
            for units in (self._theirs, self._ours)
        )
        return theirs, ours

    def _pair_blocks(self, alignment: Alignment) -> None:
        kinds: dict[tuple[object, object], list[tuple[Block, Block]]] = {}
        for pair in alignment.blocks:
            kinds.setdefault((pair[0].members, pair[1].members), []).append(pair)
        carried: dict[str, str] = {}
        for pairs in sorted(kinds.values(), key=len, reverse=True):
            theirs, ours = ([pair[side] for pair in pairs] for side in (0, 1))
            pairing = Pairing(columns_of(theirs), columns_of(ours), self._fitting, self._is_ordered)
            pairing.by_names(carried)
            self._join(pairing)
            pairing.by_shapes()
            self._take(pairing)
            carried |= {a.name: b.name for a, b, why in pairing.found if why == NAMES}

    def _pair_outside(self, theirs: Sequence[Unit], ours: Sequence[Unit]) -> None:
        pairing = Pairing(
            _columns_outside(theirs),
            _columns_outside(ours),
            self._fitting,
            self._is_ordered,
            is_outside=True,
            anchors=self._anchors(),
        )
        pairing.by_names({})
        self._join(pairing)
        pairing.by_shapes()
        self._take(pairing)

    def _anchors(self) -> list[tuple[str, int]]:
        """Return the layers of the checkpoint in blocks, with the positions of counterparts."""
        position_of = {tensor.name: unit.position for unit in self._ours for tensor in unit.tensors}
        leads = self.found.every_lead
        return [(key, position_of[lead.path]) for lead in leads for key in lead.keys]

    def _join(self, pairing: Pairing) -> None:
        """Keep what several layers of one side share with one of the other."""
        for each in composites(pairing):
            self.found.add(each.leads, NAMES)
            if each.question:
                self.found.questions.append(each.question)
                self.found.open.append((_units(each.theirs), _units(each.ours)))

    def _take(self, pairing: Pairing) -> None:
        """Keep the leads of a pairing."""
        for one, other, reason in pairing.found:
            for a, b in zip(one.units, other.units, strict=True):
                self.found.add(self._fitting.leads(a, b) or (), reason)


def _mark(alignment: Alignment) -> None:
    """Tell the layers of aligned blocks which block they are in.

    A shortcut may be a layer outside of all blocks in the other network.
    """
    for pair in alignment.blocks:
        block = object()
        for side in pair:
            for name, unit in side.units.items():
                if side.roles[name] != "shortcut":
                    unit.block = unit.block or block


def _is_auxiliary(unit: Unit) -> bool:
    """Return True for a layer of a head that only helps training; most models leave it out."""
    return re.search(r"(?:^|[./_])aux", unit.owner, re.IGNORECASE) is not None


def _units(columns: Iterable[Column]) -> list[Unit]:
    found: list[Unit] = []
    for column in columns:
        found += column.units
    return found


def _columns_outside(units: Sequence[Unit]) -> list[Column]:
    """Return a column for each layer outside of blocks, with its role in the whole network."""
    numbered: set[int] = set()
    for family in families_of(units):
        if len(family.blocks) > 1:
            numbered.update(map(id, family.units))
    names = [unit.label for unit in units if id(unit) not in numbered and not unit.is_batch_norm]
    roles = roles_outside(names) | attention_roles(names)
    sides = {unit.label: side_of(unit.label) for unit in units}
    has_sides = len(set(sides.values()) - {""}) > 1
    return [
        Column(
            unit.owner,
            roles.get(unit.label, ""),
            (unit,),
            unit.label,
            sides[unit.label] if has_sides else "",
            id(unit) in numbered,
        )
        for unit in units
    ]
