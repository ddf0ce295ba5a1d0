"""PyTorch, and every private use of Keras that only it needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import torch

from keras_trainops.backends.base import (
    Backend,
    Differentiable,
    Gradient,
    NumericsCheck,
    OfExample,
    StepFunction,
    T,
    split_sources,
)
from keras_trainops.trees import mapped


class Torch(Backend):
    """PyTorch in one process; it always runs eagerly."""

    trains = True
    takes_batches_early = True

    def require_one_process(self) -> None:
        """Raise if `torch.distributed` runs several processes: gradients would not be reduced."""
        distributed = torch.distributed
        if not distributed.is_available() or not distributed.is_initialized():
            return
        size = distributed.get_world_size()
        if size > 1:
            raise NotImplementedError(
                "Training with the mixin does not reduce gradients over the processes of "
                "`torch.distributed`, even if the model is wrapped in DistributedDataParallel: "
                f"each of the {size} processes would train its own model. Train in one process, "
                "without `torch.distributed.init_process_group`; for several, use the "
                f"TensorFlow or JAX backend. Received: world size {size}"
            )

    def needs_our_step(self, model: Any) -> bool:
        """Return True with `variables_to_train`: Keras's step computes all gradients."""
        return model.train_ops.arguments.get("variables_to_train") is not None

    def writes_at_once(self, model: Any) -> bool:
        """Return True: what would overwrite tensors that a gradient needs is collected anyway."""
        return True

    def runs_eagerly(self, model: Any) -> bool:
        return True

    def run_step(self, step: StepFunction, model: Any, *args: Any) -> Any:
        with torch.no_grad():
            return step(model, *args)

    def train_function(
        self, function: Callable[..., Any], model: Any, numerics: NumericsCheck | None
    ) -> Callable[..., Any]:
        """Raise after a step that found a value that is not finite."""
        if numerics is None:
            return function

        @functools.wraps(function)
        def checked(data: Any) -> Any:
            logs = function(data)
            numerics.raise_if_bad(keras.ops.convert_to_numpy)
            return logs

        return checked

    def trace(self, function: Callable[[], None]) -> None:
        """Run the function: PyTorch has no tracing."""
        with torch.no_grad():
            function()

    def conditionally(
        self,
        predicate: Any,
        then: Callable[..., Any],
        otherwise: Callable[..., Any],
        args: Sequence[Any],
        *,
        changes: Sequence[keras.Variable],
    ) -> None:
        (then if bool(predicate) else otherwise)(*args)

    def differentiate(
        self, function: Differentiable[T], sources: Sequence[Any], *, nested: bool, several: bool
    ) -> tuple[Sequence[Gradient], T]:
        with torch.enable_grad():
            now = [s.value if isinstance(s, keras.Variable) else s for s in sources]
            if nested or not all(map(_is_parameter, sources, now)):
                leaves = [_leaf(tensor) for tensor in now]
                value, rest = function(*split_sources(sources, leaves))
            else:  # no graph comes before them, so they keep their values
                leaves = now
                value, rest = function([], [])
            scalars = value.unbind() if several else [value]
            rows: list[Sequence[Gradient]] = []
            for scalar in scalars:
                row: Sequence[Gradient] = [None] * len(leaves)
                if leaves and scalar.requires_grad:  # otherwise it depends on none of them
                    row = torch.autograd.grad(
                        scalar,
                        leaves,
                        create_graph=nested,
                        retain_graph=nested or len(rows) + 1 < len(scalars),
                        allow_unused=True,
                    )
                rows.append(row)
        gradients = rows if several else rows[0]
        return gradients, rest if nested else mapped(_detached, rest)

    def differentiate_each(
        self,
        function: OfExample[T],
        variables: Sequence[keras.Variable],
        batch: Sequence[Any],
    ) -> tuple[Any, Sequence[Gradient], T, Any]:
        def of_values(values: Any, *example: Any) -> Any:
            return function(list(zip(variables, values, strict=True)), list(example))

        values = [v.value.detach() for v in variables]
        with torch.enable_grad():
            one = torch.func.grad_and_value(of_values, has_aux=True)
            each = torch.func.vmap(one, in_dims=(None, *[0] * len(batch)), randomness="same")
            gradients, (losses, (own, shared)) = each(values, *batch)
        return losses, list(gradients), own, mapped(lambda s: s[0], shared)

    def no_gradients(self) -> AbstractContextManager[Any]:
        return torch.no_grad()

    def host_view(self, variable: keras.Variable) -> np.ndarray:
        tensor = variable.value.detach().cpu()
        if tensor.dtype == torch.bfloat16:  # which NumPy lacks
            return keras.ops.convert_to_numpy(tensor)
        return tensor.numpy()

    def overwritten_memory(self, variables: Iterable[keras.Variable]) -> list[tuple[int, int]]:
        """Return the memory of parameters: PyTorch assigns them in place, other backends do not."""
        tensors = [variable.value for variable in variables]
        return sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if not t.is_meta)


def _is_parameter(source: Any, tensor: Any) -> bool:
    """Return whether a source is a variable whose tensor is a parameter."""
    return tensor.requires_grad and tensor.is_leaf and isinstance(source, keras.Variable)


def _leaf(tensor: Any) -> Any:
    """Return the tensor to differentiate by, for the tensor of a source.

    In a function that is differentiated, tensors of the outer one may depend on the source. It gets
    a node of its own, or the inner gradient would count their paths too.
    """
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


def _detached(tensor: Any) -> Any:
    return tensor.detach() if isinstance(tensor, torch.Tensor) else tensor
