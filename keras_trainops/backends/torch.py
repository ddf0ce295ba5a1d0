"""PyTorch, and every private use of Keras that only it needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import torch

from keras_trainops.backends.base import Backend, Gradient, NumericsCheck, StepFunction, T


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
        self, function: Callable[[], tuple[Any, T]], variables: Sequence[keras.Variable]
    ) -> tuple[Sequence[Gradient], T]:
        with torch.enable_grad():
            value, rest = function()
        weights = [v.value for v in variables]
        gradients = torch.autograd.grad(value, weights, allow_unused=True) if weights else ()
        return gradients, rest

    def no_gradients(self) -> AbstractContextManager[Any]:
        return torch.no_grad()

    def reported_loss(self, loss: Any) -> Any:
        """Detach the loss from the graph of its gradients."""
        return loss.detach()

    def host_view(self, variable: keras.Variable) -> np.ndarray:
        tensor = variable.value.detach().cpu()
        if tensor.dtype == torch.bfloat16:  # which NumPy lacks
            return keras.ops.convert_to_numpy(tensor)
        return tensor.numpy()

    def overwritten_memory(self, variables: Iterable[keras.Variable]) -> list[tuple[int, int]]:
        """Return the memory of parameters: PyTorch assigns them in place, other backends do not."""
        tensors = [variable.value for variable in variables]
        return sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if not t.is_meta)
