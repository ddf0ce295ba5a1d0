"""All variables are restored or none, whatever fails at any time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

import keras_trainops as kt
from keras_trainops.restoring.loading import assign as assigning
from tests.helpers import refused, run, two_layers, two_replicas
from tests.restoring.helpers import arrays

pytestmark = pytest.mark.once


FORMATS: dict[str, Callable[[], Any]] = {
    "w.npz": lambda: np.savez("w.npz", **arrays()),
    "w.safetensors": lambda: safetensors.numpy.save_file(arrays(), "w.safetensors"),
    "w.weights.h5": lambda: two_layers(5).save_weights("w.weights.h5"),
    "w.keras": lambda: two_layers(5).save("w.keras"),
    "tf2/ck": lambda: tf.train.Checkpoint(model=two_layers(5)).write("tf2/ck"),
}


def file_of(source: str) -> str:
    return f"{source}.data-00000-of-00001" if source == "tf2/ck" else source


@pytest.mark.parametrize("source", ["w.npz", "tf2/ck"])
def test_a_damaged_last_tensor_prevents_all_assignments(source: str, assigned: list[str]) -> None:
    FORMATS[source]()
    data, last = Path(file_of(source)).read_bytes(), arrays()["head/bias"].tobytes()
    assert data.count(last) == 1
    Path(file_of(source)).write_bytes(data.replace(last, bytes(len(last))))
    model = two_layers()
    del assigned[:]
    with refused(model, "(?i)(crc|checksum)", kt.RestoreError):
        kt.restore(model, source)
    assert assigned == []


@pytest.mark.parametrize("source", ["w.safetensors", "w.weights.h5", "w.keras"])
def test_a_last_nan_prevents_all_assignments(source: str, assigned: list[str]) -> None:
    FORMATS[source]()
    data, last = Path(source).read_bytes(), arrays()["head/bias"].tobytes()
    nan = np.array([np.nan, 1], "float32").tobytes()
    Path(source).write_bytes(data.replace(last, nan))
    model = two_layers()
    del assigned[:]
    with refused(model, "head/bias: the tensor .* has 1 values that are NaN", kt.RestoreError):
        kt.restore(model, source)
    assert assigned == []


def truncated(path: str) -> None:
    os.truncate(path, os.path.getsize(path) - 100)


def overwritten(path: str) -> None:
    data = bytearray(Path(path).read_bytes())
    data[-20:] = bytes(20)
    Path(path).write_bytes(data)


def replaced(path: str) -> None:
    Path("other").write_bytes(Path(path).read_bytes())
    os.replace("other", path)


@pytest.mark.parametrize("change", [truncated, overwritten, replaced])
@pytest.mark.parametrize("source", FORMATS)
def test_a_file_that_changes_after_the_check(
    source: str, change: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, assigned: list[str]
) -> None:
    FORMATS[source]()
    check = assigning.check_all

    def check_and_change(*arguments: Any) -> None:
        check(*arguments)
        change(file_of(source))

    monkeypatch.setattr(assigning, "check_all", check_and_change)
    model = two_layers()
    del assigned[:]
    with refused(model, f"'{source}' was changed while it was read: ", kt.RestoreError):
        kt.restore(model, source, memory="bounded")
    assert assigned == []


@pytest.mark.parametrize("change", [truncated, overwritten, replaced])
@pytest.mark.parametrize("source", ["w.safetensors", "w.weights.h5"])
def test_a_file_that_changes_while_it_is_read_once(
    source: str, change: Callable[[str], None], assigned: list[str]
) -> None:
    FORMATS[source]()
    model = two_layers()
    del assigned[:]

    def adapter(tensor: np.ndarray) -> np.ndarray:
        change(file_of(source))
        return tensor

    with refused(model, f"'{source}'", kt.RestoreError):
        kt.restore(model, source, adapt={"trunk/kernel": adapter}, memory="once")
    assert assigned == []


@pytest.mark.parametrize("source", FORMATS)
def test_a_file_truncated_between_two_assignments(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FORMATS[source]()
    original = keras.Variable.assign
    model = two_layers()

    def assign(self: keras.Variable, new: Any) -> Any:
        if os.path.getsize(file_of(source)) > 100:
            os.truncate(file_of(source), 100)
        return original(self, new)

    monkeypatch.setattr(keras.Variable, "assign", assign)
    with refused(model, f"'{source}'", kt.RestoreError):
        kt.restore(model, source, memory="bounded")


SHORT_OF_MEMORY = """
import resource, sys
import keras, numpy as np, safetensors.numpy
import keras_trainops as kt
inputs = keras.Input((4,))
x = keras.layers.Dense(4, name="small")(inputs)
x = keras.layers.Dense(1 << 24, use_bias=False, name="large", kernel_initializer="zeros")(x)
model = keras.Model(inputs, x)  # the large one takes 256 MB
arrays = {"small/kernel": np.ones((4, 4), "f4"), "small/bias": np.ones(4, "f4")}
arrays["large/kernel"] = np.ones((4, 1 << 24), "f4")
safetensors.numpy.save_file(arrays, "w.safetensors")
del arrays
before = [np.array(v.value) for v in model.get_layer("small").weights]
status = open("/proc/self/status").read()
used = int(status.partition("VmSize:")[2].split()[0]) << 10
for room in (100, 240):  # the checks find room, the large one does not
    resource.setrlimit(resource.RLIMIT_AS, (used + (room << 20), resource.RLIM_INFINITY))
    try:
        kt.restore(model, "w.safetensors")
    except Exception as error:
        print(room, type(error).__name__)
    else:
        sys.exit("there was memory enough")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for variable, old in zip(model.get_layer("small").weights, before):
        assert (np.array(variable.value) == old).all()
    assert not np.array(model.get_layer("large").kernel.value).any()
kt.restore(model, "w.safetensors")
assert np.array(model.get_layer("large").kernel.value).all()
print("as it should be")
"""


def test_too_little_memory_for_one_tensor() -> None:
    run(SHORT_OF_MEMORY)


SHARDED = """
import keras, numpy as np, jax
import keras_trainops as kt
from keras.distribution import DeviceMesh, LayoutMap, ModelParallel
mesh = DeviceMesh((1, 4), ["batch", "model"], keras.distribution.list_devices())
layouts = LayoutMap(mesh)
layouts["wide/kernel"] = (None, "model")
keras.distribution.set_distribution(ModelParallel(layout_map=layouts, batch_dim_name="batch"))
inputs = keras.Input((4,))
x = keras.layers.Dense(8, name="wide")(inputs)
model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
kernel = model.get_layer("wide").kernel
assert len(kernel.value.sharding.device_set) == 4
shards = lambda: [np.array(s.data) for s in kernel.value.addressable_shards]
before, spec = shards(), kernel.value.sharding.spec
arrays = {"wide/kernel": np.arange(32, dtype="f4").reshape(4, 8), "wide/bias": np.ones(8, "f4")}
bias, original = model.get_layer("wide").bias, type(kernel).assign
def assign(self, new):
    if self is bias and np.all(np.asarray(new) == 1):
        raise MemoryError("no room")
    return original(self, new)
type(kernel).assign = assign
try:
    kt.restore(model, arrays)
except MemoryError:
    pass
type(kernel).assign = original
assert all((a == b).all() for a, b in zip(shards(), before))
assert kernel.value.sharding.spec == spec
kt.restore(model, arrays)
assert kernel.value.sharding.spec == spec and [s.shape for s in shards()] == [(4, 2)] * 4
assert (np.array(kernel.value) == arrays["wide/kernel"]).all()
print("as it should be")
"""


def test_sharded_variables_on_jax() -> None:
    run(SHARDED, KERAS_BACKEND="jax", JAX_NUM_CPU_DEVICES="4")


def test_mirrored_variables_on_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = two_replicas()
    with strategy.scope():
        inputs = keras.Input((512,))
        model = keras.Model(inputs, keras.layers.Dense(1024, name="head")(inputs))
    head = model.get_layer("head")

    def copies() -> list[np.ndarray]:
        return [c.numpy() for c in strategy.experimental_local_results(head.kernel.value)]

    before = copies()
    assert len(before) == 2
    arrays = {"head/kernel": np.full((512, 1024), 3, "f4"), "head/bias": np.ones(1024, "f4")}
    original = type(head.bias).assign

    def assign(variable: keras.Variable, new: Any) -> Any:
        if variable is head.bias and np.all(np.asarray(new) == 1):
            raise MemoryError("no room")
        return original(variable, new)

    with monkeypatch.context() as patch:
        patch.setattr(type(head.bias), "assign", assign)
        with pytest.raises(MemoryError, match="no room"):
            kt.restore(model, arrays)
    assert all((a == b).all() for a, b in zip(copies(), before, strict=True))
    kt.restore(model, arrays)
    assert all((copy == 3).all() for copy in copies())
    head.kernel.value.assign_add(np.ones((512, 1024), "f4"))
    assert all((copy == 4).all() for copy in copies())  # no memory is shared
    assert (arrays["head/kernel"] == 3).all()
