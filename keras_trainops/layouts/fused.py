"""Tensors that hold several variables, and variables that hold several tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from keras_trainops.adapt.axes import with_length
from keras_trainops.adapt.base import Adapter, Shape
from keras_trainops.adapt.combination import Split, Stack
from keras_trainops.adapt.layout import Reshape, Transpose
from keras_trainops.layouts.kinds import Layout, Linear, Parameter, Vector
from keras_trainops.layouts.orders import FusedOrder, HalvesOrder, fused_order, halves_order
from keras_trainops.layouts.reading import Convention, Reading, reading, transpose

__all__ = [
    "FusedOrder",
    "HalvesOrder",
    "fused_order",
    "halves_of",
    "halves_order",
    "only_order",
    "orders_of",
    "parts_of",
    "stacked",
    "stacked_halves",
]


def parts_of(
    order: FusedOrder,
    layouts: Sequence[Layout],
    shape: Shape,
    convention: Convention,
    heads: int | None = None,
) -> list[Reading] | None:
    """Return how to take each part out of a fused query, key and value.

    Args:
        order: The order of the parts; see `FusedOrder`.
        layouts: Layouts of the kernels, or of the biases, in the order query, key, value. A fused
            key and value has two.
        shape: Shape of the tensor.
        convention: The axis order of the tensor.
        heads: Number of heads, if the variables do not have an axis of heads.

    Returns:
        A reading per layout; None if the tensor does not fit.

    Example:
        Three heads of size 2 for the query share one for key and value:

        >>> query, key = Linear((4,), (3, 2)), Linear((4,), (1, 2))
        >>> for part in parts_of("blocks", [query, key, key], (10, 4), "torch"):
        ...     print(part.steps)
        (Split(0, [6, 2, 2]), Transpose(), Reshape())
        (Split(1, [6, 2, 2]), Transpose(), Reshape())
        (Split(2, [6, 2, 2]), Transpose(), Reshape())
    """
    if order == "blocks":
        axis = 0 if convention == "torch" else len(shape) - 1
        return _blocks(layouts, shape, convention, axis)
    return _interleaved(layouts, shape, convention, heads, in_groups=order == "groups")


def orders_of(
    layouts: Sequence[Layout], shape: Shape, convention: Convention
) -> dict[FusedOrder, list[Reading]]:
    """Return the readings of all parts in each order that a fused tensor of this shape may have.

    Orders that mean the same here are listed once, such as all of them for a single head.

    Args:
        layouts: Layouts of query, key and value.
        shape: Shape of the tensor.
        convention: The axis order of the tensor.

    Example:
        >>> several, single = Linear((4,), (3, 2)), Linear((4,), (1, 2))
        >>> list(orders_of([several] * 3, (18, 4), "torch"))
        ['blocks', 'per_head']
        >>> list(orders_of([several, single, single], (10, 4), "torch"))
        ['blocks']
    """
    counts = {_heads_of(layout, None)[0] for layout in layouts}
    orders: list[FusedOrder] = ["blocks"]
    if counts and min(counts) > 1:
        orders.append("per_head" if len(counts) == 1 else "groups")
    found: dict[FusedOrder, list[Reading]] = {}
    for order in orders:
        if readings := parts_of(order, layouts, shape, convention):
            found[order] = readings
    return found


def only_order(
    layouts: Sequence[Layout], shape: Shape, convention: Convention
) -> FusedOrder | None:
    """Return the order of a fused tensor if its shape leaves no other; see `orders_of`."""
    are_known = all(_heads_of(layout, None)[0] for layout in layouts)
    found = orders_of(layouts, shape, convention)
    return next(iter(found)) if are_known and len(found) == 1 else None


def _blocks(
    layouts: Sequence[Layout], shape: Shape, convention: Convention, axis: int
) -> list[Reading] | None:
    """Return the readings of parts that follow each other along an axis.

    Args:
        layouts: Layouts of the parts.
        shape: Shape of the tensor.
        convention: The axis order of the tensor.
        axis: The axis.
    """
    sizes = [_outputs(layout) for layout in layouts]
    if not 0 <= axis < len(shape) or shape[axis] != sum(sizes):
        return None
    found = []
    for index, layout in enumerate(layouts):
        part = with_length(shape, axis, sizes[index])
        rest = _first_of(layout.readings(part), convention)
        if rest is None:
            return None
        found.append(Reading(rest.convention, (_split(index, sizes, axis), *rest.steps)))
    return found


def _outputs(layout: Layout) -> int:
    if isinstance(layout, Linear):
        return layout.rows
    return layout.shape[-1] if isinstance(layout, Parameter) else math.prod(layout.shape)


def _first_of(readings: Iterable[Reading], convention: Convention) -> Reading | None:
    """Return the reading of a convention, or else the one that suits both."""
    by_convention = {found.convention: found for found in reversed([*readings])}
    return by_convention.get(convention, by_convention.get(None))


def _split(index: int, sizes: Sequence[int], axis: int) -> Split:
    return Split(index, len(sizes) if len(set(sizes)) == 1 else sizes, axis)


def _interleaved(
    layouts: Sequence[Layout],
    shape: Shape,
    convention: Convention,
    heads: int | None,
    *,
    in_groups: bool,
) -> list[Reading] | None:
    """Return the readings of parts that alternate from head to head, or from group to group."""
    axes = [_heads_of(layout, heads) for layout in layouts]
    counts = [count for count, _ in axes]
    groups = min(counts)
    if not groups or any(count % groups for count in counts):
        return None
    if not in_groups and len(set(counts)) > 1:
        return None
    sizes = [count // groups * size for count, size in axes]
    parts = [
        _part(layout, index, sizes, groups, shape, convention)
        for index, layout in enumerate(layouts)
    ]
    return _all_or_none(parts)


def _all_or_none(readings: Sequence[Reading | None]) -> list[Reading] | None:
    found = [new for new in readings if new is not None]
    return found if len(found) == len(readings) else None


def _heads_of(layout: Layout, heads: int | None) -> tuple[int, int]:
    """Return the number of heads of a projection and their size; zeros if it has no such axes."""
    axes = layout.outputs if isinstance(layout, Linear) else layout.shape
    if len(axes) == 1 and heads and axes[0] % heads == 0:
        return heads, axes[0] // heads
    return (axes[0], axes[1]) if len(axes) == 2 and not isinstance(layout, Parameter) else (0, 0)


def _part(
    layout: Layout,
    index: int,
    sizes: Sequence[int],
    groups: int,
    shape: Shape,
    convention: Convention,
) -> Reading | None:
    """Return the reading of one part of each group.

    Args:
        layout: Layout of the part.
        index: Index of the part.
        sizes: The number of rows of each part in a group.
        groups: Number of groups.
        shape: Shape of the tensor.
        convention: The axis order of the tensor.
    """
    rows, split = groups * sum(sizes), _split(index, sizes, -1)
    if isinstance(layout, Linear):
        given = (layout.columns, rows)
        if shape != (given[::-1] if convention == "torch" else given):
            return None
        first: list[Adapter] = [Transpose()] if convention == "torch" else []
        steps = [*first, Reshape([-1, groups, sum(sizes)]), split, *layout.from_matrix()]
        return reading(convention, steps, shape, layout.shape)
    if shape != (rows,):
        return None
    steps = [Reshape([groups, sum(sizes)]), split, Reshape(layout.shape)]
    return reading(None, steps, shape, layout.shape)


def halves_of(
    order: HalvesOrder, gate: Layout, up: Layout, shape: Shape, convention: Convention
) -> list[Reading] | None:
    """Return how to take the gate and the other half out of a fused feed-forward projection.

    Args:
        order: The order of the halves; see `HalvesOrder`.
        gate: Layout of the kernel, bias, or stack of experts that gets the activation.
        up: Layout of the other one.
        shape: Shape of the tensor.
        convention: The axis order of the tensor.

    Returns:
        The readings of `gate` and `up`; None if the tensor does not fit.

    Example:
        >>> half = Linear((4,), (6,))
        >>> gate, up = halves_of("up_gate", half, half, (12, 4), "torch")
        >>> gate.steps
        (Split(1, 2), Transpose())
    """
    if order == "even_odd":
        found = [_alternate(half, i, shape, convention) for i, half in enumerate((gate, up))]
        return _all_or_none(found)
    halves = [gate, up] if order == "gate_up" else [up, gate]
    axes = range(len(shape)) if convention == "torch" else [len(shape) - 1]
    every = (_blocks(halves, shape, convention, axis) for axis in axes)
    readings = next((found for found in every if found is not None), [])
    return (readings if order == "gate_up" else readings[::-1]) or None


def _alternate(layout: Layout, index: int, shape: Shape, convention: Convention) -> Reading | None:
    """Return the reading of every second row."""
    half, first = _outputs(layout), list[Adapter]()
    lead = (layout.columns,) if isinstance(layout, Linear) else layout.shape[:-1]
    lead = () if isinstance(layout, Vector) else lead
    outputs_last = shape
    if convention == "torch" and len(shape) > 1 and (*shape[:-2], shape[-1]) == lead:
        axes = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        first, outputs_last = [transpose(axes)], (*lead, shape[-2])
    elif convention == "torch" and isinstance(layout, Linear):
        return None
    if outputs_last != (*lead, 2 * half):
        return None
    rest = layout.from_matrix() if isinstance(layout, Linear) else [Reshape(layout.shape)]
    steps = [*first, Reshape([*lead, half, 2]), Split(index, 2, axis=-1), *rest]
    return reading(convention, steps, shape, layout.shape)


def stacked(layout: Layout, shape: Shape, count: int) -> tuple[Reading, ...]:
    """Return the readings of equal tensors, such as one per expert, as one variable.

    Args:
        layout: Layout of the variable.
        shape: Shape of each tensor.
        count: Number of tensors. They come in the order of their numbers.

    Example:
        >>> [found.steps for found in stacked(Parameter((8, 4, 6)), (6, 4), 8)]
        [(Stack(), Transpose([0, 2, 1]))]
    """
    whole = (count, *shape)
    if len(whole) != len(layout.shape):
        return ()
    return tuple(
        Reading(
            "keras" if len(shape) > 1 and not found.steps else found.convention,
            (Stack(), *found.steps),
        )
        for found in layout.readings(whole)
    )


def stacked_halves(
    order: HalvesOrder, layout: Layout, shape: Shape, count: int
) -> tuple[Reading, ...]:
    """Return the readings of all gates, then all up projections, as one fused variable.

    Args:
        order: The order of the halves in the variable; "up_gate" has no reading.
        layout: Layout of the variable, of shape (experts, inputs, 2 · outputs).
        shape: Shape of each tensor.
        count: Number of experts; there are twice as many tensors.

    Example:
        >>> [found.steps for found in stacked_halves("gate_up", Parameter((8, 4, 12)), (6, 4), 8)]
        [(Stack(), Reshape([2, 8, 6, 4]), Transpose([1, 3, 0, 2]), Reshape())]
    """
    experts, *given = layout.shape
    if experts != count or len(shape) != 2 or len(given) != 2 or order == "up_gate":
        return ()
    found = []
    conventions: tuple[Convention, ...] = ("torch", "keras")
    for convention in conventions:
        rows, columns = (2, 3) if convention == "torch" else (3, 2)  # axes after the first reshape
        inputs, outputs = shape[columns - 2], shape[rows - 2]
        if given != [inputs, 2 * outputs]:
            continue
        axes = [1, columns, rows, 0] if order == "even_odd" else [1, columns, 0, rows]
        steps = [Reshape([2, count, *shape]), Transpose(axes), Reshape()]
        found.append(Reading(convention, (Stack(), *steps)))
    return tuple(found)
