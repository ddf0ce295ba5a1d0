"""The layers of a checkpoint and of a model, as far as names and shapes show them."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from keras_trainops import numbering
from keras_trainops.adapt.base import Shape
from keras_trainops.layouts.words import Meaning, split_name

# Counters, tables of constants and masks that PyTorch modules store beside their weights.
_BUFFERS = re.compile(
    r"(?:.*[./])?(?:num_batches_tracked|position_ids|token_type_ids|inv_freq|masked_bias"
    r"|relative_position_index|attn_mask|relative_coords_table|rotary_emb[./].*)"
)


class Tensor(NamedTuple):
    """A tensor of a checkpoint or a variable of a model.

    Attributes:
        name: The key, or the path.
        leaf: Its name in its layer; empty for a parameter that belongs to none.
        meaning: The meaning of the leaf.
        shape: Its shape.
    """

    name: str
    leaf: str
    meaning: Meaning
    shape: Shape


@dataclass(eq=False)
class Unit:
    """The tensors of one layer.

    Attributes:
        owner: The name of the layer.
        position: Its position among the layers.
        alias: The attributes that lead to the layer in the model, which may say more than
            automatic names do; empty for layers of a checkpoint.
        tensors: Its tensors.
        block: The aligned blocks that it belongs to, if any; the same for a block of the
            checkpoint and its counterpart.
    """

    owner: str
    position: int
    alias: str = ""
    tensors: list[Tensor] = field(default_factory=list)
    block: object = None

    @functools.cached_property
    def label(self) -> str:
        """The name without what its components repeat: `stem/stem_1/stem_1_conv` is `stem/1/conv`.

        It says where the layer is, but the checkpoint and the model know it by its whole name.
        """
        parts = self.owner.split("/")
        shown = parts[:1]
        for above, part in itertools.pairwise(parts):
            rest = part.removeprefix(above)
            shown.append(rest.lstrip("_") if rest.startswith("_") else part)
        return "/".join(shown)

    @functools.cached_property
    def measure(self) -> frozenset[tuple[Meaning, int]]:
        """The elements of required tensors, which are equal for all layers that fit each other.

        Adapters of a single tensor keep its elements. Two biases may be added, so layers that have
        nothing but biases are all alike here.
        """
        kept = ("mean", "variance") if self.is_batch_norm else ("weight", "recurrent", "reverse")
        return frozenset((t.meaning, math.prod(t.shape)) for t in self.tensors if t.meaning in kept)

    def of(self, meaning: Meaning) -> list[Tensor]:
        """Return the tensors of a meaning."""
        return [tensor for tensor in self.tensors if tensor.meaning == meaning]

    @property
    def is_batch_norm(self) -> bool:
        """True if the layer has moving statistics."""
        return bool(self.of("mean") or self.of("variance"))

    @property
    def rank(self) -> int:
        """The largest number of axes of its tensors."""
        return max(len(tensor.shape) for tensor in self.tensors)


def units_of(shapes: Mapping[str, Shape], aliases: Mapping[str, str] | None = None) -> list[Unit]:
    """Return the layers in the order of their first tensor.

    Args:
        shapes: The shape of each tensor by name.
        aliases: The attributes that lead to the layer of each variable, by path.

    Example:
        >>> [unit.owner for unit in units_of({"a.fc.weight": (2, 3), "a.fc.bias": (2,)})]
        ['a.fc']
    """
    found: dict[str, Unit] = {}
    for name, shape in shapes.items():
        if _BUFFERS.fullmatch(name):
            continue
        owner, leaf, meaning = split_name(name)
        if owner not in found:
            found[owner] = Unit(owner, len(found), (aliases or {}).get(name, ""))
        found[owner].tensors.append(Tensor(name, leaf, meaning, shape))
    return list(found.values())


def without_automatic_numbers(names: Iterable[str]) -> dict[str, str]:
    """Return names with automatic numbers and positions replaced by their rank among siblings.

    Blocks of one kind have equal names then: `norm_4` in one and `norm_7` in the next are `norm#0`,
    the third and the fourth module of a sequence are `#0` if others hold no tensors.

    Example:
        >>> without_automatic_numbers(["norm_4", "norm_12", "fc_1", "rep.3.bn", "rep.5.bn"])
        {'norm_4': 'norm#0', 'norm_12': 'norm#1', 'fc_1': 'fc#0', 'rep.3.bn': 'rep#0/#0/bn#0', \
'rep.5.bn': 'rep#0/#1/bn#0'}
    """
    split = {name: re.split("[./]", name) for name in names}
    found = dict.fromkeys(split, "")
    for depth in range(max(map(len, split.values()), default=0)):
        deep = {name: parts[depth] for name, parts in split.items() if depth < len(parts)}
        siblings: dict[tuple[str, str], set[str]] = {}
        for name, part in deep.items():
            siblings.setdefault((found[name], _stem(part)), set()).add(part)
        ranks = {
            kind: {part: rank for rank, part in enumerate(sorted(parts, key=natural_order))}
            for kind, parts in siblings.items()
        }
        for name, part in deep.items():
            rank = ranks[found[name], _stem(part)][part]
            found[name] += f"{'/' if depth else ''}{_stem(part)}#{rank}"
    return found


def _stem(component: str) -> str:
    return "" if component.isdigit() else numbering.stem(component)


def natural_order(name: str) -> list[tuple[str, int]]:
    """Return a sort key that compares numbers by value.

    Example:
        >>> sorted(["a10", "a9"], key=natural_order)
        ['a9', 'a10']
    """
    texts, numbers = numbering.split(name)
    values = [int(number) for number in numbers]
    return list(zip(texts, [*values, -1], strict=True))
