"""Whether the tensors of a layer fit those of another, and how they are converted."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from keras_trainops.adapt.base import Adapter, chain_of
from keras_trainops.layouts.kinds import Layout, RecurrentBias
from keras_trainops.layouts.reading import Convention, Reading
from keras_trainops.layouts.torch_adapters import is_torch_key
from keras_trainops.restoring.guessing.units import Tensor, Unit

# The modules named `Conv1D` in transformers store (inputs, outputs); other models have `Linear`
# modules of the same names.
_GPT2 = re.compile(r".*[./](?:c_attn|c_proj|c_fc|q_attn)[./]weight")
_GPT2_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"}


class Lead(NamedTuple):
    """The keys that lead to a variable, and the adapter of their tensors.

    Attributes:
        keys: One key, or several in the order in which the adapter takes them.
        path: The path of the variable.
        adapter: The adapter; None if the tensor stays as it is.
    """

    keys: tuple[str, ...]
    path: str
    adapter: Adapter | None = None


class _Lead(NamedTuple):
    """A lead between layers of two forms: the places of its tensors and its variable in them."""

    keys: Sequence[int]
    place: int
    adapter: Adapter | None

    def named(self, theirs: Unit, ours: Unit) -> Lead:
        keys = tuple(theirs.tensors[i].name for i in self.keys)
        return Lead(keys, ours.tensors[self.place].name, self.adapter)


class Fitting:
    """Compares layers by the shapes and layouts of their tensors.

    Args:
        layouts: The layout of each variable by path.
        keys: The shape of each tensor of the checkpoint.
        config: The configuration beside the checkpoint, if any.
    """

    def __init__(
        self,
        layouts: Mapping[str, Layout],
        keys: Mapping[str, tuple[int, ...]],
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.layouts = layouts
        self.config = config or {}
        self._conv1d: Convention | None = _convention_of_conv1d(keys, self.config)
        self._default: Convention = _usual_convention(keys, layouts.values())
        self._forms: dict[Unit, int] = {}
        self._form_of: dict[Hashable, int] = {}
        self._known: dict[tuple[int, int], list[_Lead] | None] = {}

    def convention(self, tensor: Tensor) -> Convention | None:
        """Return the order of a kernel's axes in the checkpoint; None if nothing tells it."""
        if _GPT2.fullmatch(tensor.name):
            return self._conv1d
        if not tensor.leaf:
            return None
        return self._default

    @property
    def is_torch(self) -> bool:
        """True if kernels of the checkpoint are (outputs, inputs, …)."""
        return self._default == "torch"

    def reading(self, tensor: Tensor, path: str) -> Reading | None:
        """Return how a tensor is read as a variable; None if it does not fit or may be read twice.

        Args:
            tensor: A tensor of the checkpoint.
            path: The path of the variable.
        """
        found = self.layouts[path].readings(tensor.shape)
        convention = self.convention(tensor)
        if convention is None:
            return found[0] if len({repr(each.steps) for each in found}) == 1 else None
        fitting = [each for each in found if each.convention in (None, convention)]
        return fitting[0] if fitting else None

    def their_form(self, unit: Unit) -> int:
        """Return the same number for all layers of the checkpoint that fit the same layers."""
        return self._form(
            unit, lambda: [(t.leaf, t.meaning, t.shape, self.convention(t)) for t in unit.tensors]
        )

    def our_form(self, unit: Unit) -> int:
        """Return the same number for all layers of the model that fit the same layers."""
        return self._form(unit, lambda: [(t.meaning, self.layouts[t.name]) for t in unit.tensors])

    def _form(self, unit: Unit, tensors: Callable[[], list[Hashable]]) -> int:
        if unit not in self._forms:
            self._forms[unit] = self._form_of.setdefault(tuple(tensors()), len(self._form_of))
        return self._forms[unit]

    def leads(self, theirs: Unit, ours: Unit) -> list[Lead] | None:
        """Return the leads from one layer to another, or None if they do not fit."""
        leads = self._leads_between(theirs, ours)
        return None if leads is None else [lead.named(theirs, ours) for lead in leads]

    def fits(self, theirs: Unit, ours: Unit) -> bool:
        """Return True if the tensors of a layer fit those of another."""
        return self._leads_between(theirs, ours) is not None

    def fits_wholly(self, theirs: Unit, ours: Unit) -> bool:
        """Return True if a layer fits, and has a tensor for each of the other layer's."""
        return len(self._leads_between(theirs, ours) or ()) == len(ours.tensors)

    def _leads_between(self, theirs: Unit, ours: Unit) -> list[_Lead] | None:
        known = self.their_form(theirs), self.our_form(ours)
        if known not in self._known:
            self._known[known] = self._leads(theirs, ours)
        return self._known[known]

    def _leads(self, theirs: Unit, ours: Unit) -> list[_Lead] | None:
        if theirs.is_batch_norm != ours.is_batch_norm:
            return None
        leads: list[_Lead] = []
        used: set[int] = set()
        for place, variable in enumerate(ours.tensors):
            found = [i for i, t in enumerate(theirs.tensors) if t.meaning == variable.meaning]
            lead = self._lead(theirs, found, variable) if found else None
            if lead is not None:
                keys, adapter = lead
                leads.append(_Lead(keys, place, adapter))
                used.update(found)
            elif found or not _may_be_missing(variable, ours):
                return None
        left = [t for i, t in enumerate(theirs.tensors) if i not in used]
        without_gamma = ours.is_batch_norm and {t.meaning for t in left} <= {"weight", "bias"}
        return leads if leads and (not left or without_gamma) else None

    def _lead(
        self, theirs: Unit, found: Sequence[int], variable: Tensor
    ) -> tuple[Sequence[int], Adapter | None] | None:
        tensors = [theirs.tensors[i] for i in found]
        if len(tensors) == 2 and variable.meaning == "bias":
            return self._recurrent_bias(tensors, found, variable)
        if len(tensors) != 1:
            return None
        reading = self.reading(tensors[0], variable.name)
        return None if reading is None else (found, reading.adapter)

    def _recurrent_bias(
        self, tensors: Sequence[Tensor], found: Sequence[int], variable: Tensor
    ) -> tuple[Sequence[int], Adapter | None] | None:
        first = [i for i, tensor in enumerate(tensors) if tensor.leaf.endswith("ih")]
        if len(first) != 1:
            return None
        layout = self.layouts[variable.name]
        adapter = chain_of(layout.torch_steps()) if isinstance(layout, RecurrentBias) else None
        shapes = [tensor.shape for tensor in tensors]
        if adapter is None or len(set(shapes)) > 1:
            return None
        if adapter.shape(shapes, variable.shape) != variable.shape:
            return None
        return [found[first[0]], found[1 - first[0]]], adapter


def _may_be_missing(variable: Tensor, ours: Unit) -> bool:
    """Return True if other libraries leave a tensor out: a bias, or the scale of a BatchNorm."""
    return variable.meaning == "bias" or (ours.is_batch_norm and variable.meaning == "weight")


def _convention_of_conv1d(
    keys: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> Convention | None:
    """Return the convention of modules that may be `Conv1D`, as their other shapes show it."""
    model_type = config.get("model_type")
    if model_type is not None:
        return "keras" if model_type in _GPT2_MODELS else "torch"
    witnesses = [shape for key, shape in keys.items() if re.search(r"c_(?:attn|fc)[./]weight", key)]
    kinds = {len(s) == 2 and (s[0] < s[1]) - (s[0] > s[1]) for s in witnesses}
    if kinds == {1}:
        return "keras"
    return "torch" if kinds == {-1} else None


def _usual_convention(keys: Mapping[str, tuple[int, ...]], layouts: Iterable[Layout]) -> Convention:
    """Return the convention that names show, or the other one if only that fits any kernel."""
    kernels = [layout for layout in layouts if layout.kind in ("linear", "convolution")]
    by_size: dict[int, list[Layout]] = {}
    for layout in {repr(layout): layout for layout in kernels}.values():
        by_size.setdefault(math.prod(layout.shape), []).append(layout)
    named: Convention = "torch" if any(map(is_torch_key, keys)) else "keras"
    fitting: set[Convention | None] = set()
    for shape in {shape for shape in keys.values() if len(shape) > 1 and len(set(shape)) > 1}:
        for layout in by_size.get(math.prod(shape), ()):
            fitting.update(each.convention for each in layout.readings(shape))
        if named in fitting:
            return named
    return ("keras" if named == "torch" else "torch") if fitting - {None} else named
