"""`to_torch`: the weights of a model in a PyTorch module."""

from __future__ import annotations

import dataclasses
import itertools
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_trainops.adapt.base import Adapt
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.checkpoints.formats.torch import view_of
from keras_trainops.errors import RestoreError
from keras_trainops.paths import Patterns
from keras_trainops.restoring.naming.rules import Rename
from keras_trainops.restoring.planning.options import Options, Reaction
from keras_trainops.restoring.restore import Plans, as_plan
from keras_trainops.writing.inversion import Inversion, invert
from keras_trainops.writing.like import Like
from keras_trainops.writing.report import WriteReport

if TYPE_CHECKING:
    import torch


def to_torch(
    model: keras.Model,
    module: torch.nn.Module,
    *,
    rename: Rename = None,
    include: Patterns = None,
    exclude: Patterns = None,
    adapt: Adapt = None,
    report: Plans = None,
    on_missing: Reaction | None = None,
    on_unexpected: Reaction | None = None,
) -> WriteReport:
    """Copy the weights of `model` into a PyTorch module, in place: all of them, or none.

    The arguments are those of a `restore(model, module.state_dict(), ...)`, which this inverts.
    Parameters and buffers that lead to no variable keep their values.

    Args:
        model: A built Keras model, on any backend.
        module: The module, on any device.
        rename: Rules from key to variable path, as for `restore`.
        include: Patterns of the variables to copy; None for all.
        exclude: Patterns of the variables to leave out.
        adapt: Mapping from pattern to adapter, as for `restore`; their inverses are applied.
        report: The report of a restore, or the `WarmStart` that did it; see `write_back`.
        on_missing: Reaction to a selected variable that no key leads to; see `write_back`.
        on_unexpected: Reaction to a key that leads to no variable: "error", "warn" or "ignore"
            (default).

    Returns:
        A report of what was copied.

    Raises:
        RestoreError: If model and module do not fit, or a value does not fit into its dtype. The
            module was not changed.
        ValueError: If an argument has the wrong type or value, or the module's `state_dict` returns
            copies.

    Example:
        >>> import keras, torch, keras_trainops as kt
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")])
        >>> module = torch.nn.Linear(3, 2)
        >>> rename = {"weight": "head/kernel", "bias": "head/bias"}
        >>> report = kt.to_torch(model, module, rename=rename, adapt=kt.adapt.from_torch(model))
        >>> sorted(report.written)
        ['bias', 'weight']
    """
    state = _state_of(module)
    started = time.perf_counter()
    options = Options(
        rename, include, exclude, adapt, on_missing, plan=as_plan(report, "report")
    ).checked()
    like = Like(ArraysCheckpoint(state, f"module {type(module).__name__}"), None)
    inversion = invert(model, like, options, on_unexpected=on_unexpected)
    for line in inversion.warnings:
        warnings.warn(line, stacklevel=2)
    _check(inversion, state)
    _copy(inversion, state)
    tensors, planned = inversion.tensors, inversion.report
    return dataclasses.replace(
        planned,
        out=like.checkpoint.location,
        notes=(*planned.notes, *dict.fromkeys(tensors.notes)),
        seconds=time.perf_counter() - started,
        bytes=sum(map(tensors.nbytes, planned.written)),
    )


def _state_of(module: object) -> dict[str, Any]:
    import torch

    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"`module` must be a `torch.nn.Module`. Received: {module!r}")
    state, again = (
        {key: value for key, value in module.state_dict().items() if torch.is_tensor(value)}
        for _ in range(2)
    )
    for key, value in state.items():
        is_copy = value.data_ptr() != again[key].data_ptr()
        if is_copy or value.is_meta or any(n > 1 and not s for n, s in _axes(value)):
            raise ValueError(
                f"{key!r} cannot be changed in place: `state_dict()` returns a copy, or the tensor "
                "has no memory of its own. Pass `load_state_dict` what `write_back` has written."
            )
    return state


def _axes(tensor: Any) -> Iterator[tuple[int, int]]:
    """Return the length and the stride of each axis."""
    return zip(tensor.shape, tensor.stride(), strict=True)


def _check(inversion: Inversion, state: dict[str, Any]) -> None:
    """Make every tensor once, before the module is changed.

    Raises:
        RestoreError: If one cannot be made, or parameters that share memory get different values.
    """
    tensors = inversion.tensors
    written = list(inversion.report.written)
    problems: list[str] = []
    for key in written:
        for _ in tensors.pieces(key):
            pass
    for one, other in _overlapping(state, written):
        same = all(
            getattr(state[one], name)() == getattr(state[other], name)()
            for name in ("data_ptr", "size", "stride")
        )
        if not same or not np.array_equal(tensors[one], tensors[other], equal_nan=True):
            problems.append(f"{one} and {other} share memory, but would get different values")
    problems = [*dict.fromkeys(tensors.problems), *problems]
    if problems:
        lines = "\n".join(f"  ! {line}" for line in problems)
        raise RestoreError(
            f"Cannot copy into {inversion.report.like}:\n{lines}\nNothing was changed. Leave "
            "these variables out with `exclude=`."
        )


def _overlapping(state: Mapping[str, Any], keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of tensors that have elements at the same addresses, neighbours first."""
    with_memory = [key for key in keys if state[key].numel()]
    ordered = sorted(with_memory, key=lambda key: (str(state[key].device), _span(state[key])))
    for one, other in itertools.pairwise(ordered):
        same_device = state[one].device == state[other].device
        if same_device and _span(state[other])[0] < _span(state[one])[1]:
            yield one, other


def _span(tensor: Any) -> tuple[int, int]:
    """Return the addresses of the first byte, and of the one after the last."""
    steps = sum((length - 1) * stride for length, stride in _axes(tensor))
    return tensor.data_ptr(), tensor.data_ptr() + (steps + 1) * tensor.element_size()


def _copy(inversion: Inversion, state: dict[str, Any]) -> None:
    import torch

    for key in inversion.report.written:
        tensor = state[key]
        staged = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        np.copyto(view_of(staged), inversion.tensors[key])
        with torch.no_grad():
            tensor.copy_(staged)
