"""Adapters of PyTorch tensors that depend on the names and rows of the tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from keras_trainops.adapt.base import Adapter, Chain, Shape, chain_of
from keras_trainops.adapt.combination import Split
from keras_trainops.adapt.layout import ReshapeFrom, Transpose

# A recurrent layer has two tensors of each kind, one for the input and one for its own state.
_INPUT_OR_STATE = re.compile(r"(?<![A-Za-z0-9])(ih|hh)(?![A-Za-z0-9])")
# The `Conv1D` modules of GPT-2 store (inputs, outputs).
_GPT2 = re.compile(r"(?:.*[./])?(?:c_attn|c_proj|c_fc|q_attn)[./]weight")
_LEAVES = re.compile(
    r"weight|running_(mean|var)|in_proj_(weight|bias)|[qkv]_proj_weight"
    r"|(weight|bias)_[ih]h(_l\d+)?(_reverse)?"
)


def is_torch_key(key: str) -> bool:
    """Return True if a PyTorch layer may have named its tensor like this.

    Example:
        >>> is_torch_key("encoder.0.weight"), is_torch_key("encoder/kernel")
        (True, False)
    """
    leaf = re.split("[./]", key)[-1]
    return _LEAVES.fullmatch(leaf) is not None and ("." in key or leaf != "weight")


class FromTorch(Adapter):
    """An adapter from `from_torch`; the user's own adapters take precedence.

    Args:
        *steps: Adapters to apply in order. Without any, the tensor stays as it is.
    """

    yields_to_user_rules = True

    def __init__(self, *steps: Adapter) -> None:
        self.steps: tuple[Adapter, ...] = steps

    def for_keys(
        self, keys: Sequence[str], shapes: Sequence[Shape], target: Shape
    ) -> tuple[Sequence[str], Adapter | None]:
        return keys, chain_of(self.steps)

    def shape(self, shapes: Sequence[Shape], target: Shape) -> Shape | None:
        return Chain(*self.steps).shape(shapes, target) if self.steps else shapes[0]

    def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
        return Chain(*self.steps)(arrays, target) if self.steps else arrays[0]

    def __repr__(self) -> str:
        return repr(chain_of(self.steps)) if self.steps else "from_torch"


class LinearWeight(FromTorch):
    """Adapts the weight of a `Linear`, of shape (outputs, inputs)."""

    def for_keys(
        self, keys: Sequence[str], shapes: Sequence[Shape], target: Shape
    ) -> tuple[Sequence[str], Adapter | None]:
        for key, shape in zip(keys, shapes, strict=True):
            if _GPT2.fullmatch(key) and len(set(shape)) == 1:
                raise ValueError(
                    f"{key!r} may belong to GPT-2's `Conv1D`, which stores (inputs, outputs), or "
                    f"to a `Linear`, and {shape} fits both. Add your own entry to `adapt=`: "
                    "`kt.adapt.Reshape()` for `Conv1D`, `kt.adapt.Transpose()` for `Linear`"
                )
        return super().for_keys(keys, shapes, target)


class LinearProjection(LinearWeight):
    """Adapts the weight or bias of a `Linear` whose inputs or outputs are several axes in Keras.

    Args:
        inputs: Lengths of the input axes, in the order in which they are flattened; empty for a
            bias.
        outputs: Lengths of the output axes, in the order in which they are flattened.
        order: Order of these axes in the variable; the axes are numbered inputs first.
        index: Index of the part to take from a fused `in_proj_weight` or `in_proj_bias`; None if
            the projection is not part of a fused tensor.
    """

    def __init__(
        self, inputs: Shape, outputs: Shape, order: Sequence[int], index: int | None = None
    ) -> None:
        flat = [math.prod(axes) for axes in (inputs, outputs) if axes]
        steps: list[Adapter] = [Transpose()] if inputs else []
        if len(inputs) > 1 or len(outputs) > 1 or not inputs:
            steps.append(ReshapeFrom(flat, [*inputs, *outputs]))
        if [*order] != sorted(order):
            steps.append(Transpose(order))
        super().__init__(*steps)
        self.inputs: Shape = inputs
        self.outputs: Shape = outputs
        self.index = index

    def for_keys(
        self, keys: Sequence[str], shapes: Sequence[Shape], target: Shape
    ) -> tuple[Sequence[str], Adapter | None]:
        keys, adapter = super().for_keys(keys, shapes, target)
        leaf, rows = re.split("[./]", keys[0])[-1], math.prod(self.outputs)
        if len(keys) == 1 and self.index is not None and leaf in ("in_proj_weight", "in_proj_bias"):
            return keys, chain_of([Split(self.index, 3), *self.steps])
        if len(keys) == 1 and rows and shapes[0][:1] == (3 * rows,):
            raise ValueError(self._ambiguous_order(keys[0], rows))
        return keys, adapter

    def _ambiguous_order(self, key: str, rows: int) -> str:
        part = "…" if self.index is None else self.index
        heads, size = (self.outputs[0], rows // self.outputs[0])
        transposed, columns = ("kt.adapt.Transpose(), ", "-1, ") if self.inputs else ("", "")
        return (
            f"{key!r} has three times the {rows} rows of this projection, like a fused query, key "
            "and value, but its name does not reveal their order. Add your own entry to `adapt=`: "
            f"`[kt.adapt.Split({part}, 3), {transposed}kt.adapt.Reshape()]` if all rows of one "
            "part come before those of the next, "
            f"`[{transposed}kt.adapt.Reshape([{columns}{heads}, {3 * size}]), "
            f"kt.adapt.Split({part}, 3, axis=-1)]` if each head has its own three parts (BLOOM, "
            "GPT-NeoX)"
        )


class RecurrentBiases(FromTorch):
    """Adapts the two biases of a recurrent layer, the input bias first, whatever the rules' order.

    Args:
        *steps: Adapters to apply in order.
        ordered: If True, names that do not identify the two biases are an error; if False, any two
            names will do.
    """

    def __init__(self, *steps: Adapter, ordered: bool) -> None:
        super().__init__(*steps)
        self.ordered = ordered

    def for_keys(
        self, keys: Sequence[str], shapes: Sequence[Shape], target: Shape
    ) -> tuple[Sequence[str], Adapter | None]:
        if len(keys) > 1:
            parts = sorted((_INPUT_OR_STATE.split(key) for key in keys), key=_input_first)
            are_named = any(len(part) > 1 for part in parts)
            if (are_named or self.ordered or len(keys) > 2) and not _is_pair(parts):
                raise ValueError(
                    f"{' and '.join(map(repr, keys))} do not identify the input bias and the state "
                    "bias of one layer, as `bias_ih_l0` and `bias_hh_l0` do. Lead these two here, "
                    "or add your own entry to `adapt=`"
                )
            keys = ["".join(part) for part in parts]
        return keys, chain_of(self.steps)


def _input_first(parts: Sequence[str]) -> bool:
    return parts[-2:-1] == ["hh"]


def _is_pair(parts: Sequence[Sequence[str]]) -> bool:
    """Return True for `ih` and `hh`, in this order, in names that are otherwise equal."""
    if len(parts) != 2 or any(len(part) < 3 for part in parts):
        return False
    words = [part[-2] for part in parts]
    rests = [[*part[:-2], part[-1]] for part in parts]
    return words == ["ih", "hh"] and rests[0] == rests[1]


class UnknownLayout(FromTorch):
    """Takes tensors as they are for a layer without a known counterpart in PyTorch.

    Raises on a tensor of the variable's shape: its axes may have been exchanged unnoticed.

    Args:
        owner: The layer, in words.
    """

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.owner = owner

    def for_keys(
        self, keys: Sequence[str], shapes: Sequence[Shape], target: Shape
    ) -> tuple[Sequence[str], Adapter | None]:
        if list(shapes) == [target]:
            raise ValueError(
                f"`from_torch` does not know how PyTorch stores the weights of {self.owner}, and "
                "axes of equal length leave their order open. Add your own entry to `adapt=`: "
                "`kt.adapt.Reshape()` keeps the order, `kt.adapt.Transpose()` transposes the tensor"
            )
        return keys, None
