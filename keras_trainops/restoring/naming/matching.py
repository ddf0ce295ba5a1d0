"""Brings keys and variables together by name, and remembers what does not fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import keras

from keras_trainops import numbering, paths
from keras_trainops.adapt.base import Adapter
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.restoring.naming import auto
from keras_trainops.restoring.naming.pairing import Pairing
from keras_trainops.restoring.naming.rules import Renamed, Renaming
from keras_trainops.restoring.naming.table import NameTable
from keras_trainops.weight_names import unique


class Matching:
    """The keys of each variable.

    Attributes:
        named, selected, adapters: The model's variables, which are to be restored, and how.
        table: Finds variables by name.
        copies_of: Keys, by position, under which a weights file holds a variable again.
        ignored: Keys that a rule leaves out.
        unused: Keys that lead to no variable.
    """

    def __init__(
        self,
        named: Sequence[paths.NamedVariable],
        selected: Sequence[bool],
        adapters: Sequence[Adapter | None],
        table: NameTable,
    ) -> None:
        self.named, self.selected, self.adapters, self.table = named, selected, adapters, table
        self.copies_of: dict[int, list[str]] = defaultdict(list)
        self.ignored: list[str] = []
        self.unused: list[str] = []
        self._keys: dict[int, list[tuple[int, str]]] = defaultdict(list)
        self._name_of: dict[int, str] = {}
        self._position = {id(variable): i for i, (_, variable) in enumerate(named)}
        self._pairing = Pairing()
        self._told: set[str] = set()
        self._conflicts: list[str] = []
        self._rule_targets: dict[str, set[str]] = {}
        self._rules_that_lead: set[str] = set()

    def keys_of(self, position: int) -> list[str]:
        """The keys that lead to a variable, in the order of the rules that say so.

        Those of one rule that differ in their numbers only are in the order of these: some formats
        sort keys as text, `experts.10` before `experts.2`.
        """
        found = self._keys.get(position, [])
        keys: list[str] = []
        for order in sorted({order for order, _ in found}):
            of_rule = [key for other, key in found if other == order]
            numbered = len(numbering.by_family(of_rule)) == 1
            keys += sorted(of_rule, key=_numbers) if numbered else of_rule
        return keys

    def add(self, renamed: Iterable[Renamed]) -> None:
        """Takes the variables that all keys are to go to."""
        renamed = list(renamed)
        targets = [(target, entry.rule) for entry in renamed for target in entry.targets]
        self._pairing = self.table.pair(
            (target for target, _ in targets if isinstance(target, str)),
            (self._position[id(target)] for target, rule in targets if rule == "auto"),
        )
        for entry in renamed:
            self._add(entry)

    def _add(self, renamed: Renamed) -> None:
        if not renamed.targets:
            self.ignored.append(renamed.key)
        used = False
        for target in renamed.targets:
            for position in self._find(renamed, target):
                used = True
                self._take(position, renamed, target)
        if renamed.targets and not used:
            self.unused.append(renamed.key)
        if renamed.rule is not None and (used or not renamed.targets):
            self._rules_that_lead.add(renamed.rule)

    def _find(self, renamed: Renamed, target: str | keras.Variable) -> list[int]:
        if isinstance(target, keras.Variable):
            if id(target) not in self._position:
                self._conflicts.append(
                    f"Rename rule {renamed.rule!r} leads to the variable {target.path!r}, which is "
                    "no weight of this model."
                )
                return []
            found, name = [self._position[id(target)]], target.path
        else:
            found, name = self._named(target, renamed), target
            if renamed.rule is not None and not found:
                self._rule_targets.setdefault(renamed.rule, set()).add(target)
        if len(found) > 1:
            owners = ", ".join(repr(self.named[i].path) for i in found)
            self._conflicts.append(
                f"{name!r} (for key {renamed.key!r}) names {len(found)} variables: {owners}. Name "
                "one by its owner, or pass the `keras.Variable` itself in `rename`."
            )
            return []
        return found

    def _named(self, name: str, renamed: Renamed) -> list[int]:
        """The variables that a name stands for among all names: one, none, or several."""
        if name in self._pairing.positions:
            return [self._pairing.positions[name]]
        found = self._pairing.ambiguous.get(name, [])
        if not any(self.selected[i] for i in found):
            # A rule means what it says, also where another name says it better.
            by_rule = [] if found or renamed.rule is None else self.table.find(name)
            return by_rule if len(by_rule) == 1 else []
        if len(found) == 1:
            self._tell_rivals(found[0])
            return []
        return found

    def _tell_rivals(self, position: int) -> None:
        path = self.named[position].path
        if path not in self._told:
            self._told.add(path)
            rivals = [n for n, found in self._pairing.ambiguous.items() if position in found]
            self._conflicts.append(
                f"{path} could be {or_(rivals)}. Say which in a rename rule, with the "
                "`keras.Variable` itself, and leave out the others with rules to None."
            )

    def _take(self, position: int, renamed: Renamed, target: str | keras.Variable) -> None:
        if not self.selected[position]:
            return
        name = target if isinstance(target, str) else ""
        first_name = self._name_of.setdefault(position, name)
        keys = [key for _, key in self._keys[position]]
        if renamed.key in keys:
            return
        if keys and name != first_name and {name, first_name} <= self.table.stored_as[position]:
            self.copies_of[position].append(renamed.key)
        else:
            self._keys[position].append((renamed.order, renamed.key))

    def problems(self) -> list[str]:
        """What is wrong with the matching itself, whatever the reactions."""
        dead_ends = [
            f"Rename rule {rule!r} leads to no variable of the model, as to {min(targets)!r}. "
            f"{paths.closest_phrase(min(targets), self.table.paths, 'path')}"
            for rule, targets in self._rule_targets.items()
            if rule not in self._rules_that_lead and rule != "the callable"
        ]
        return [*self._conflicts, *dead_ends]


def _numbers(key: str) -> list[int]:
    return [int(number) for number in numbering.split(key)[1]]


def pair_by_heuristic(rename: str, matching: Matching, checkpoint: Checkpoint) -> Renaming:
    """The renaming of `rename="auto"`.

    Raises:
        ValueError: If `rename` is another string.
    """
    if rename != "auto":
        raise ValueError(
            '`rename` must be "auto", a mapping from regular expression to path, or a callable '
            f"from key to path. Received: rename={rename!r}"
        )
    pairs = _pairs(matching, checkpoint)
    variables = dict(matching.named)
    path_of = {key: path for path, key in pairs.key_of.items()}
    return Renaming(
        [
            Renamed(key, [variables[path_of[key]]], "auto")
            if key in path_of
            else Renamed(key, [key])
            for key in checkpoint
        ],
        [
            f'`rename="auto"`: {path} could be {or_(candidates)}. Say which in a rename rule.'
            for path, candidates in pairs.candidates.items()
        ],
    )


def _pairs(matching: Matching, checkpoint: Checkpoint) -> auto.Pairs:
    """What the heuristic finds, by path: the same by all kinds of names that a source may have."""
    keys = [key for key in checkpoint if key not in checkpoint.training_state]
    chosen = [i for i in range(len(matching.named)) if matching.selected[i]]
    found = []
    for names, theirs in matching.table.kinds_of_names(keys):
        path_of = unique((names[i], matching.named[i].path) for i in chosen)
        key_of = unique(zip(theirs, keys, strict=True))
        pairs = auto.pair(
            {names[i]: tuple(matching.named[i].variable.shape) for i in chosen},
            {name: checkpoint.shape(key) for name, key in key_of.items()},
        )
        found.append(
            auto.Pairs(
                {path_of[name]: key_of[key] for name, key in pairs.key_of.items()},
                {path_of[name]: [key_of[k] for k in ks] for name, ks in pairs.candidates.items()},
            )
        )
    return auto.agreed(found)


def or_(candidates: Sequence[str]) -> str:
    """Some names in a row, as in `'a' or 'b'`."""
    shown = [repr(key) for key in candidates[:4]]
    more = f" (and {len(candidates) - 4} more)" if len(candidates) > 4 else ""
    return (" or ".join(shown) or "none of the keys") + more
