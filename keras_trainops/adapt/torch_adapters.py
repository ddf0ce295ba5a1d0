"""What becomes of a PyTorch tensor, where its name and its rows have a say in it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from keras_trainops.adapt.base import Adapter, Chain, Shape, in_turn
from keras_trainops.adapt.combination import Split
from keras_trainops.adapt.layout import Refold, Transpose

# The two tensors of each kind that a recurrent layer has, for the input and for its own state.
_INPUT_OR_STATE = re.compile(r"(?<![A-Za-z0-9])(ih|hh)(?![A-Za-z0-9])")
# Modules of GPT-2 called `Conv1D`, which have (inputs, outputs).
_GPT2 = re.compile(r"(?:.*[./])?(?:c_attn|c_proj|c_fc|q_attn)[./]weight")
_LEAVES = re.compile(
    r"weight|running_(mean|var)|in_proj_(weight|bias)|[qkv]_proj_weight"
    r"|(weight|bias)_[ih]h(_l\d+)?(_reverse)?"
)


def is_torch_key(key: str) -> bool:
    """Whether a key is one that PyTorch's layers give their tensors.

    Example:
        >>> is_torch_key("encoder.0.weight"), is_torch_key("encoder/kernel")
        (True, False)
    """
    leaf = re.split("[./]", key)[-1]
    return _LEAVES.fullmatch(leaf) is not None and ("." in key or leaf != "weight")


class FromTorch(Adapter):
    """An adapter of `from_torch`, which gives way to the user's own.

    Args:
        steps: What is done one after the other; nothing if there are none.
    """

    gives_way = True

    def __init__(self, *steps: Adapter) -> None:
        self.steps: tuple[Adapter, ...] = steps

    def for_keys(
        self, keys: Sequence[str], shapes: Sequence[Shape], target: Shape
    ) -> tuple[Sequence[str], Adapter | None]:
        return keys, in_turn(self.steps)

    def shape(self, shapes: Sequence[Shape], target: Shape) -> Shape | None:
        return Chain(*self.steps).shape(shapes, target) if self.steps else shapes[0]

    def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
        return Chain(*self.steps)(arrays, target) if self.steps else arrays[0]

    def __repr__(self) -> str:
        return repr(in_turn(self.steps)) if self.steps else "from_torch"


class Kernel(FromTorch):
    """For the weight of a `Linear`, which is (outputs, inputs)."""

    def for_keys(
        self, keys: Sequence[str], shapes: Sequence[Shape], target: Shape
    ) -> tuple[Sequence[str], Adapter | None]:
        for key, shape in zip(keys, shapes, strict=True):
            if _GPT2.fullmatch(key) and len(set(shape)) == 1:
                raise ValueError(
                    f"{key!r} may be of GPT-2's `Conv1D`, which has (inputs, outputs), or of a "
                    f"`Linear`, and {shape} fits both. Say it in an entry of `adapt=` of your own: "
                    "`kt.adapt.Reshape()` for the first, `kt.adapt.Transpose()` for a `Linear`"
                )
        return super().for_keys(keys, shapes, target)


class Projection(Kernel):
    """For the weight or bias of a `Linear` whose inputs or outputs are several axes in Keras.

    Args:
        inputs: The axes of the inputs in the order in which they are flattened; empty for a bias.
        outputs: The same for the outputs.
        order: The order of these axes, inputs first, in the variable.
        index: Which part of a fused `in_proj_weight` or `in_proj_bias` it is; None: of none.
    """

    def __init__(
        self, inputs: Shape, outputs: Shape, order: Sequence[int], index: int | None = None
    ) -> None:
        flat = [math.prod(axes) for axes in (inputs, outputs) if axes]
        steps: list[Adapter] = [Transpose()] if inputs else []
        if len(inputs) > 1 or len(outputs) > 1 or not inputs:
            steps.append(Refold(flat, [*inputs, *outputs]))
        if [*order] != sorted(order):
            steps.append(Transpose(order))
        super().__init__(*steps)
        self.inputs, self.outputs, self.index = inputs, outputs, index

    def for_keys(
        self, keys: Sequence[str], shapes: Sequence[Shape], target: Shape
    ) -> tuple[Sequence[str], Adapter | None]:
        keys, adapter = super().for_keys(keys, shapes, target)
        leaf, rows = re.split("[./]", keys[0])[-1], math.prod(self.outputs)
        if len(keys) == 1 and self.index is not None and leaf in ("in_proj_weight", "in_proj_bias"):
            return keys, in_turn([Split(self.index, 3), *self.steps])
        if len(keys) == 1 and rows and shapes[0][:1] == (3 * rows,):
            raise ValueError(self._which_order(keys[0], rows))
        return keys, adapter

    def _which_order(self, key: str, rows: int) -> str:
        part = "…" if self.index is None else self.index
        heads, size = (self.outputs[0], rows // self.outputs[0])
        transposed, columns = ("kt.adapt.Transpose(), ", "-1, ") if self.inputs else ("", "")
        return (
            f"{key!r} has three times the {rows} rows of this projection, as query, key and value "
            "in one tensor have, and its name does not tell in which order they are. Say it in an "
            f"entry of `adapt=` of your own: `[kt.adapt.Split({part}, 3), {transposed}"
            "kt.adapt.Reshape()]` where all rows of one come before those of the next, "
            f"`[{transposed}kt.adapt.Reshape([{columns}{heads}, {3 * size}]), "
            f"kt.adapt.Split({part}, 3, axis=-1)]` where each head has its own three (BLOOM, "
            "GPT-NeoX)"
        )


class Biases(FromTorch):
    """For the two biases of a recurrent layer: that of the input first, whatever the rules say.

    Args:
        steps: What is done with them.
        ordered: Whether it matters which is which.
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
                    f"{' and '.join(map(repr, keys))} do not tell which is the bias of the input "
                    "and which that of the state of one layer, as `bias_ih_l0` and `bias_hh_l0` "
                    "do. Lead these two here, or write an entry of `adapt=` of your own"
                )
            keys = ["".join(part) for part in parts]
        return keys, in_turn(self.steps)


def _input_first(parts: Sequence[str]) -> bool:
    return parts[-2:-1] == ["hh"]


def _is_pair(parts: Sequence[Sequence[str]]) -> bool:
    """Whether they are `ih` and `hh`, in this order, and the same but for that."""
    if len(parts) != 2 or any(len(part) < 3 for part in parts):
        return False
    words = [part[-2] for part in parts]
    rests = [[*part[:-2], part[-1]] for part in parts]
    return words == ["ih", "hh"] and rests[0] == rests[1]


class Unknown(FromTorch):
    """For a variable of a layer whose counterpart in PyTorch is not known.

    It is taken as it is, unless axes could be exchanged and nobody would notice.
    """

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.owner = owner

    def for_keys(
        self, keys: Sequence[str], shapes: Sequence[Shape], target: Shape
    ) -> tuple[Sequence[str], Adapter | None]:
        if list(shapes) == [target]:
            raise ValueError(
                f"`from_torch` does not know how PyTorch keeps what {self.owner} has, and axes of "
                "one length do not tell. Say it in an entry of `adapt=` of your own: "
                "`kt.adapt.Reshape()` takes it as it is, `kt.adapt.Transpose()` transposes it"
            )
        return keys, None
