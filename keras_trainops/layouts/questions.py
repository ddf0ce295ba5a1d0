"""Questions that only the user can answer, with each answer as code to paste."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from keras_trainops.adapt.base import Adapter, Chain, Shape
from keras_trainops.layouts.fused import halves_of, orders_of
from keras_trainops.layouts.kinds import Layout
from keras_trainops.layouts.orders import FusedOrder, HalvesOrder
from keras_trainops.layouts.reading import Convention, Reading

_FUSED: dict[FusedOrder, str] = {
    "blocks": "if all rows of one part come before those of the next",
    "per_head": "if each head has its own parts (BLOOM, GPT-NeoX)",
    "groups": "if each key and value follows the query heads that share it (Falcon 40B)",
}
_HALVES: dict[HalvesOrder, str] = {
    "gate_up": "if the gate comes first (Phi-3)",
    "up_gate": "if the gate comes last (Moonshine)",
    "even_odd": "if the rows alternate (GPT-OSS)",
}


def code_of(adapter: Adapter | Sequence[Adapter] | None) -> str:
    """Return an adapter, or the steps of a reading, as code.

    Example:
        >>> from keras_trainops.adapt.layout import Reshape, Transpose
        >>> code_of([Transpose(), Reshape()])
        '[kt.adapt.Transpose(), kt.adapt.Reshape()]'
        >>> code_of(None)
        'kt.adapt.Reshape()'
    """
    if isinstance(adapter, Adapter):
        adapter = adapter.adapters if isinstance(adapter, Chain) else [adapter]
    calls = [f"kt.adapt.{step!r}" for step in adapter or ()] or ["kt.adapt.Reshape()"]
    return calls[0] if len(calls) == 1 else f"[{', '.join(calls)}]"


def question_about_order(
    key: str,
    layouts: Sequence[Layout],
    shape: Shape,
    convention: Convention = "torch",
    index: int | None = None,
) -> str:
    """Return the question in which order a fused tensor has its parts.

    Args:
        key: The key of the tensor.
        layouts: Layouts of query, key and value.
        shape: Shape of the tensor.
        convention: The axis order of the tensor.
        index: Index of the only part to ask for. Default: all parts.

    Example:
        >>> from keras_trainops.layouts.kinds import Linear
        >>> parts = [Linear((4,), (1, 6))] * 3
        >>> question_about_order("qkv", parts, (18, 4), index=0).partition(": ")[2][:65]
        '`[kt.adapt.Split(0, 3), kt.adapt.Transpose(), kt.adapt.Reshape()]'
    """
    found = orders_of(layouts, shape, convention)
    part = slice(None) if index is None else slice(index, index + 1)
    entries = "your own entries to `adapt=`, one per part" if index is None else _OWN_ENTRY
    answers = [f"{_codes(readings[part])} {_FUSED[order]}" for order, readings in found.items()]
    return (
        f"{key!r} is a fused tensor, but its name does not reveal the order of its parts. Add "
        f"{entries}: {', '.join(answers)}"
    )


def question_about_halves(
    key: str, gate: Layout, up: Layout, shape: Shape, convention: Convention = "torch"
) -> str:
    """Return the question which half of a fused projection is the gate.

    Args:
        key: The key of the tensor.
        gate: Layout of the variable that gets the activation.
        up: Layout of the other one.
        shape: Shape of the tensor.
        convention: The axis order of the tensor.
    """
    answers = []
    for order, meaning in _HALVES.items():
        if both := halves_of(order, gate, up, shape, convention):
            answers.append(f"{_codes(both)} {meaning}")
    return (
        f"{key!r} holds a gate and another projection, but its name does not reveal their order. "
        f"Add your own entries to `adapt=`, for the gate and the other: {', '.join(answers)}"
    )


def question_about_readings(key: str, shape: Shape, readings: Sequence[Reading]) -> str:
    """Return the question which of several readings is meant.

    Args:
        key: The key of the tensor.
        shape: Shape of the tensor.
        readings: The readings of its layout.

    Example:
        >>> from keras_trainops.layouts.kinds import Parameter
        >>> question = question_about_readings("w", (4, 4), Parameter((4, 4)).readings((4, 4)))
        >>> question.partition(": ")[2]
        '`kt.adapt.Reshape()` or `kt.adapt.Transpose()`'
    """
    codes = " or ".join(f"`{code_of(found.steps)}`" for found in readings)
    return f"{key!r} of shape {shape} can be read in several ways. Add {_OWN_ENTRY}: {codes}"


def _codes(readings: Iterable[Reading]) -> str:
    return ", ".join(f"`{code_of(found.steps)}`" for found in readings)


_OWN_ENTRY = "your own entry to `adapt=`"
