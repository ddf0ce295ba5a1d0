"""The processes of `tf.distribute.MultiWorkerMirroredStrategy`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf


def place(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Return the index of this process, and the number of processes.

    Args:
        strategy: Any strategy. All but `MultiWorkerMirroredStrategy` have one process; so has that
            one without a cluster, and in an evaluator.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 0, 1
    resolver: Any = strategy.cluster_resolver
    cluster = resolver.cluster_spec().as_dict()
    train = [(job, i) for job in ("chief", "worker") for i in range(len(cluster.get(job, [])))]
    me = (resolver.task_type, resolver.task_id)
    return (train.index(me), len(train)) if me in train else (0, 1)


def require_supported(strategy: tf.distribute.Strategy) -> None:
    """Raise a `NotImplementedError` for a strategy under which Keras 3 does not train."""
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        raise NotImplementedError(
            "`tf.distribute.ParameterServerStrategy` is not supported: Keras 3 does not train "
            "under it. Use `tf.distribute.MultiWorkerMirroredStrategy`, in which each process "
            "holds all weights; or, for weights that need several devices, Keras on JAX with "
            "`keras.distribution.ModelParallel`."
        )


def is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    """Return whether the strategy has several processes, for which Keras has code of its own."""
    return place(strategy)[1] > 1


def reducible(step: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a step: logs get an axis of replicas, over which Keras averages those of all workers.

    Args:
        step: A training step, or one of evaluation.
    """

    @functools.wraps(step)
    def run(*args: Any) -> Any:
        return tf.nest.map_structure(lambda log: tf.convert_to_tensor(log)[None], step(*args))

    return run


def gather(frame: np.ndarray, strategy: tf.distribute.Strategy) -> np.ndarray:
    """Return the frames of all processes, of shape (number of processes, n).

    Args:
        frame: `uint8` of shape (n,).
        strategy: The strategy of the processes.
    """
    _, count = place(strategy)
    # Collective operations have no unsigned bytes.
    gathered = _gather_function(strategy)(tf.constant(frame[None].astype("int32")))
    gathered = strategy.experimental_local_results(gathered)[0].numpy().astype("uint8")
    return gathered.reshape(count, -1, frame.size)[:, 0]  # each replica of a process has the same


def broadcast(frame: np.ndarray, strategy: tf.distribute.Strategy) -> np.ndarray:
    """Return the frame of process 0.

    Args:
        frame: `uint8` of shape (n,), n a multiple of 4.
        strategy: The strategy of the processes.
    """
    # Strategies have no broadcast; integers are summed exactly.
    words = tf.constant(frame.view("int32"))
    values = strategy.experimental_distribute_values_from_function(
        lambda context: words if context.replica_id_in_sync_group == 0 else tf.zeros_like(words)
    )
    return strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None).numpy().view("uint8")


@functools.lru_cache(maxsize=1)
def _gather_function(strategy: Any) -> Any:
    """Return a function that is traced once for each size: `strategy.gather` traces each call."""

    def of_replica(mine: Any) -> Any:
        here = tf.identity(mine)  # a tensor that is not on a device cannot be gathered
        return tf.distribute.get_replica_context().all_gather(here, axis=0)

    return tf.function(lambda mine: strategy.run(of_replica, (mine,)))
