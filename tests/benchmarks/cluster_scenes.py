"""What the processes of `cluster.py` do."""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.processes.launch import free_ports
from tests.processes.member import Place


def gather_seconds(place: Place) -> dict[str, Any]:
    """The seconds of an agreement, as the session makes it between steps."""
    import keras

    from keras_trainops.processes import Processes

    with place.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    processes, seconds = Processes(model), []
    for step in range(40):
        began = time.perf_counter()
        processes.gather([f"step {step}", 1, False, False, False], "to measure")
        seconds.append(time.perf_counter() - began)
    return {"seconds": np.array(seconds[10:])}


def sharded(place: Place) -> dict[str, Any]:
    """Train in a session with weights in parts, to a save or from one; count what that takes."""
    import jax
    import keras

    import keras_trainops as kt
    from keras_trainops.backends import backend

    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((1, len(devices)), ["batch", "model"], devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts["wide.*/kernel"] = (None, "model")
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(
            layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False
        )
    )
    keras.utils.set_random_seed(1)
    inputs = x = keras.Input((1024,))
    for i in range(8):
        x = keras.layers.Dense(1024, activation="tanh", name=f"wide{i}")(x)
    model = kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="head")(x), name="net")
    model.compile("adam", "mse")
    data = np.ones((8, 1024), "float32"), np.ones((8, 2), "float32")
    counts = {"agreements": 0, "barriers": 0, "looks": 0}
    kind = type(backend())
    gather = kind.gather

    def counted(self: Any, frame: np.ndarray, model: Any) -> np.ndarray:
        counts["agreements"] += 1
        return gather(self, frame, model)

    kind.gather = counted  # type: ignore[method-assign]
    _count_barriers(counts)
    _count_looks(counts)
    at_save: dict[str, int] = {}

    class Between(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            at_save.update(start=counts["agreements"])

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            at_save.update(before=counts["agreements"])

    session = kt.TrainingSession(
        place.directory / "log", save_seconds=None, summary_steps=None, verbose=0
    )
    jax.block_until_ready([v.value for v in model.variables])
    read = _read_so_far()
    model.fit(*data, epochs=1, verbose=0, callbacks=[session, Between()])
    state = sum(v.value.nbytes for v in [*model.variables, *model.optimizer.variables])
    return {
        "read": np.array(_read_so_far() - read),
        "state": np.array(state),
        **{name: np.array(count) for name, count in {**counts, **at_save}.items()},
    }


def _read_so_far() -> int:
    """Return the bytes that this process has read from files, in the page cache or not."""
    return int(Path("/proc/self/io").read_text().split()[1])


def _count_barriers(counts: dict[str, int]) -> None:
    """Count the barriers of Orbax: those of JAX's service, and those of its devices."""
    from jax._src import distributed
    from jax.experimental import multihost_utils

    client: Any = distributed.global_state.client

    class Client:
        def __getattr__(self, name: str) -> Any:
            counts["barriers"] += name == "wait_at_barrier"
            return getattr(client, name)

    distributed.global_state.client = Client()  # type: ignore[assignment]
    sync = multihost_utils.sync_global_devices

    def counted(name: str) -> None:
        counts["barriers"] += 1
        sync(name)

    multihost_utils.sync_global_devices = counted


def _count_looks(counts: dict[str, int]) -> None:
    """Count how often a file of an Orbax checkpoint is looked at before arrays are read."""
    from keras_trainops.checkpoints.formats import orbax

    look = orbax.require_file

    def counted(path: str) -> int:
        counts["looks"] += 1
        return look(path)

    orbax.require_file = counted


def simulated(place: Place) -> dict[str, Any]:
    """The seconds of an agreement of many processes, each a thread with a client of its own."""
    import jax
    from jax._src.lib import _jax

    from keras_trainops.backends import jax_processes

    local = threading.local()

    class Calls:
        def __next__(self) -> int:
            local.calls = getattr(local, "calls", -1) + 1
            return local.calls

    found, size = {}, place.arguments["bytes"]
    for count in place.arguments["counts"]:
        (port,) = free_ports(1)
        service = _jax.get_distributed_runtime_service(f"[::]:{port}", count)
        jax.process_count = lambda *_, count=count: count
        jax.process_index = lambda *_: local.index
        jax_processes._CALLS, jax_processes._service = Calls(), lambda: local.client
        gate, seconds = threading.Barrier(count), list[float]()

        def member(index: int, port: int = port, gate: Any = gate, seconds: Any = seconds) -> None:
            local.index = index
            local.client = _jax.get_distributed_runtime_client(
                f"127.0.0.1:{port}", index, init_timeout=120, use_compression=True
            )
            local.client.connect()
            for _ in range(4):
                gate.wait()
                began = time.perf_counter()
                jax_processes.gather(np.zeros(size, np.uint8))
                gate.wait()
                seconds.append(time.perf_counter() - began)
            local.client.shutdown()

        threads = [threading.Thread(target=member, args=(i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        service.shutdown()
        found[str(count)] = np.array(statistics.median(seconds[count:]))
    return found
