"""Tensors that are wrong without other tensors stored beside them.

This is the only module that knows them: scales of quantised kernels, factors of LoRA, parts of
parametrised weights. They are never left out silently, whatever the reaction to unexpected keys.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.planning.table import folded


class _Reason(NamedTuple):
    """The reason why a tensor is wrong alone, as part of a sentence, and the remedy."""

    problem: str
    remedy: str


class _Kind(NamedTuple):
    """A kind of tensors that change the meaning of another tensor.

    Attributes:
        key: Matches their keys. The group `owner` is the layer. The group `base`, if there is one,
            is the tensor of that layer whose meaning changes; otherwise all but biases change.
        reason: The reason why the other tensor is wrong alone.
        integers: If True, only integer tensors change, because the key alone says little.
    """

    key: re.Pattern[str]
    reason: _Reason
    integers: bool = False


def _end(expression: str) -> re.Pattern[str]:
    return re.compile(rf"(?:(?P<owner>.*)[./])?(?:{expression})")


_QUANTISED = _Reason(
    "is quantised, and useless without",
    "Restore it into a model that is quantised the same way, or dequantise it first",
)
_LORA = _Reason(
    "has a LoRA delta beside it that would be lost, in",
    "Merge the delta first, as Keras does when it saves (`model.save_weights`) and PEFT does with "
    "`merge_and_unload()`",
)
_PARTS = _Reason(
    "is only one part of a weight, together with",
    "Compute the weight first, as PyTorch's `remove_parametrizations` does",
)
_KINDS = (
    _Kind(_end(r"(?P<base>\w+?)_(?:scale|scales|scale_inv|zero|zero_point)"), _QUANTISED),
    _Kind(_end(r"(?P<base>\w+)[./](?:SCB|absmax|quant_map|nested_\w+|quant_state.*)"), _QUANTISED),
    _Kind(_end(r"SCB|scales|zeros|qzeros|qweight|g_idx|awq_scales"), _QUANTISED, integers=True),
    _Kind(_end(r"lora_(?P<base>\w+)_[ab]"), _LORA),
    _Kind(_end(r"lora_(?:embedding_)?[AB](?:[./].*)?|lora_magnitude_vector(?:[./].*)?"), _LORA),
    _Kind(_end(r"(?P<base>\w+?)_(?:[guv]|orig|mask)"), _PARTS),
    _Kind(_end(r"parametrizations[./].*"), _PARTS),
)
_PART = re.compile(r"_(?:[guv]|orig)$")
_BIASES = ("bias", "beta")


@dataclass
class _Incomplete:
    """Variables whose tensors are wrong alone, and the keys that they need, both in order."""

    paths: dict[str, None] = field(default_factory=dict)
    keys: dict[str, None] = field(default_factory=dict)


def dependent_tensor_problems(
    assignments: Sequence[Assignment], unused: Iterable[str], checkpoint: Checkpoint
) -> tuple[list[str], list[str]]:
    """Find tensors that must not be assigned alone.

    Args:
        assignments: The planned assignments.
        unused: Keys that lead to no variable and that no rule leaves out.
        checkpoint: The source.

    Returns:
        Lines for the report, and the paths of the variables that they are about.
    """
    tensors = _AssignedTensors(assignments, checkpoint)
    found: dict[_Reason, _Incomplete] = {}
    for key in unused:
        reason, paths = tensors.changed_by(key)
        if reason is not None:
            incomplete = found.setdefault(reason, _Incomplete())
            incomplete.paths.update(dict.fromkeys(paths))
            incomplete.keys[key] = None
    lines = [_line(reason, incomplete) for reason, incomplete in found.items()]
    failing = list(dict.fromkeys(itertools.chain.from_iterable(i.paths for i in found.values())))
    bare = [a for a in assignments if a.path not in failing and _is_quantised(a, checkpoint)]
    lines += [_line_about_integers(assignment, checkpoint) for assignment in bare]
    return lines, failing + [assignment.path for assignment in bare]


def _line(reason: _Reason, incomplete: _Incomplete) -> str:
    them = "it" if len(incomplete.keys) == 1 else "them"
    return (
        f"! {folded([*incomplete.paths])}: the tensor {reason.problem} "
        f"{folded([*incomplete.keys])}. {reason.remedy}; or leave {them} out deliberately, with "
        "rename rules to None."
    )


def _line_about_integers(assignment: Assignment, checkpoint: Checkpoint) -> str:
    key = assignment.keys[0]
    return (
        f"! {assignment.path}: {assignment.variable.dtype} in the model, {checkpoint.dtype(key)} "
        f"under key {key!r}: integers of one byte are quantised weights. Pass a function of the "
        "array that converts them to floats in `adapt=`."
    )


class _AssignedTensors:
    """The tensors that are to be assigned, by the layer that owns them in the checkpoint."""

    def __init__(self, assignments: Sequence[Assignment], checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._by_owner: dict[str, list[tuple[str, Assignment]]] = defaultdict(list)
        for assignment in assignments:
            for key in assignment.keys:
                owner, leaf = _owner_and_leaf(key)
                self._by_owner[owner].append((leaf, assignment))

    def changed_by(self, key: str) -> tuple[_Reason | None, list[str]]:
        """Return the paths of variables whose tensors `key` changes, and the reason."""
        for kind in _KINDS:
            match = kind.key.fullmatch(key)
            paths = [] if match is None else self._changed(match, kind.integers)
            if paths:
                return kind.reason, paths
        return None, []

    def _changed(self, match: re.Match[str], needs_integers: bool) -> list[str]:
        owner = re.sub(r"[./]", "/", match["owner"] or "").removesuffix("/base_layer")
        base = match.groupdict().get("base")
        changed = []
        for leaf, assignment in self._by_owner.get(owner, ()):
            is_base = leaf not in _BIASES if base is None else _PART.sub("", leaf) == base
            if needs_integers:
                is_base = is_base and _is_integer(self._checkpoint.dtype(assignment.keys[0]))
            if is_base and not _is_float8(assignment, self._checkpoint):
                changed.append(assignment.path)
        return changed


def _owner_and_leaf(key: str) -> tuple[str, str]:
    """Split a key into the layer and the tensor; PEFT's `base_layer` is the layer it wraps."""
    *owner, leaf = re.split(r"[./]", key)
    if "parametrizations" in owner:
        owner = owner[: owner.index("parametrizations")]
    if owner and owner[-1] == "base_layer":
        owner.pop()
    return "/".join(owner), leaf


def _is_float8(assignment: Assignment, checkpoint: Checkpoint) -> bool:
    """Return True if scales belong to float8 training in Keras, which keeps the kernel unscaled."""
    key = assignment.keys[0]
    return f"{key}_amax_history" in checkpoint and checkpoint.dtype(key).kind not in "iu"


def _is_quantised(assignment: Assignment, checkpoint: Checkpoint) -> bool:
    """Return True if a float variable would get integers of one byte from a checkpoint."""
    one_byte = checkpoint.dtype(assignment.keys[0]).itemsize == 1
    return assignment.adapter is None and one_byte and gets_integers(assignment, checkpoint)


def gets_integers(assignment: Assignment, checkpoint: Checkpoint) -> bool:
    """Return True if a float variable would get integers from a checkpoint.

    They may be packed, so their shape means nothing. Integers in a mapping of arrays are
    plain numbers and do not count.
    """
    wanted = np.dtype(assignment.variable.dtype)
    if isinstance(checkpoint, ArraysCheckpoint) or wanted.kind in "iub":
        return False
    return any(_is_integer(checkpoint.dtype(key)) for key in assignment.keys)


def _is_integer(dtype: np.dtype) -> bool:
    return "int" in dtype.name  # not `dtype.kind`: NumPy has no kind for integers of four bits
