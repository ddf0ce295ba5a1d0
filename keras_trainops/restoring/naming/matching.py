"""Lead each key of a checkpoint to its variable, and report names without one."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence

import keras

from keras_trainops import paths
from keras_trainops.layouts.words import split_name
from keras_trainops.restoring.naming.pairing import Pairing
from keras_trainops.restoring.naming.rules import Address, Renamed
from keras_trainops.restoring.naming.table import NameTable
from keras_trainops.restoring.naming.target import Target


class Matching:
    """Gives the variables of a table their keys.

    Attributes:
        table: The variables, by name.
        ignored: Keys that a rule leaves out.
        unused: Keys that lead to no variable.
    """

    def __init__(self, table: NameTable) -> None:
        self.table = table
        self.ignored: list[str] = []
        self.unused: list[str] = []
        self._name_of: dict[Target, str] = {}
        self._by_id = {id(target.variable): target for target in table.targets}
        self._pairing = Pairing()
        self._reported: set[Target] = set()
        self._conflicts: list[str] = []
        self._rule_addresses: dict[str, set[str]] = {}
        self._rules_that_lead: set[str] = set()

    def resolve(self, renamed: Sequence[Renamed]) -> list[str]:
        """Add each key to the variables that it leads to.

        Returns:
            Lines about ambiguous names, and about rules that lead to no variable.
        """
        self._pairing = self._pair(renamed)
        for entry in renamed:
            self._resolve(entry)
        return [*self._conflicts, *self._rules_without_variable()]

    def _pair(self, renamed: Sequence[Renamed]) -> Pairing:
        names: list[str] = []
        taken: list[Target] = []
        for entry in renamed:
            names += [address for address in entry.addresses if isinstance(address, str)]
            if entry.by == "heuristic":
                taken += [self._by_id[id(variable)] for variable in entry.addresses]
        return self.table.pair(names, taken)

    def _resolve(self, renamed: Renamed) -> None:
        if not renamed.addresses:
            self.ignored.append(renamed.key)
        used = False
        for address in renamed.addresses:
            for target in self._find(renamed, address):
                used = True
                self._take(target, renamed, address)
        if renamed.addresses and not used:
            self.unused.append(renamed.key)
        if renamed.rule is not None and (used or not renamed.addresses):
            self._rules_that_lead.add(renamed.rule)

    def _find(self, renamed: Renamed, address: Address) -> list[Target]:
        if isinstance(address, keras.Variable):
            return self._of_variable(renamed, address)
        found = self._named(address, renamed)
        if renamed.rule is not None and not found:
            self._rule_addresses.setdefault(renamed.rule, set()).add(address)
        if len(found) > 1:
            owners = ", ".join(repr(target.path) for target in found)
            self._conflicts.append(
                f"{address!r} (for key {renamed.key!r}) names {len(found)} variables: {owners}. "
                "Name one by its owner, or pass the `keras.Variable` itself in `rename`."
            )
            return []
        return found

    def _of_variable(self, renamed: Renamed, variable: keras.Variable) -> list[Target]:
        if id(variable) not in self._by_id:
            self._conflicts.append(
                f"Rename rule {renamed.rule or renamed.by!r} leads to the variable "
                f"{variable.path!r}, which is not a weight of this model."
            )
            return []
        return [self._by_id[id(variable)]]

    def _named(self, name: str, renamed: Renamed) -> list[Target]:
        """Return the variables a name refers to, given all other names: one, none, or several."""
        if name.endswith("/*") and renamed.by == "rule":
            _, leaf, meaning = split_name(renamed.key)
            return self.table.find_by_meaning(name[:-2], meaning) if leaf else []
        if name in self._pairing.targets:
            return [self._pairing.targets[name]]
        found = self._pairing.ambiguous.get(name, [])
        if not any(target.selected for target in found):
            # A rule applies even if another name suits the variable better.
            by_rule = [] if found or renamed.by == "nothing" else self.table.find(name)
            return by_rule if len(by_rule) == 1 else []
        if len(found) == 1:
            self._report_rivals(found[0])
            return []
        return found

    def _report_rivals(self, target: Target) -> None:
        if target not in self._reported:
            self._reported.add(target)
            rivals = self._rivals[target]
            self._conflicts.append(
                f"{target.path} could be {_joined_by_or(rivals)}. Choose one with a rename rule to "
                "the `keras.Variable` itself, and leave out the others with rules to None."
            )

    @functools.cached_property
    def _rivals(self) -> dict[Target, list[str]]:
        """The ambiguous names that each variable could have."""
        rivals: dict[Target, dict[str, None]] = defaultdict(dict)
        for name, targets in self._pairing.ambiguous.items():
            for target in targets:
                rivals[target][name] = None
        return {target: list(names) for target, names in rivals.items()}

    def _take(self, target: Target, renamed: Renamed, address: Address) -> None:
        """Add the key of `renamed` to a variable, as a lead or as a copy that must agree."""
        if not target.selected:
            return
        name = address if isinstance(address, str) else ""
        first_name = self._name_of.setdefault(target, name)
        keys = [key for _, key in target.leads]
        if renamed.key in keys:
            return
        if keys and name != first_name and {name, first_name} <= target.stored_as:
            target.copies.append(renamed.key)
        else:
            target.leads.append((renamed.order, renamed.key))

    def _rules_without_variable(self) -> list[str]:
        known = [target.path for target in self.table.targets]
        return [
            f"Rename rule {rule!r} leads to no variable of the model: none is named "
            f"{min(names)!r}. {paths.closest_phrase(min(names), known, 'path')}"
            for rule, names in self._rule_addresses.items()
            if rule not in self._rules_that_lead
        ]


def _joined_by_or(names: Sequence[str]) -> str:
    """Return names as in `'a' or 'b'`, at most four."""
    shown = [repr(name) for name in names[:4]]
    more = f" (and {len(names) - 4} more)" if len(names) > 4 else ""
    return (" or ".join(shown) or "none of the keys") + more
