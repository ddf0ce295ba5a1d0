"""PyTorch, and every private use of Keras that only it needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras
import numpy as np
import torch

from keras_trainops import keras_private
from keras_trainops.backends import torch_processes
from keras_trainops.backends.base import Backend
from keras_trainops.backends.finite import finite_on_all_replicas
from keras_trainops.backends.types import (
    Differentiable,
    Gradient,
    GradientChain,
    NumericsCheck,
    OfExample,
    StepFunction,
    T,
    split_sources,
)
from keras_trainops.trees import mapped


class Torch(Backend):
    """PyTorch in one or several processes of `torch.distributed`; it always runs eagerly.

    The processes add nothing up on their own: the mixin reduces gradients, votes, what layers
    assign and metrics, whether the model is in a `DistributedDataParallel` or not. That one makes
    gradients the same on all processes, and a mean of equal gradients changes nothing.
    """

    trains = True
    takes_batches_early = True
    replicas_add_up = False

    def needs_our_step(self, model: Any) -> bool:
        """Return whether Keras's step would do too much or too little.

        It computes all gradients, also with `variables_to_train`. In several processes it would let
        the values that layers assign to non-trainable weights differ.
        """
        chosen = model.train_ops.arguments.get("variables_to_train") is not None
        return chosen or (_are_several() and bool(model.non_trainable_weights))

    def writes_at_once(self, model: Any) -> bool:
        """Return whether processes need not agree on what layers assign.

        What would overwrite tensors that a gradient needs is collected anyway.
        """
        return not _are_several()

    def runs_eagerly(self, model: Any) -> bool:
        return True

    def run_step(self, step: StepFunction, model: Any, *args: Any) -> Any:
        with torch.no_grad():
            return step(model, *args)

    def train_function(
        self, function: Callable[..., Any], model: Any, numerics: NumericsCheck | None
    ) -> Callable[..., Any]:
        """Have processes agree on overflows; raise after a step with a value that is not finite."""

        @functools.wraps(function)
        def run(data: Any) -> Any:
            with finite_on_all_replicas(self, model) if _are_several() else nullcontext():
                logs = function(data)
            if numerics is not None:
                numerics.raise_if_bad(keras.ops.convert_to_numpy)
            return logs

        return run

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

    def must_transform(self, optimizer: keras.optimizers.Optimizer) -> bool:
        """Return True in several processes: nothing else reduces the gradients."""
        return _are_several()

    def prepare_gradients(
        self,
        gradients: Sequence[Gradient],
        variables: Sequence[keras.Variable],
        optimizer: keras.optimizers.Optimizer,
    ) -> list[Gradient]:
        if _are_several():
            return torch_processes.without_gaps(gradients, variables)
        return list(gradients)

    def reduce_and_transform(
        self,
        gradients: Sequence[Gradient],
        variables: Sequence[keras.Variable],
        chain: GradientChain,
    ) -> list[Gradient]:
        if _are_several():
            present = iter(torch_processes.means([g for g in gradients if g is not None]))
            gradients = [None if g is None else next(present) for g in gradients]
        return super().reduce_and_transform(gradients, variables, chain)

    def any_over_replicas(self, flags: Any) -> Any:
        return torch_processes.any_of(flags) if _are_several() else flags

    def mean_over_replicas(self, values: Sequence[Any]) -> Sequence[Any]:
        if not _are_several():
            return values
        means = iter(torch_processes.means([v for v in values if v.is_floating_point()]))
        return [next(means) if v.is_floating_point() else v for v in values]

    def state_beside_variables(self, model: Any) -> list[torch.Tensor]:
        """Return buffers of PyTorch's own modules, such as the statistics of its batch norms."""
        found = {id(b): b for layer in keras_private.all_layers(model) for b in layer.buffers()}
        return [buffer for buffer in found.values() if buffer.is_floating_point()]

    @contextmanager
    def averaging_changes(self, state: Sequence[Any]) -> Iterator[None]:
        copies = [buffer.clone() for buffer in state]  # batch norms do not count versions
        yield
        if not state:
            return
        pairs = zip(state, copies, strict=True)
        flags = torch.tensor([not torch.equal(*pair) for pair in pairs])
        votes = torch_processes.any_of(flags).tolist()
        changed = [buffer for buffer, vote in zip(state, votes, strict=True) if vote]
        with torch.no_grad():
            for buffer, mean in zip(changed, torch_processes.means(changed), strict=True):
                buffer.copy_(mean)

    def keeps_processes_apart(self) -> bool:
        return _are_several()

    def sum_over_processes(self, values: Sequence[Any]) -> Sequence[Any]:
        return torch_processes.sums(values)

    def require_supported_engine(self, model: Any) -> None:
        torch_processes.refuse_shards(model)

    def samples_of_all(self, count: int) -> int:
        return count * torch_processes.place()[1]

    def place_among_processes(self, model: Any) -> tuple[int, int]:
        return torch_processes.place()

    def gather(self, frame: np.ndarray, model: Any) -> np.ndarray:
        return torch_processes.gather(frame)

    def compare(self, number: int) -> Callable[[float], bool]:
        return torch_processes.compare(number)

    def before_next_message(self, function: Callable[[], object]) -> None:
        torch_processes.WAITING.append(function)

    def broadcast(self, frame: np.ndarray, model: Any) -> np.ndarray:
        return torch_processes.broadcast(frame)

    def host_view(self, variable: keras.Variable) -> np.ndarray:
        tensor = variable.value.detach().cpu()
        if tensor.dtype == torch.bfloat16:  # which NumPy lacks
            return keras.ops.convert_to_numpy(tensor)
        return tensor.numpy()

    def empty_tensor(
        self, shape: tuple[int, ...], dtype: np.dtype
    ) -> tuple[Any, np.ndarray] | None:
        """Return a tensor, which PyTorch copies once; Keras would copy an array before."""
        try:
            tensor = torch.empty(shape, dtype=getattr(torch, dtype.name), device="cpu")
            return tensor, tensor.numpy()
        except (AttributeError, TypeError):  # a dtype that NumPy or PyTorch lacks
            return None

    def is_in_host_memory(self, variable: keras.Variable) -> bool:
        return variable.value.device.type == "cpu"

    def overwritten_memory(self, variables: Iterable[keras.Variable]) -> list[tuple[int, int]]:
        """Return the memory of parameters: PyTorch assigns them in place, other backends do not."""
        tensors = [variable.value for variable in variables]
        return sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if not t.is_meta)


def _are_several() -> bool:
    return torch_processes.place()[1] > 1


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
