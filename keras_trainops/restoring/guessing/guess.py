"""Guess which keys of a checkpoint lead to which variables, from names, shapes and order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import keras

from keras_trainops import keras_private, numbering, paths
from keras_trainops.adapt.base import Adapter, Shape
from keras_trainops.adapt.layout import Reshape
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.training_state import by_name
from keras_trainops.layouts.from_torch import from_torch
from keras_trainops.layouts.layers import layouts_of
from keras_trainops.restoring.configuration import config_beside
from keras_trainops.restoring.differences import differences
from keras_trainops.restoring.guessing.adapters import fold_adapters
from keras_trainops.restoring.guessing.columns import NAMES, ORDER, SHAPES
from keras_trainops.restoring.guessing.fitting import Fitting, Lead
from keras_trainops.restoring.guessing.meanings import withdraw_other_meanings
from keras_trainops.restoring.guessing.renumbering import RECOUNTED, renumbered
from keras_trainops.restoring.guessing.rules import fold_rules
from keras_trainops.restoring.guessing.search import Found, Search
from keras_trainops.restoring.guessing.suggestion import Ambiguity, Suggestion
from keras_trainops.restoring.guessing.units import Unit, units_of
from keras_trainops.restoring.naming.table import NameTable, counted_names
from keras_trainops.restoring.naming.target import Target

T = TypeVar("T")


class Guess(NamedTuple):
    """What names and shapes show about a checkpoint and a model.

    Attributes:
        model: The model.
        targets: The selected variables by the name that leads to each.
        keys: The shape of each tensor.
        own: Leads of keys that name their variable.
        by_own_name: Key -> path, for all keys that name a variable.
        found: All other leads, and what stays open.
        fitting: Compares layers.
        checkpoint: The source.
    """

    model: keras.Model
    targets: Mapping[str, Target]
    keys: Mapping[str, Shape]
    own: Sequence[Lead]
    by_own_name: Mapping[str, str]
    found: Found
    fitting: Fitting
    checkpoint: Checkpoint

    @property
    def leads(self) -> list[Lead]:
        """All leads."""
        return [*self.own, *self.found.every_lead]

    @property
    def doubtful(self) -> list[Lead]:
        """The leads that rest on order or likeness."""
        return self.found.leads.get(ORDER, [])

    def suggestion(self) -> Suggestion:
        """Return the guess as rules and adapters."""
        leads = self.leads
        pairs = _by_key(leads)
        by_reason = {why: list(self.found.leads.get(why, ())) for why in (NAMES, SHAPES, ORDER)}
        by_reason[ORDER] += self.found.leads.get(RECOUNTED, [])
        rules = {why: self._rules(each) for why, each in by_reason.items()}
        adapt, is_torch = self._adapt(leads)
        ambiguous = tuple(
            Ambiguity(_tensors(theirs), _tensors(ours)) for theirs, ours in self.found.open
        )
        open_keys = {key for group in ambiguous for key in group.keys}
        open_paths = {path for group in ambiguous for path in group.paths}
        led = {lead.path for lead in leads}
        return Suggestion(
            rules=MappingProxyType(rules[NAMES] | rules[SHAPES] | rules[ORDER]),
            adapt=MappingProxyType(adapt),
            pairs=MappingProxyType(pairs),
            by_order=tuple(rules[ORDER]),
            by_shape=tuple(rules[SHAPES]),
            from_torch=is_torch,
            questions=tuple(self.found.questions),
            ambiguous=ambiguous,
            missing=tuple(_without(self.targets, led | open_paths)),
            unmatched=tuple(_without(self.keys, open_keys.union(pairs))),
            notes=tuple(self.notes()),
        )

    def notes(self) -> list[str]:
        """Return lines about what the networks compute differently, as configurations show it."""
        pairs = [
            (key, self.targets[each.path].variable) for each in self.leads for key in each.keys
        ]
        return differences(self.model, self.checkpoint, pairs)

    def _rules(self, leads: Iterable[Lead]) -> dict[str, str | list[str]]:
        pairs = {
            key: names
            for key, names in _by_key(leads).items()
            if self.by_own_name.get(key) != names
        }
        counted = {path: name for name, path in counted_names({p: p for p in self.targets}).items()}
        return fold_rules(pairs, self.keys, counted)

    def _adapt(self, leads: Sequence[Lead]) -> tuple[dict[str, Adapter], bool]:
        """Return the adapters, and whether those of `from_torch` are among them."""
        path_of = {name: target.path for name, target in self.targets.items()}
        torch = self._from_torch() if self.fitting.is_torch else {}
        needed: dict[str, Adapter | None] = {}
        beside_torch: dict[str, Adapter | None] = {}
        is_used = False
        for lead in leads:
            path = path_of[lead.path]
            needed[path] = lead.adapter
            given = torch.get(paths.exact_pattern(path))
            if given is None:
                beside_torch[path] = lead.adapter
            elif not self._is_given(given, lead):
                beside_torch[path] = lead.adapter or Reshape()
            else:
                is_used |= lead.adapter is not None
        every = set(path_of.values())
        if not is_used:
            return fold_adapters(needed, every), False
        return {**torch, **fold_adapters(beside_torch, every)}, True

    def _from_torch(self) -> dict[str, Adapter]:
        try:
            return from_torch(self.model)
        except ValueError:  # a layer that PyTorch does not have
            return {}

    def _is_given(self, adapter: Adapter, lead: Lead) -> bool:
        """Return True if an adapter of `from_torch` does the same as that of a lead."""
        shapes = [self.keys[key] for key in lead.keys]
        try:
            keys, chosen = adapter.for_keys(lead.keys, shapes, self.targets[lead.path].shape)
        except ValueError:
            return False
        return tuple(keys) == lead.keys and repr(chosen) == repr(lead.adapter)


def guess(model: keras.Model, table: NameTable, checkpoint: Checkpoint) -> Guess:
    """Guess which keys lead to the selected variables of a table; no tensor is read.

    Args:
        model: The model.
        table: Its variables.
        checkpoint: The source.
    """
    targets = {_name(table, target): target for target in table.targets if target.selected}
    # Mappings of arrays have no training state; only names show it.
    state = checkpoint.training_state | by_name(checkpoint)
    keys = {key: checkpoint.shape(key) for key in checkpoint if key not in state}
    paired = table.pair(checkpoint).targets
    by_own_name = {
        key: _name(table, paired[key]) for key in keys if key in paired and paired[key].selected
    }
    layouts = layouts_of(model)
    fitting = Fitting(
        {path: layouts[id(target.variable)] for path, target in targets.items()},
        keys,
        config_beside(checkpoint.location),
    )
    shapes = {path: target.shape for path, target in targets.items()}
    kept = _without_coincidences(shapes, keys, by_own_name)
    found = _search(
        _without(keys, kept),
        _without(shapes, set(kept.values())),
        _aliases(model, targets),
        fitting,
        is_ordered=list(keys) != sorted(keys),
    )
    withdraw_other_meanings(
        model, {path: t.variable for path, t in targets.items()}, fitting.config, found
    )
    own = [_own(key, keys[key], path, shapes[path], fitting) for key, path in kept.items()]
    leads = [lead for lead in own if lead is not None]
    return Guess(model, targets, keys, leads, by_own_name, found, fitting, checkpoint)


def _name(table: NameTable, target: Target) -> str:
    """Return the shortest name that leads to this variable and no other."""
    short = target.short_path
    return short if table.find(short) == [target] else target.path


def _own(key: str, shape: Shape, path: str, wanted: Shape, fitting: Fitting) -> Lead | None:
    """Return the lead of a key that names its variable, if the tensor fits.

    Args:
        key: The key.
        shape: The shape of its tensor.
        path: The path of the variable.
        wanted: The shape of the variable.
        fitting: Compares tensors.
    """
    for unit in units_of({key: shape}):
        reading = fitting.reading(unit.tensors[0], path)
        if reading is not None:
            return Lead((key,), path, reading.adapter)
    return Lead((key,), path) if shape == wanted else None


def _search(
    keys: Mapping[str, Shape],
    variables: Mapping[str, Shape],
    aliases: Mapping[str, str],
    fitting: Fitting,
    is_ordered: bool,
) -> Found:
    """Search for counterparts, those with other automatic numbers first.

    Args:
        keys: The shape of each tensor by key.
        variables: The shape of each variable by path.
        aliases: The attributes that lead to the layer of each variable, by path.
        fitting: Compares layers.
        is_ordered: If True, the checkpoint keeps the order in which layers were created.
    """
    theirs, ours = units_of(keys), units_of(variables, aliases)
    recounted = renumbered(theirs, ours, fitting)
    done = {id(unit) for pairs in recounted.values() for pair in pairs for unit in pair}
    search = Search(
        [unit for unit in theirs if id(unit) not in done],
        [unit for unit in ours if id(unit) not in done],
        fitting,
        is_ordered,
    )
    found = search.run()
    for reason, pairs in recounted.items():
        for one, other in pairs:
            found.add(fitting.leads(one, other) or (), reason)
    return found


def _aliases(model: keras.Model, targets: Mapping[str, Target]) -> dict[str, str]:
    """Return the attributes that lead to the layer of each variable, by path."""
    try:
        entries = keras_private.saving_walk(model).entries
    except Exception:  # a user's layer may not support saving
        return {}
    group_of = {id(entry.value): entry.group for entry in entries}
    return {path: group_of.get(id(target.variable), "") for path, target in targets.items()}


def _by_key(leads: Iterable[Lead]) -> dict[str, str | tuple[str, ...]]:
    """Return key -> path, or paths if a tensor leads to several."""
    found: dict[str, list[str]] = {}
    for lead in leads:
        for key in lead.keys:
            found.setdefault(key, []).append(lead.path)
    return {key: found[key][0] if len(found[key]) == 1 else tuple(found[key]) for key in found}


def _tensors(units: Iterable[Unit]) -> tuple[str, ...]:
    names: list[str] = []
    for unit in units:
        names += [tensor.name for tensor in unit.tensors]
    return tuple(names)


def _without(table: Mapping[str, T], names: Collection[str]) -> dict[str, T]:
    return {name: entry for name, entry in table.items() if name not in names}


def _without_coincidences(
    variables: Mapping[str, Shape], keys: Mapping[str, Shape], by_own_name: Mapping[str, str]
) -> dict[str, str]:
    """Drop pairs of equal names if siblings are numbered from a different start.

    With `dense_1`, `dense_2`, `dense_3` and `dense`, `dense_1`, `dense_2`, each side has a number
    that the other lacks. If only one side has more numbers, equal names are trusted.

    Args:
        variables: The variables by path.
        keys: The tensors by key.
        by_own_name: Key -> path, for keys that lead to a variable without a rule.
    """
    ours = numbering.sibling_numbers(map(_owner, variables))
    theirs = numbering.sibling_numbers(_owner(by_own_name.get(key, key)) for key in keys)
    disagreeing = {
        place
        for place, numbers in ours.items()
        if numbers - theirs.get(place, numbers) and theirs[place] - numbers
    }
    return {
        key: path
        for key, path in by_own_name.items()
        if disagreeing.isdisjoint(_numbered_places(_owner(path)))
    }


def _owner(path: str) -> str:
    return path.rpartition("/")[0]


def _numbered_places(name: str) -> list[numbering.Place]:
    return [place for place, _ in numbering.automatic_numbers(name)]
