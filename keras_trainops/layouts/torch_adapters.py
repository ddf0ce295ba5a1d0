"""Adapters of PyTorch's tensors; the names and shapes of the tensors decide what they do."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from keras_trainops.adapt.base import Adapter, Shape, chain_of
from keras_trainops.layouts.fused import only_order, orders_of, stacked
from keras_trainops.layouts.kinds import Layout, Parameter, RecurrentBias, Table, Vector
from keras_trainops.layouts.orders import fused_order
from keras_trainops.layouts.questions import (
    question_about_order,
    question_about_readings,
)
from keras_trainops.layouts.reading import Convention, Reading

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
        layout: Layout of the variable.
        owner: The layer of the variable, in words.
        fusible: Layouts of the variables that may be fused with this one, itself included, in the
            order query, key, value.
        index: Index of this variable in `fusible`; None if it is unknown.
    """

    yields_to_user_rules = True

    def __init__(
        self,
        layout: Layout,
        owner: str,
        fusible: Sequence[Layout] = (),
        index: int | None = None,
    ) -> None:
        self.layout = layout
        self.owner = owner
        self.fusible: tuple[Layout, ...] = tuple(fusible)
        self.index = index

    @property
    def has_torch_layout(self) -> bool:
        """False if the tensor is taken as it is."""
        return not isinstance(self.layout, (Parameter, Table))

    def for_keys(
        self, keys: Sequence[str], shapes: Sequence[Shape], target: Shape
    ) -> tuple[Sequence[str], Adapter | None]:
        if isinstance(self.layout, RecurrentBias):
            return _as_pair(keys, self.layout.is_pair), self._usual()
        if len(keys) > 1:
            return keys, self._stack(shapes) or self._usual()
        return keys, chain_of(self._steps(keys[0], tuple(shapes[0])))

    def _usual(self) -> Adapter | None:
        return chain_of([*self.layout.torch_steps()])

    def _stack(self, shapes: Sequence[Shape]) -> Adapter | None:
        """Return the adapter for one tensor per expert, or None."""
        is_stack = isinstance(self.layout, Parameter) and len(self.layout.shape) == 3
        if not is_stack or len(set(shapes)) > 1:
            return None
        readings = _in_torch(stacked(self.layout, shapes[0], len(shapes)))
        return readings[0].adapter if readings else None

    def _steps(self, key: str, shape: Shape) -> Sequence[Adapter]:
        """Return the adapters of one tensor.

        Raises:
            ValueError: If neither name nor shape tells which; the message asks the user.
        """
        self._require_known(shape)
        readings = self._readings(key, shape)
        if len(readings) > 1:
            raise ValueError(question_about_readings(key, shape, readings))
        if readings:
            return readings[0].steps
        return self._part(key, shape) or self.layout.torch_steps()

    def _readings(self, key: str, shape: Shape) -> list[Reading]:
        every = self.layout.readings(shape)
        if not _GPT2.fullmatch(key) or len(shape) != 2:
            return _in_torch(every)
        if len(every) > 1:
            raise ValueError(
                f"{key!r} may belong to GPT-2's `Conv1D`, which stores (inputs, outputs), or "
                f"to a `Linear`, and {shape} fits both. Add your own entry to `adapt=`: "
                "`kt.adapt.Reshape()` for `Conv1D`, `kt.adapt.Transpose()` for `Linear`"
            )
        return [*every]

    def _require_known(self, shape: Shape) -> None:
        is_unknown = isinstance(self.layout, Parameter)
        if is_unknown and shape == self.layout.shape and axes_may_be_swapped(shape):
            raise ValueError(
                f"`from_torch` does not know how PyTorch stores the weights of {self.owner}, and "
                "axes of equal length leave their order open. Add your own entry to `adapt=`: "
                "`kt.adapt.Reshape()` keeps the order, `kt.adapt.Transpose()` transposes the tensor"
            )

    def _part(self, key: str, shape: Shape) -> Sequence[Adapter]:
        """Return the adapters of this part of a fused tensor; none if it is not fused.

        Raises:
            ValueError: If the name does not tell the order of the parts.
        """
        conventions: list[Convention] = ["torch", "keras"] if _GPT2.fullmatch(key) else ["torch"]
        for convention in conventions:
            found = orders_of(self.fusible, shape, convention)
            is_bias = isinstance(self.layout, Vector)  # the same in both conventions
            order = fused_order(key, convention=None if is_bias else convention)
            if order not in found:
                order = only_order(self.fusible, shape, convention)
            if found and (order is None or self.index is None):
                question = question_about_order(key, self.fusible, shape, convention, self.index)
                raise ValueError(question)
            if order is not None and self.index is not None:
                return found[order][self.index].steps
        return ()

    def shape(self, shapes: Sequence[Shape], target: Shape) -> Shape | None:
        usual = self._usual()
        return usual.shape(shapes, target) if usual else shapes[0]

    def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
        usual = self._usual()
        return usual(arrays, target) if usual else arrays[0]

    def __repr__(self) -> str:
        return repr(self._usual() or "from_torch").strip("'")


def _in_torch(readings: Sequence[Reading]) -> list[Reading]:
    """Return the readings of tensors of PyTorch."""
    return [found for found in readings if found.convention in ("torch", None)]


def axes_may_be_swapped(shape: Sequence[int]) -> bool:
    """Return True if two axes have equal length, so a tensor fits in several axis orders."""
    lengths = [length for length in shape if length != 1]
    return len(set(lengths)) < len(lengths)


def _as_pair(keys: Sequence[str], is_pair: bool) -> Sequence[str]:
    """Return the keys of the two biases of a recurrent layer, that of the inputs first.

    Args:
        keys: The keys that lead to the bias, in the order of the rules.
        is_pair: If True, names that do not identify the two biases are an error; if False, any two
            names will do.

    Raises:
        ValueError: If the names are those of other tensors.
    """
    if len(keys) < 2:
        return keys
    parts = sorted((_INPUT_OR_STATE.split(key) for key in keys), key=_input_first)
    are_named = any(len(part) > 1 for part in parts)
    if (are_named or is_pair or len(keys) > 2) and not _is_pair(parts):
        raise ValueError(
            f"{' and '.join(map(repr, keys))} do not identify the input bias and the state bias of "
            "one layer, as `bias_ih_l0` and `bias_hh_l0` do. Lead these two here, or add your own "
            "entry to `adapt=`"
        )
    return ["".join(part) for part in parts]


def _input_first(parts: Sequence[str]) -> bool:
    return parts[-2:-1] == ["hh"]


def _is_pair(parts: Sequence[Sequence[str]]) -> bool:
    """Return True for `ih` and `hh`, in this order, in names that are otherwise equal."""
    if len(parts) != 2 or any(len(part) < 3 for part in parts):
        return False
    words = [part[-2] for part in parts]
    rests = [[*part[:-2], part[-1]] for part in parts]
    return words == ["ih", "hh"] and rests[0] == rests[1]
