"""The processes of `torch.distributed`: sums and means over them, in few messages."""

from __future__ import annotations

import contextlib
import datetime
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import torch
import torch.distributed as distributed

from keras_trainops import keras_private
from keras_trainops.backends.grouping import grouped

WAITING: list[Callable[[], object]] = []  # functions to call before the next message
_BUCKET_BYTES = 5 << 20  # of one message: larger ones were slower on CPUs, smaller ones no faster


def place() -> tuple[int, int]:
    """Return the index of this process, and the number of processes."""
    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def refuse_shards(model: Any) -> None:
    """Raise a `NotImplementedError` if FSDP has taken the weights of a model or of its layers.

    FSDP puts other parameters into the modules, and Keras's variables keep the ones from before.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not distributed.is_initialized():
        return
    if not isinstance(model, torch.nn.Module):
        return
    classes = fsdp.FullyShardedDataParallel, getattr(fsdp, "FSDPModule", ())
    for module in [*model.modules(), *keras_private.all_layers(model)]:
        if isinstance(module, classes) or getattr(module, "_is_fsdp_managed_module", False):
            raise NotImplementedError(
                f"FSDP (`FullyShardedDataParallel`, `fully_shard`) shards the parameters of "
                f"{type(module).__name__!r}, and is not supported: Keras's variables do not follow "
                "them. Use `torch.distributed` alone or with `DistributedDataParallel`, in which "
                "each process holds all weights; or, for weights that need several devices, Keras "
                "on JAX with `keras.distribution.ModelParallel`."
            )


def gather(frame: np.ndarray) -> np.ndarray:
    """Gather through Gloo, in a group of its own, beside the traffic of a training step.

    Args:
        frame: `uint8` of shape (n,).

    Returns:
        The frames of all processes, of shape (number of processes, n).
    """
    _call_waiting()
    mine = torch.from_numpy(frame)
    frames = [torch.empty_like(mine) for _ in range(place()[1])]
    distributed.all_gather(frames, mine, group=_control_group())
    return torch.stack(frames).numpy()


def compare(number: int) -> Callable[[float], bool]:
    """Start to compare a number of each process. See `Replicas`."""
    _call_waiting()
    extremes = torch.tensor([number, -number])
    work = distributed.all_reduce(
        extremes, distributed.ReduceOp.MAX, group=_control_group(), async_op=True
    )

    def same(seconds: float) -> bool:
        _wait(work, seconds)
        greatest, least = extremes.tolist()
        return bool(greatest == -least)

    return same


def _wait(work: Any, seconds: float) -> None:
    """Wait in short periods, as Python handles signals in between."""
    began = time.monotonic()
    while True:
        try:
            work.wait(datetime.timedelta(seconds=min(1.0, seconds)))
        except RuntimeError:
            if work.is_completed() or time.monotonic() - began >= seconds:
                raise
        else:
            return


def _call_waiting() -> None:
    while WAITING:
        WAITING.pop()()


def broadcast(frame: np.ndarray) -> np.ndarray:
    """Return the frame of process 0."""
    _call_waiting()
    shared = torch.from_numpy(frame.copy())
    distributed.broadcast(shared, src=0, group=_control_group())
    return shared.numpy()


def means(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the means over all processes, the same on each of them.

    Args:
        tensors: Floating-point tensors, of the same shapes and dtypes on all processes. Those of
            16 bits are summed up in 32, where they do not overflow.
    """
    wide = [t.float() if t.element_size() < 4 else t for t in tensors]
    reduced = sums(wide, divisor=place()[1])
    return [new.to(old.dtype) for new, old in zip(reduced, tensors, strict=True)]


def sums(tensors: Sequence[torch.Tensor], divisor: int = 1) -> list[torch.Tensor]:
    """Return the sums over all processes, the same on each of them.

    Tensors travel together, in buckets: while one is on its way, the next one is filled.

    Args:
        tensors: Tensors of the same shapes and dtypes on all processes.
        divisor: A number to divide the sums by.
    """
    _call_waiting()
    found: list[Any] = [None] * len(tensors)
    sent = []
    for bucket in _buckets(tensors):
        flat = torch.cat([tensors[i].detach().reshape(-1) for i in bucket])
        with _within_a_step():
            sent.append((bucket, flat, distributed.all_reduce(flat, async_op=True)))
    for bucket, flat, work in sent:
        with _within_a_step():
            work.wait()
        if divisor > 1:
            flat /= divisor
        parts = flat.split([tensors[i].numel() for i in bucket])
        for i, part in zip(bucket, parts, strict=True):
            found[i] = part.reshape(tensors[i].shape)
    return found


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[int]]:
    """Group the indices of tensors of one dtype and device, up to the size of a message."""
    kinds: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        kinds.setdefault((tensor.dtype, tensor.device), []).append(i)
    for indices in kinds.values():
        yield from grouped(indices, lambda i: tensors[i].nbytes, _BUCKET_BYTES)


@contextlib.contextmanager
def _within_a_step() -> Iterator[None]:
    """Say who lost another process, which engines do not."""
    try:
        yield
    except RuntimeError as error:
        index, count = place()
        raise RuntimeError(
            f"Process {index} of {count} lost another process in the middle of a step. See the "
            f"output of that one for the reason. PyTorch: {error}"
        ) from error


def any_of(flags: torch.Tensor) -> torch.Tensor:
    """Return which flags are set on any process."""
    _call_waiting()
    votes = flags.detach().to(torch.int32)
    with _within_a_step():
        distributed.all_reduce(votes, distributed.ReduceOp.MAX)
    return votes > 0


def without_gaps(
    gradients: Sequence[Any], variables: Sequence[keras.Variable]
) -> list[torch.Tensor | None]:
    """Return zeros for a gradient that this process lacks and another one has.

    The vote does not touch the accelerator, so that it need not wait for the backward pass.

    Args:
        gradients: The gradients on this process, or None.
        variables: Their variables.
    """
    _call_waiting()
    votes = torch.tensor([g is not None for g in gradients], dtype=torch.int32)
    with _within_a_step():
        distributed.all_reduce(votes, distributed.ReduceOp.MAX, group=_control_group())
    return [
        torch.zeros_like(v.value) if g is None and vote else g
        for g, v, vote in zip(gradients, variables, votes.tolist(), strict=True)
    ]


def _control_group() -> Any:
    """Return a Gloo group of all processes; the first call must be made by all of them."""
    return _gloo_beside(distributed.group.WORLD)


@functools.lru_cache(maxsize=1)
def _gloo_beside(world: Any) -> Any:
    return distributed.new_group(backend="gloo")
