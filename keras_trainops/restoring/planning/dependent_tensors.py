"""Tensors that change what the tensor beside them means, so that one without them is wrong.

The only place that knows them: scales of quantised kernels, the factors of LoRA, the parts of
parametrised weights. Whatever is to be done with unexpected keys, these are not left out silently.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.planning.report import folded


class _Kind(NamedTuple):
    """Siblings of one kind.

    Attributes:
        key: What their keys look like. The group `owner` is whose tensors they change, `base`, if
            there is such a group, which of them; without it all but biases.
        what: What they make of the tensor.
        remedy: What to do.
        integers: Whether the tensor must be one of integers, as the key alone says little.
    """

    key: re.Pattern[str]
    what: str
    remedy: str
    integers: bool = False


def _end(expression: str) -> re.Pattern[str]:
    return re.compile(rf"(?:(?P<owner>.*)[./])?(?:{expression})")


_QUANTISED = (
    "is quantised, and means nothing without",
    "Restore it into a model that is quantised the same way, or dequantise it first",
)
_LORA = (
    "has its LoRA delta beside it, which would be lost, in",
    "Merge the delta first, as Keras does when it saves (`model.save_weights`) and PEFT does with "
    "`merge_and_unload()`",
)
_PARTS = (
    "is only one part of a weight, with",
    "Compute the weight first, as PyTorch's `remove_parametrizations` does",
)
_KINDS = (
    _Kind(_end(r"(?P<base>\w+?)_(?:scale|scales|scale_inv|zero|zero_point)"), *_QUANTISED),
    _Kind(_end(r"(?P<base>\w+)[./](?:SCB|absmax|quant_map|nested_\w+|quant_state.*)"), *_QUANTISED),
    _Kind(_end(r"SCB|scales|zeros|qzeros|qweight|g_idx|awq_scales"), *_QUANTISED, True),
    _Kind(_end(r"lora_(?P<base>\w+)_[ab]"), *_LORA),
    _Kind(_end(r"lora_(?:embedding_)?[AB](?:[./].*)?|lora_magnitude_vector(?:[./].*)?"), *_LORA),
    _Kind(_end(r"(?P<base>\w+?)_(?:[guv]|orig|mask)"), *_PARTS),
    _Kind(_end(r"parametrizations[./].*"), *_PARTS),
)
_PART = re.compile(r"_(?:[guv]|orig)$")
_BIASES = ("bias", "beta")


def meaning_problems(
    assignments: Sequence[Assignment], unused: Iterable[str], checkpoint: Checkpoint
) -> tuple[list[str], list[str]]:
    """Why tensors must not be taken alone.

    Args:
        assignments: What is to be assigned.
        unused: Keys that lead nowhere and that no rule leaves out.
        checkpoint: The source.

    Returns:
        Lines for the report, and the paths that they are about.
    """
    by_owner: dict[str, list[tuple[str, Assignment]]] = defaultdict(list)
    for assignment in assignments:
        for key in assignment.keys:
            owner, leaf = _parted(key)
            by_owner[owner].append((leaf, assignment))
    found: dict[tuple[str, str], tuple[dict[str, None], dict[str, None]]] = {}
    known = set(checkpoint)
    for key in unused:
        for kind in _KINDS:
            paths = _changed(kind.key.fullmatch(key), kind.integers, by_owner, known, checkpoint)
            if paths:
                theirs, siblings = found.setdefault((kind.what, kind.remedy), ({}, {}))
                theirs.update(dict.fromkeys(paths))
                siblings[key] = None
                break
    lines = [
        f"! {folded([*paths])}: the tensor {what} {folded([*siblings])}. {remedy}; or leave "
        f"{'it' if len(siblings) == 1 else 'them'} out knowingly, with rename rules to None."
        for (what, remedy), (paths, siblings) in found.items()
    ]
    failing = list(dict.fromkeys(path for paths, _ in found.values() for path in paths))
    bare = [a for a in assignments if a.path not in failing and _is_quantised(a, checkpoint)]
    lines += [
        f"! {a.path}: {a.variable.dtype} in the model, {checkpoint.dtype(a.keys[0])} under key "
        f"{a.keys[0]!r}: integers of one byte are quantised weights. Say by `adapt=` what makes "
        "floats of them, as a function of the array."
        for a in bare
    ]
    return lines, failing + [a.path for a in bare]


def _parted(key: str) -> tuple[str, str]:
    """The owner of a tensor and its name there; PEFT's `base_layer` is the layer it wraps."""
    *owner, leaf = re.split(r"[./]", key)
    if "parametrizations" in owner:
        owner = owner[: owner.index("parametrizations")]
    if owner and owner[-1] == "base_layer":
        owner.pop()
    return "/".join(owner), leaf


def _changed(
    match: re.Match[str] | None,
    needs_integers: bool,
    by_owner: Mapping[str, list[tuple[str, Assignment]]],
    known: Collection[str],
    checkpoint: Checkpoint,
) -> list[str]:
    """The paths of variables whose tensors a sibling changes."""
    if match is None:
        return []
    owner = re.sub(r"[./]", "/", match["owner"] or "").removesuffix("/base_layer")
    base = match.groupdict().get("base")
    changed = []
    for leaf, assignment in by_owner.get(owner, ()):
        is_base = leaf not in _BIASES if base is None else _PART.sub("", leaf) == base
        if needs_integers:
            is_base = is_base and _is_integer(checkpoint.dtype(assignment.keys[0]))
        if is_base and not _is_float8(assignment, known, checkpoint):
            changed.append(assignment.path)
    return changed


def _is_float8(assignment: Assignment, known: Collection[str], checkpoint: Checkpoint) -> bool:
    """Whether scales are those of float8 training in Keras, which keeps the kernel as it is."""
    key = assignment.keys[0]
    return f"{key}_amax_history" in known and checkpoint.dtype(key).kind not in "iu"


def _is_quantised(assignment: Assignment, checkpoint: Checkpoint) -> bool:
    """Whether a float variable is to get bare integers of one byte out of a checkpoint.

    Of arrays that somebody put together integers are as good as floats.
    """
    one_byte = checkpoint.dtype(assignment.keys[0]).itemsize == 1
    return assignment.adapter is None and one_byte and is_packed(assignment, checkpoint)


def is_packed(assignment: Assignment, checkpoint: Checkpoint) -> bool:
    """Whether a float variable is to get integers out of a checkpoint: their shape says nothing."""
    wanted = np.dtype(assignment.variable.dtype)
    if isinstance(checkpoint, ArraysCheckpoint) or wanted.kind in "iub":
        return False
    return any(_is_integer(checkpoint.dtype(key)) for key in assignment.keys)


def _is_integer(dtype: np.dtype) -> bool:
    return "int" in dtype.name  # those of four bits are of no kind that NumPy knows
