"""Reduce over replicas and processes, each of which has a part of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import numpy as np


class Replicas:
    """The replicas and the processes of a run. The default methods assume one of each.

    Attributes:
        replicas_add_up: Whether gradients and metrics of a batch are the sums of those of replicas.
            Otherwise processes average gradients, and have the same metrics.
        processes_share_arrays: Whether all processes of a run have parts of common arrays, instead
            of variables of their own.
        frame_bytes: Bytes that each process sends when they talk; longer documents need a second
            message.
    """

    replicas_add_up: bool = True
    processes_share_arrays: bool = False
    frame_bytes: int = 4096

    def must_transform(self, optimizer: keras.optimizers.Optimizer) -> bool:
        """Return whether an optimizer needs a `TransformedOptimizer` even without any transform.

        It needs one where only `reduce_and_transform` reduces gradients over replicas.

        Args:
            optimizer: The innermost optimizer.
        """
        return False

    def replicas(self) -> int:
        """Return the number of replicas whose gradients are added up, as TensorFlow does.

        Losses are divided by it. The processes of PyTorch do not count: their gradients are
        averaged.
        """
        return 1

    def any_over_replicas(self, flags: Any) -> Any:
        """Return which boolean flags are set on any replica."""
        return flags

    def mean_over_replicas(self, values: Sequence[Any]) -> Sequence[Any]:
        """Return the means over replicas of floating-point values; others as they are."""
        return values

    def state_beside_variables(self, model: Any) -> Sequence[Any]:
        """Return the floating-point state of a model that is in no Keras variable."""
        return []

    def averaging_changes(self, state: Sequence[Any]) -> AbstractContextManager[None]:
        """Surround a step, and average what it changes over processes that are kept apart.

        Constants stay as they are, bit by bit.

        Args:
            state: From `state_beside_variables`, on every process.
        """
        return nullcontext()

    def keeps_processes_apart(self) -> bool:
        """Return whether each process has variables of its own, which the engine never compares."""
        return False

    def sum_over_processes(self, values: Sequence[Any]) -> Sequence[Any]:
        """Return the sums of tensors over processes that are kept apart."""
        return values

    def parts_of(self, variable: keras.Variable) -> list[Any]:
        """Return a variable's part on each replica of a strategy, or the variable itself on one."""
        return [variable]

    def require_supported_engine(self, model: Any) -> None:
        """Check that the weights of a model are where Keras sees them.

        Raises:
            NotImplementedError: If the engine that distributes the model is not supported; the
                message names it, and what to use instead.
        """

    def require_same_strategy(self, model: Any, variables: Sequence[keras.Variable]) -> None:
        """Check that variables were created under the strategy of a model.

        Raises:
            ValueError: If one was not.
        """

    def require_distribution(self) -> None:
        """Check that several processes train one model together.

        Raises:
            ValueError: If each would train a model of its own.
        """

    def divides(self, dataset: Any, model: Any) -> bool:
        """Return whether the engine gives each process its part of the same `tf.data.Dataset`.

        Args:
            dataset: The dataset, as each process has made it.
            model: The model.
        """
        return False

    def samples_of_all(self, count: int) -> int:
        """Return how many samples the batches of all processes have together.

        Args:
            count: The number of samples that each process passes to `fit`.
        """
        return count

    def place_among_processes(self, model: Any) -> tuple[int, int]:
        """Return the index of this process, and the number of processes of the run.

        Args:
            model: The model that they train, or None.
        """
        return 0, 1

    def gather(self, frame: np.ndarray, model: Any) -> np.ndarray:
        """Return the frames of all processes, in their order; all of them must call it.

        Args:
            frame: Bytes, `uint8` of shape (n,), with the same n on every process.
            model: The model that they train, or None.

        Returns:
            An array of shape (number of processes, n).
        """
        return frame[None]

    def compare(self, number: int) -> Callable[[float], bool]:
        """Start to compare a number with those of processes that are kept apart.

        Args:
            number: A number of at most 32 bits.

        Returns:
            Waits for so many seconds, and returns whether all have the same number. It raises a
            RuntimeError if another process has ended, or does not come in time.
        """
        return lambda seconds: True

    def before_next_message(self, function: Callable[[], object]) -> None:
        """Call a function once, before this process talks again to those it is kept apart from."""

    def broadcast(self, frame: np.ndarray, model: Any) -> np.ndarray:
        """Return the frame of process 0; all processes must call it.

        Args:
            frame: Bytes, `uint8` of shape (n,), with the same n, a multiple of 4, on every process.
            model: The model that they train, or None.
        """
        return frame
