"""Numbered blocks: layers whose names differ only in the numbers before the name of the layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from keras_trainops import numbering
from keras_trainops.layouts.roles import roles_in_block
from keras_trainops.restoring.guessing.units import Unit, without_automatic_numbers

Index: TypeAlias = tuple[int, ...]
_ALIKE = 0.5  # the part of the layers that blocks of one family have in common, at least


@dataclass(eq=False)
class Block:
    """The layers of one block, by their name in it.

    Attributes:
        index: The numbers of the block.
        units: The layers by their names in the block, automatic numbers counted anew.
        inner: The name of each layer in the block as it is.
        roles: The role of each layer, by the same names as `units`; "" if unknown.
    """

    index: Index
    units: dict[str, Unit]
    inner: dict[str, str]
    roles: dict[str, str]

    @property
    def members(self) -> frozenset[str]:
        """The names of the layers."""
        return frozenset(self.units)


@dataclass(eq=False)
class Family:
    """Blocks whose names differ only in numbers.

    Attributes:
        prefix: The text before the names of the layers, numbers replaced by `#`.
        blocks: The blocks in numeric order.
    """

    prefix: str
    blocks: list[Block]

    @property
    def units(self) -> list[Unit]:
        """The layers of all blocks."""
        found: list[Unit] = []
        for block in self.blocks:
            found += block.units.values()
        return found


def families_of(units: Iterable[Unit]) -> list[Family]:
    """Return all families of at least two alike layers in a block, one for each place of a number.

    Example:
        >>> from keras_trainops.restoring.guessing.units import units_of
        >>> names = ("h.0.ln.weight", "h.0.fc.weight", "h.1.ln.weight", "h.1.fc.weight", "out.bias")
        >>> [(f.prefix, len(f.blocks)) for f in families_of(units_of(dict.fromkeys(names, (2,))))]
        [('h.#', 2)]
    """
    members: dict[str, dict[Index, dict[str, Unit]]] = {}
    for unit in units:
        texts, numerals = numbering.split_numerals(unit.label)
        index: Index = ()
        for place, numeral in enumerate(numerals):
            index = (*index, numbering.numeral_value(numeral))
            prefix = "#".join(texts[: place + 1]) + "#"
            inner = _after(texts, numerals, place)
            members.setdefault(prefix, {}).setdefault(index, {})[inner] = unit
    families = [_family(prefix, blocks) for prefix, blocks in members.items()]
    return [family for family in families if family is not None]


def _after(texts: Sequence[str], numerals: Sequence[str], place: int) -> str:
    """Return the part of a name after the number at a place."""
    rest = texts[place + 1]
    for numeral, text in zip(numerals[place + 1 :], texts[place + 2 :], strict=True):
        rest += numeral + text
    return rest.lstrip("._/")


def _family(prefix: str, members: Mapping[Index, Mapping[str, Unit]]) -> Family | None:
    """Return the blocks that are alike; None if there are none with several layers."""
    named = {index: without_automatic_numbers(units) for index, units in members.items()}
    kinds = Counter(frozenset(names.values()) for names in named.values())
    several = [kind for kind, _ in kinds.most_common() if len(kind) > 1]
    if not several:
        return None
    usual = several[0]
    blocks = [
        _block(index, members[index], named[index])
        for index in sorted(members)
        if _alike(usual, frozenset(named[index].values()))
    ]
    return Family(prefix, blocks)


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= _ALIKE * min(len(one), len(other))


def _block(index: Index, units: Mapping[str, Unit], names: Mapping[str, str]) -> Block:
    return Block(
        index,
        {names[inner]: unit for inner, unit in units.items()},
        {names[inner]: inner for inner in units},
        {names[inner]: role for inner, role in roles_of(units).items()},
    )


def roles_of(units: Mapping[str, Unit]) -> dict[str, str]:
    """Return the roles of the layers of a block; "" where they are unknown.

    Attributes of a model say more than automatic names of layers.

    Args:
        units: The layers by their names in the block.
    """
    by_name = roles_in_block(list(units))
    aliases = {name: _alias_in_block(name, unit) for name, unit in units.items()}
    known = Counter(alias for alias in aliases.values() if alias)
    by_alias = roles_in_block(list(known))
    roles = Counter(by_alias[alias] for alias in known.elements())
    return {
        name: role
        if (role := by_alias.get(aliases[name], "")) and roles[role] == 1
        else by_name[name]
        for name in units
    }


def _alias_in_block(inner: str, unit: Unit) -> str:
    parts = unit.alias.split("/")
    count = inner.count("/") + 1
    return "/".join(map(numbering.stem, parts[-count:])) if len(parts) > count else ""
