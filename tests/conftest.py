"""Fixtures of all tests: quiet backends, fixed seeds, and a fresh Keras state."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
BACKEND = os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # whatever keras.json names
# Tests compile many small programs, and run each a few times: quick to compile is quicker.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
if BACKEND == "jax":  # devices for tests of distribution; the others use the first
    os.environ["JAX_NUM_CPU_DEVICES"] = "4"
    # Tests compile the same programs again and again.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.abspath(".cache/jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def fresh_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and seeds that do not depend on other tests, and a directory of its own."""
    import keras

    from keras_trainops.checkpoints import open as opening

    keras.backend.clear_session(free_memory=False)
    _collect()  # the graphs of the test before: the more are alive, the slower others are traced
    keras.utils.set_random_seed(7)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening, "_registered", [])  # formats of other tests


def pytest_sessionstart(session: pytest.Session) -> None:
    """Divide TensorFlow's CPU for tests of replicas; the process that starts others has none."""
    starts_others = session.config.getoption("numprocesses", None)
    if BACKEND == "tensorflow" and not starts_others:
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        # Operations in parallel give other numbers (1e-3) in a few of a hundred fits of a GAN, with
        # a step of plain Keras too.
        tf.config.threading.set_inter_op_parallelism_threads(1)


def pytest_collection_finish() -> None:
    _collect()
    gc.set_threshold(1_000_000, 10, 10)


def _collect() -> None:
    gc.collect()
    gc.freeze()  # later collections need not look at what is alive now, such as modules


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out, visibly, what is of another backend (`KERAS_BACKEND`) than this run."""

    def is_for_us(item: pytest.Item) -> bool:
        if item.get_closest_marker("once") and BACKEND != "tensorflow":
            return False
        return all(BACKEND in mark.args for mark in item.iter_markers("backends"))

    config.hook.pytest_deselected(items=[item for item in items if not is_for_us(item)])
    items[:] = [item for item in items if is_for_us(item)]
