"""Restores by several processes, and of variables that are spread over devices."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import safetensors.numpy

import keras_trainops as kt
from keras_trainops.processes import ProcessTimeoutError
from keras_trainops.restoring.loading.agreement import with_advice
from tests.conftest import BACKEND
from tests.helpers import assert_same, value, weights
from tests.processes.launch import Run, run
from tests.processes.member import Place
from tests.restoring import processes as scenes

Results = Sequence[Mapping[str, Any]]
ON_JAX = BACKEND == "jax"
LAYOUT = {"layout": "model"} if ON_JAX else {}
WIDE = ["wide.safetensors", "wide.weights.h5", "wide.npz", "wide.ckpt"]
if importlib.util.find_spec("orbax") is not None:
    WIDE.append("wide.orbax")


def prepare(directory: Path) -> None:
    """Write the files of the scenes; those with a number are of one process."""
    arrays = scenes.arrays()
    scenes.write(directory / "good.safetensors")
    zeros = {key: np.zeros_like(array) for key, array in arrays.items()}
    scenes.write(directory / "zeros.safetensors", changed=zeros)
    turned = {"trunk/kernel": arrays["trunk/kernel"].T.copy()}
    scenes.write(directory / "turned.safetensors", changed=turned)
    narrow = {key: arrays[key][..., :100].copy() for key in ("head/kernel", "head/bias")}
    scenes.write(directory / "narrow.safetensors", changed=narrow)
    bad = arrays["trunk/kernel"].copy()
    bad[-1, -1] = np.nan  # only the last process holds it
    scenes.write(directory / "nan.safetensors", changed={"trunk/kernel": bad})
    for index in range(2):
        scenes.write(directory / f"other-{index}.safetensors", index)
        kernel = {"trunk/kernel": scenes.arrays(index)["trunk/kernel"]}
        scenes.write(directory / f"kernel-{index}.safetensors", changed=kernel)
    scenes.write(directory / "damaged-0.safetensors")
    path = scenes.write(directory / "damaged-1.safetensors")
    os.truncate(path, os.path.getsize(path) // 3)
    write_keras(directory)


def write_keras(directory: Path) -> None:
    inputs = keras.Input((scenes.UNITS,))
    x = keras.layers.Dense(scenes.UNITS, name="trunk")(inputs)
    x = keras.layers.Dense(scenes.UNITS // 2, name="head")(x)
    model = keras.Model(inputs, x, name="net")
    for variable, array in zip(model.weights, scenes.arrays().values(), strict=True):
        variable.assign(array)
    model.save_weights(directory / "good.weights.h5")
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    for number, variable in enumerate(model.optimizer.variables[2:]):
        variable.assign(np.full(variable.shape, number + 1))
    model.optimizer.iterations.assign(7)
    model.save_weights(directory / "trained.weights.h5")


def prepare_wide(directory: Path) -> None:
    """Write the same weights in several formats."""
    import tensorflow as tf

    model = scenes.wide()
    arrays: dict[str, Any] = {variable.path: value(variable) for variable in model.weights}
    safetensors.numpy.save_file(arrays, directory / "wide.safetensors")
    model.save_weights(directory / "wide.weights.h5")
    np.savez(directory / "wide.npz", **arrays)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [tf.compat.v1.get_variable(n, initializer=a) for n, a in arrays.items()]
        session.run([variable.initializer for variable in variables])
        saver = tf.compat.v1.train.Saver()
        saver.save(session, str(directory / "wide.ckpt"), write_meta_graph=False, write_state=False)
    if "wide.orbax" in WIDE:
        import orbax.checkpoint as ocp

        chunks = {name: ocp.SaveArgs(chunk_byte_size=1 << 20) for name in arrays}
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(directory / "wide.orbax", arrays, save_args=chunks)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    directory = tmp_path_factory.mktemp("restoring")
    prepare(directory)
    prepare_wide(directory)
    arguments = {**LAYOUT, "wide": WIDE}
    return run("tests.restoring.processes:restoring", 2, directory, arguments=arguments)


def joined(results: Results, name: str, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Put the parts of all processes together; those of several processes must agree."""
    wholes = [np.full(shape, np.nan, "float32") for shape in shapes]
    for result in results:
        for key, part in result.items():
            if not key.startswith(f"{name} ") or "@" not in key:
                continue
            number, _, bounds = key.removeprefix(f"{name} ").partition("@")
            pairs = [each.split(":") for each in bounds.split(",") if each]
            index = tuple(slice(int(start), int(stop)) for start, stop in pairs)
            known = wholes[int(number)][index]
            assert np.array_equal(known, part) or np.isnan(known).all()
            wholes[int(number)][index] = part
    return wholes


def assert_all(results: Results, name: str, expected: Sequence[np.ndarray]) -> None:
    found = joined(results, name, [array.shape for array in expected])
    for whole, array in zip(found, expected, strict=True):
        np.testing.assert_array_equal(whole, array)


WAYS = ["each", "first", "arrays", "keras", "turned", "model", "alone"]


@pytest.mark.parametrize("way", WAYS)
def test_every_process_gets_its_part(results: Results, way: str) -> None:
    assert_all(results, way, list(scenes.arrays().values()))


@pytest.mark.parametrize("way", ["padded", "padded_by_first"])
def test_elements_without_values_are_kept(results: Results, way: str) -> None:
    expected = scenes.arrays()
    for key in ("head/kernel", "head/bias"):
        expected[key][..., 100:] = 0
    assert_all(results, way, list(expected.values()))


def test_a_layer_of_the_source_may_be_the_models_own(results: Results) -> None:
    expected = scenes.arrays()
    for key in ("trunk/kernel", "trunk/bias"):  # the source's own values are the model's zeros
        expected[key][:] = 0
    assert_all(results, "shared", list(expected.values()))


def test_variables_keep_their_layout(results: Results) -> None:
    assert all(result["layouts kept"] for result in results)


def test_all_processes_get_the_same_report(results: Results) -> None:
    for way in [*WAYS, "padded", "padded_by_first", "shared"]:
        assert results[0][f"report {way}"] == results[1][f"report {way}"]


OF_SECOND = {  # fails in process 1
    "missing": "There is no checkpoint at 'nowhere.npz'",
    "damaged": "damaged-1.safetensors': it looks damaged or cut short",
    "model": "head/kernel: (512, 128) in the model, (512, 256) under key 'head/kernel'",
    "memory": "no room",
}


@pytest.mark.parametrize("fault", OF_SECOND)
def test_a_failure_in_one_process_stops_all(results: Results, fault: str) -> None:
    first, second = (str(result[f"error {fault}"]) for result in results)
    kind = "MemoryError" if fault == "memory" else "RestoreError"
    assert first.startswith(f"unchanged {kind}: Process 1 of 2 (on ")
    assert second.startswith(f"unchanged {kind}: ")
    assert second.rstrip().endswith("All 2 processes stop.")
    assert OF_SECOND[fault] in first
    assert OF_SECOND[fault] in second


def test_the_first_process_fails_for_all(results: Results) -> None:
    first, second = (str(result["error first"]) for result in results)
    assert second.startswith("unchanged RestoreError: Process 0 of 2 (on ")
    for text in (first, second):
        assert "There is no checkpoint at 'nowhere.npz'" in text


def test_values_that_only_one_process_reads_are_checked(results: Results) -> None:
    for text in (str(result["error nan"]) for result in results):
        assert text.startswith("unchanged RestoreError: ")
        assert "'trunk/kernel' has 1 values that are NaN or infinite" in text


DIFFERING = {
    "contents": "trunk/kernel: process 1 of 2 read other values than process 0",
    "kernel": "trunk/kernel: process 1 of 2 read other values than process 0",
    "rename": "differ in what variable 3 gets: \"head/bias float32 (256,) from 'head/bias' float32 "
    '(256,)" in process 0, None in process 1 of 2',
    "model first": "differ in variable 2: 'head/kernel float32 (512, 256)' in process 0, "
    "'head/kernel float32 (512, 128)' in process 1 of 2",
    "options": "differ in `processes`: 'each' in process 0, 'first' in process 1 of 2",
}


@pytest.mark.parametrize("fault", DIFFERING)
def test_differences_between_processes_are_refused(results: Results, fault: str) -> None:
    for text in (str(result[f"error {fault}"]) for result in results):
        assert text.startswith("unchanged RestoreError: ")
        assert DIFFERING[fault] in text
        assert "Nothing was changed. All processes must restore the same model" in text


def test_the_argument_is_one_of_three(results: Results) -> None:
    for result in results:
        assert "`processes` must be one of ('each', 'first', 'alone'). Received: 'last'" in str(
            result["error argument"]
        )


def test_the_callback_prints_and_warns_once(results: Results) -> None:
    printed = [str(result["warm printed"]) for result in results]
    assert "restored 2 of 3 variables" in printed[0]
    assert "WarmStart skipped: the optimizer has made 3 updates" in printed[0]
    assert printed[1] == ""
    assert [int(result["warm warned"]) for result in results] == [1, 0]
    expected = scenes.arrays()
    for key in ("trunk/bias", "head/bias"):
        expected[key][:] = 0
    assert_all(results, "warm", list(expected.values()))


def test_the_optimizers_state_is_restored(results: Results) -> None:
    assert all(int(result["slots"]) == 9 for result in results)
    shapes = [(), (), *(shape for shape in scenes.SHAPES.values() for _ in range(2))]
    iterations, _, *slots = joined(results, "optimizer", shapes)
    assert iterations == 7
    assert [np.unique(slot).tolist() for slot in slots] == [[i + 1] for i in range(8)]


@pytest.mark.parametrize("name", WIDE)
def test_a_process_reads_little_more_than_its_share(results: Results, name: str) -> None:
    for result in results:
        share = int(result["share"])
        assert share < (35 if ON_JAX else 68) * 1e6
        assert result[f"read {name}"] < 1.1 * share + 100_000
        # TensorStore returns a part at once, and PyTorch needs the old value of one more tensor.
        one = 4 * 4096 * 2048 if name == "wide.orbax" else 0
        assert result[f"peak {name}"] < share + one + 64e6
        assert result[f"right {name}"]


@pytest.mark.backends("jax")
def test_replicated_variables_of_several_processes(results: Results) -> None:
    assert_all(results, "data", list(scenes.arrays().values()))
    assert all(result["data layouts kept"] for result in results)


@pytest.mark.backends("jax")
def test_four_processes_hold_each_part_twice(tmp_path: Path) -> None:
    prepare(tmp_path)
    arguments = {"layout": "model", "mesh": [2, 2]}
    found = run("tests.restoring.processes:spread", 4, tmp_path, arguments=arguments)
    for way in ("each", "first"):
        assert_all(found, way, list(scenes.arrays().values()))
        assert found[0][f"{way} 0@0:256,0:512"].shape == (256, 512)
    assert all(result["layouts kept"] for result in found)


@pytest.mark.backends("jax")
def test_one_process_reads_what_two_devices_hold_once(tmp_path: Path) -> None:
    path, expected = scenes.write(tmp_path / "good.safetensors"), list(scenes.arrays().values())
    arguments = {"layout": "model", "mesh": [2, 2]}
    place = Place(0, 1, tmp_path, contextlib.nullcontext, arguments)
    scenes.distribute(place)
    try:
        model = scenes.made(place)
        before = scenes.layouts(model)
        kt.restore(model, path)
        read = scenes.counted("io", "rchar")
        kt.restore(model, path)
        assert scenes.counted("io", "rchar") - read < 1.1 * sum(a.nbytes for a in expected)
        assert_same(weights(model), expected)
        assert scenes.layouts(model) == before
        model.compile("sgd", "mse")  # its steps overwrite the memory of the weights
        x, y = np.ones((4, scenes.UNITS)), np.ones((4, scenes.UNITS // 2))
        model.fit(x, y, batch_size=4, epochs=2, verbose=0)
        assert not np.array_equal(weights(model)[0], expected[0])
        kt.restore(model, path)
        assert_same(weights(model), expected)
    finally:
        keras.distribution.set_distribution(None)


def test_a_process_that_dies_while_it_reads_stops_all(tmp_path: Path) -> None:
    scenes.write(tmp_path / "good.safetensors")
    running = Run("tests.restoring.processes:dying", 2, tmp_path, arguments=LAYOUT)
    running.wait_for("reading", index=1)
    running.send(signal.SIGKILL, index=1)
    first, _ = running.join()
    if BACKEND == "jax":  # whose coordination service ends all processes
        assert first.status != 0
        assert "detected fatal errors" in first.output
        return
    assert "unchanged RuntimeError: Process 0 of 2 lost another process, to restore" in first.output


def test_a_process_that_does_not_come_gets_advice() -> None:
    with (
        pytest.raises(ProcessTimeoutError, match=r'waited\. `restore` .* `processes="alone"`'),
        with_advice(),
    ):
        raise ProcessTimeoutError("waited.")
