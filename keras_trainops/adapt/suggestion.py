"""Which adapter would make tensors fit: a suggestion in an error, never done unasked."""

from __future__ import annotations

from collections.abc import Sequence

from keras_trainops.adapt.base import Adapter, Chain, Shape
from keras_trainops.adapt.channels import InputChannels
from keras_trainops.adapt.combination import Concat, Split, Stack, Sum
from keras_trainops.adapt.layout import Reshape, Transpose
from keras_trainops.adapt.places import Crop, Pad
from keras_trainops.adapt.positions import ResizePositions

# The likeliest first.
KINDS: tuple[type[Adapter], ...] = (
    InputChannels,
    ResizePositions,
    Split,
    Pad,
    Crop,
    Concat,
    Stack,
    Sum,
)


def suggest(
    shapes: Sequence[Shape], target: Shape, path: str, pattern: str, adapter: Adapter | None = None
) -> str:
    """What to write so that tensors of these shapes fit.

    Args:
        shapes: The shapes of the tensors, after the adapter if there is one.
        target: The shape of the variable.
        path: The path of the variable.
        pattern: A pattern that matches it alone.
        adapter: What there is already.

    Returns:
        An entry of `adapt`; or what is to stand behind `adapter`; empty where nothing is likely.

    Example:
        >>> suggest([(512, 1000)], (512, 10), "head/kernel", "head/kernel")
        'adapt={"head/kernel": kt.adapt.Crop(axis=1)}'
    """
    found = fitting(shapes, target, path)
    if found is None:
        return ""
    steps = found.adapters if isinstance(found, Chain) else [found]
    calls = [f"kt.adapt.{step!r}" for step in steps]
    if adapter is not None:
        return f"{', then '.join(calls)} behind it"
    value = calls[0] if len(calls) == 1 else f"[{', '.join(calls)}]"
    raw = "r" if "\\" in pattern else ""
    return f'adapt={{{raw}"{pattern}": {value}}}'


def fitting(shapes: Sequence[Shape], target: Shape, path: str) -> Adapter | None:
    """The likeliest adapter for tensors of these shapes, a chain of two if need be."""
    found = _first((Transpose, *KINDS), shapes, target, path)
    if found is not None:
        return found
    if len(shapes) == 1 and len(shapes[0]) == len(target):
        for order in Transpose.layouts(len(target)):
            behind = _first(KINDS, [order.shape(shapes, target)], target, path)
            if behind is not None:
                return Chain(order, behind)
    return Reshape.fitting(shapes, target, path)


def _first(
    kinds: Sequence[type[Adapter]], shapes: Sequence[Shape], target: Shape, path: str
) -> Adapter | None:
    found = (kind.fitting(shapes, target, path) for kind in kinds)
    return next((adapter for adapter in found if adapter is not None), None)
