"""Low-rank updates as an adapter of the library PEFT."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_trainops.adapt.base import steps_of
from keras_trainops.adapt.layout import Reshape, Transpose
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats import safetensors
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.errors import RestoreError
from keras_trainops.layouts.kinds import Linear
from keras_trainops.layouts.layers import layouts_of
from keras_trainops.restoring.configuration import config_beside
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.planning.table import folded
from keras_trainops.writing.gathering import ModelValues
from keras_trainops.writing.inversion import Inversion
from keras_trainops.writing.lora import LowRank
from keras_trainops.writing.report import WriteReport

_PREFIX = "base_model.model."


class _Update(NamedTuple):
    """A low-rank update of one module.

    Attributes:
        module: The name of the module in the source.
        layer: The layer.
        tensors: The two matrices, by the end of their names.
        is_transposed: True for `Conv1D` of GPT-2, which stores (inputs, outputs); None if the
            question does not arise.
    """

    module: str
    layer: LowRank
    tensors: dict[str, np.ndarray]
    is_transposed: bool | None


class PeftAdapter:
    """An adapter with the low-rank updates of a model.

    Modules without an update whose weights have changed are stored whole, as `modules_to_save`.

    Args:
        model: The model.
        inversion: The tensors of the whole model.
        like: The source, with values.

    Attributes:
        tensors: The tensors of the adapter.
        report: The report about them.

    Raises:
        RestoreError: If there is no update, or PEFT cannot represent one.
    """

    def __init__(self, model: keras.Model, inversion: Inversion, like: Checkpoint) -> None:
        updates = _updates(model, inversion)
        saved = _changed_modules(inversion, like, {update.module for update in updates})
        modules = {key.rpartition(".")[0] for key in like}
        _refuse_ambiguous(saved, modules)
        self._config = _config(updates, saved, modules, like.location)
        arrays: dict[str, Any] = {}
        written: dict[str, str] = {}
        for update in updates:
            for name, array in update.tensors.items():
                key = f"{_PREFIX}{update.module}.{name}"
                arrays[key], written[key] = array, f"{update.layer.layer.path}/{_matrix(name)}"
        for key, path in inversion.report.written.items():
            if key.rpartition(".")[0] in saved:
                arrays[f"{_PREFIX}{key}"] = inversion.tensors[key]
                written[f"{_PREFIX}{key}"] = path
        self.tensors: Checkpoint = ArraysCheckpoint(arrays)
        self.report = WriteReport(
            model=inversion.report.model,
            like=inversion.report.like,
            written=written,
            missing=inversion.report.missing,
            notes=(f"modules_to_save: {folded(saved)}",) if saved else (),
            bytes=sum(map(self.tensors.nbytes, arrays)),
        )

    def write(
        self,
        path: Path,
        checkpoint: Checkpoint,
        keys: Mapping[str, str],
        progress: Callable[[int], None] = lambda nbytes: None,
    ) -> None:
        """Write the directory that PEFT loads; a `Writer`."""
        path.mkdir()
        text = json.dumps(self._config, indent=2, sort_keys=True)
        (path / "adapter_config.json").write_text(f"{text}\n", encoding="utf-8")
        safetensors.write(path / "adapter_model.safetensors", checkpoint, keys, progress)


def _matrix(name: str) -> str:
    return "a" if "_A" in name else "b"


def _updates(model: keras.Model, inversion: Inversion) -> list[_Update]:
    if not inversion.low_rank:
        raise RestoreError(
            f"The model {model.name!r} has no low-rank updates: no layer called `enable_lora`. "
            'Write its weights with `lora="merge"`.'
        )
    layouts = layouts_of(model)
    by_kernel = {id(each.variable): each for each in inversion.assignments}
    found: list[_Update] = []
    problems: list[str] = []
    for layer in inversion.low_rank:
        try:
            assignment = by_kernel.get(id(layer.kernel))
            layout = layouts.get(id(layer.kernel))
            found.append(_update(layer, assignment, layout, inversion.values))
            value = inversion.values.of(layer.kernel)
            if assignment and inversion.tensors.unchanged(assignment, value) is None:
                raise ValueError("its kernel has changed beside the update")
        except ValueError as error:
            problems.append(f"  ! {layer.layer.path}: {error}")
    if len({update.is_transposed for update in found} - {None}) > 1:
        problems.append(
            "  ! some modules are stored as (inputs, outputs), as in GPT-2, and some not"
        )
    if problems:
        raise RestoreError(
            f"PEFT cannot represent the updates of {model.name!r}:\n"
            + "\n".join(problems)
            + '\nNothing was written. Write merged weights with `lora="merge"`.'
        )
    return found


def _update(
    layer: LowRank, assignment: Assignment | None, layout: object, values: ModelValues
) -> _Update:
    """Return the update of a layer.

    Raises:
        ValueError: If the layer has no module of its own in the source, or another module than a
            linear one, an embedding or a convolution.
    """
    if assignment is None or len(assignment.keys) > 1:
        raise ValueError("its kernel is not one tensor of the source")
    module, _, leaf = assignment.keys[0].rpartition(".")
    steps = steps_of(assignment.adapter)
    if leaf != "weight" or any(not isinstance(step, (Transpose, Reshape)) for step in steps):
        raise ValueError(f"its kernel is not the weight of a module, but {assignment.keys[0]!r}")
    a, b = values.of(layer.a), values.of(layer.b)
    if layer.merged == "embeddings":
        tensors = {"lora_embedding_A": a.T, "lora_embedding_B": b.T}
        return _Update(module, layer, tensors, None)
    if isinstance(layout, Linear):
        is_last = layout.order == tuple(range(len(layout.order)))
        if not is_last or math.prod(layout.outputs) != b.shape[-1]:
            raise ValueError("the update of several heads is no product of two matrices")
        tensors = {"lora_A.weight": a.reshape(-1, layer.rank).T, "lora_B.weight": b.T}
        transposed = any(isinstance(step, Transpose) for step in steps)
        return _Update(module, layer, tensors, not transposed)
    rank = a.ndim
    if not isinstance(layer.layer, (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)):
        raise ValueError(f"{type(layer.layer).__name__} is not known to PEFT")
    if layer.layer.groups > 1:
        raise ValueError("the matrices of a convolution with groups have other shapes in PEFT")
    axes = [rank - 1, rank - 2, *range(rank - 2)]
    window = (1,) * (rank - 2)
    tensors = {
        "lora_A.weight": a.transpose(axes),
        "lora_B.weight": b.reshape(layer.rank, -1).T.reshape(-1, layer.rank, *window),
    }
    return _Update(module, layer, tensors, False)


def _changed_modules(inversion: Inversion, like: Checkpoint, updated: set[str]) -> list[str]:
    """Return the modules without an update whose weights are not those of the source.

    Raises:
        RestoreError: If other weights of a module with an update have changed, such as its bias.
    """
    changed: dict[str, None] = {}
    for key in inversion.report.written:
        module, _, leaf = key.rpartition(".")
        if module in updated and leaf == "weight":
            continue
        pieces = zip(inversion.tensors.pieces(key), like.pieces(key), strict=True)
        if all(np.array_equal(ours, theirs, equal_nan=True) for ours, theirs in pieces):
            continue
        if module in updated or not module:
            raise RestoreError(
                f"{key!r} has changed, but PEFT stores only the low-rank update of its module. "
                'Nothing was written. Write merged weights with `lora="merge"`.'
            )
        changed[module] = None
    return list(changed)


def _refuse_ambiguous(saved: Sequence[str], modules: Collection[str]) -> None:
    """Raise if PEFT would take other modules for those that are stored whole.

    It finds them by the end of their names, and cannot store a module without the ones inside.
    """
    for name in saved:
        others = [m for m in modules if m.endswith(f".{name}") or m.startswith(f"{name}.")]
        if others:
            raise RestoreError(
                f"The module {name!r} has changed, but PEFT cannot store it without {others[0]!r}. "
                'Nothing was written. Write merged weights with `lora="merge"`.'
            )


def _config(
    updates: Sequence[_Update], saved: Sequence[str], modules: Collection[str], location: str
) -> dict[str, Any]:
    names = [update.module for update in updates]
    ranks = {update.module: update.layer.rank for update in updates}
    alphas = {update.module: update.layer.alpha for update in updates}
    rank, alpha = _most_common(ranks), _most_common(alphas)
    base = (config_beside(location) or {}).get("_name_or_path") or location
    # PEFT finds the names of a list at the end of names, and matches a text as a whole.
    is_ambiguous = any(m.endswith(f".{name}") for m in modules for name in names)
    expression = "|".join(map(re.escape, names))

    def pattern(module: str) -> str:
        return f"^{re.escape(module)}" if is_ambiguous else module

    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(update.is_transposed for update in updates),
        "target_modules": f"(?:{expression})" if is_ambiguous else names,
        "modules_to_save": list(saved) or None,
        "rank_pattern": {pattern(m): r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {pattern(m): a for m, a in alphas.items() if a != alpha},
    }


def _most_common(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]
