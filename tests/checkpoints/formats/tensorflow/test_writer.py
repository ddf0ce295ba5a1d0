"""TensorFlow checkpoints and SavedModels written like others, and read by TensorFlow."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

import keras_trainops as kt
from keras_trainops.checkpoints import ArraysCheckpoint
from keras_trainops.checkpoints.formats.tensorflow import writer
from keras_trainops.checkpoints.formats.tensorflow.object_graph import OBJECT_GRAPH
from keras_trainops.checkpoints.formats.tensorflow.writer import NAME, write
from keras_trainops.checkpoints.storage.writing import UnwritableError
from tests.checkpoints.formats.tensorflow import partitioned
from tests.checkpoints.with_structure import WithStructure, content_like, rewrite
from tests.checkpoints.writers import arrays_of, plain_model, tf1, write_checkpoint, write_tf1
from tests.helpers import assert_same, make_everything, run, weights

pytestmark = pytest.mark.once

DATA = Path(__file__).parents[2] / "data"


def weights_of(path: str) -> WithStructure:
    """The content of a checkpoint without training state."""
    with kt.open_checkpoint(path) as checkpoint:
        state = checkpoint.training_state
    assert state
    return content_like(path, lambda key: key not in state)


def tensors(path: str) -> dict[str, tuple[Any, ...]]:
    """What TensorFlow reads: shape, dtype and bytes by name."""
    reader = tf.train.load_checkpoint(path)
    dtypes, found = reader.get_variable_to_dtype_map(), {}
    for name, shape in reader.get_variable_to_shape_map().items():
        value = np.asarray(reader.get_tensor(name))
        found[name] = (tuple(shape), dtypes[name], value.tobytes())
    return found


def test_writes_a_name_based_checkpoint_that_a_saver_restores() -> None:
    source = plain_model(1)
    write_tf1(source, "old/model.ckpt")
    assert rewrite(write, "old/model.ckpt", "new.ckpt") == []
    assert sorted(os.listdir()) == ["new.ckpt.data-00000-of-00001", "new.ckpt.index", "old"]
    assert tensors("new.ckpt") == tensors("old/model.ckpt")
    shapes = {name: array.shape for name, array in arrays_of(source).items()}
    expected = weights(source)
    with tf.Graph().as_default(), tf1.Session() as session:
        variables = [tf1.get_variable(name, shape) for name, shape in shapes.items()]
        tf1.train.Saver().restore(session, os.path.abspath("new.ckpt"))
        assert_same(session.run(variables), expected)


@pytest.mark.parametrize("group", [1, 500, 1 << 20])
def test_merges_groups_of_tensors(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_GROUP", group)
    write_tf1(plain_model(1), "old/model.ckpt")
    moved: list[int] = []
    content = content_like("old/model.ckpt")
    write(Path("new"), content, {key: key for key in content}, moved.append)
    assert tensors("new") == tensors("old/model.ckpt")
    assert sum(moved) == sum(content.nbytes(key) for key in content)
    files = [name for name in os.listdir() if name.startswith("new.data-")]
    assert len(files) == len(os.listdir()) - 2
    assert (len(files) > 1) == (group < 1 << 20)
    with kt.open_checkpoint("new") as checkpoint:
        assert list(checkpoint) == sorted(content)
        assert_same([checkpoint[key] for key in content], list(content.values()))


def test_writes_an_object_based_checkpoint() -> None:
    source, target = make_everything(plain_model)
    write_checkpoint(source, "old/ck")
    assert rewrite(write, "old/ck-1", "same") == []
    assert tensors("same") == tensors("old/ck-1")
    target.compile("adam", "mse")
    target.optimizer.build(target.trainable_variables)
    tf.train.Checkpoint(model=target).restore("same").assert_existing_objects_matched()
    assert_same(weights(target), weights(source))
    target = plain_model(3)
    content = weights_of("old/ck-1")
    write(Path("weights"), content, {key: key for key in content})
    tf.train.Checkpoint(model=target).restore("weights").expect_partial()
    assert_same(weights(target), weights(source))
    with kt.open_checkpoint("weights") as new, kt.open_checkpoint("old") as old:
        assert list(new) == [key for key in old if key in content]
    status = tf.train.Checkpoint(model=target).restore("weights")
    status.assert_consumed()  # no node has a value that was left out


def test_writes_slots_of_an_object_based_checkpoint_or_not() -> None:
    import tf_keras

    model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2, name="head")])
    model.compile(tf_keras.optimizers.legacy.Adam(), "mse")
    model.train_on_batch(np.ones((2, 4)), np.ones((2, 2)))
    note = tf.Variable("text", name="note")
    tf.train.Checkpoint(net=model, optimizer=model.optimizer, note=note).write("old")
    rewrite(write, "old", "same")
    assert tensors("same") == tensors("old")
    content = weights_of("old")
    write(Path("new"), content, {key: key for key in content})
    other = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2, name="head")])
    other.compile(tf_keras.optimizers.legacy.Adam(), "mse")
    read = tf.train.Checkpoint(net=other, optimizer=other.optimizer, note=tf.Variable(""))
    read.restore("new").expect_partial()
    assert_same(other.get_weights(), model.get_weights())
    assert read.note.numpy() == b"text"


def test_writes_a_directory_with_its_state_file() -> None:
    source, target = make_everything(plain_model)
    write_checkpoint(source, "old/ck")
    assert rewrite(write, "old", "new") == []
    assert sorted(os.listdir("new")) == sorted(os.listdir("old"))
    assert tf.train.latest_checkpoint("new") == "new/ck-1"
    tf.train.Checkpoint(model=target).restore(tf.train.latest_checkpoint("new")).expect_partial()
    assert_same(weights(target), weights(source))
    assert rewrite(write, "old", "plain.ckpt") == []  # this is a prefix
    assert tensors("plain.ckpt") == tensors("old/ck-1")


def test_writes_a_directory_whose_prefix_has_no_base_name() -> None:
    from tests.checkpoints.writers import write_empty_base_name

    write_empty_base_name(plain_model(1))
    rewrite(write, "empty", "new")
    assert sorted(os.listdir("new")) == sorted(os.listdir("empty"))
    with kt.open_checkpoint("new") as new, kt.open_checkpoint("empty") as old:
        assert list(new) == list(old)
        assert_same(list(new.values()), list(old.values()))


def test_writes_a_saved_model() -> None:
    source, like = make_everything(plain_model)
    source.export("source", verbose=False)
    like.export("like", verbose=False)
    shutil.copytree("like", "before")
    with kt.open_checkpoint("source") as new, kt.open_checkpoint("like") as old:
        content = WithStructure({key: new[key] for key in old}, old.structure())
    assert write(Path("out"), content, {key: key for key in content}) == [
        "fingerprint.pb was left out: it contains a hash of the old values."
    ]
    inputs = np.random.default_rng(0).normal(size=(2, 6, 6, 2)).astype("float32")
    new, expected = (tf.saved_model.load(path) for path in ("out", "source"))
    np.testing.assert_array_equal(new.serve(inputs), expected.serve(inputs))
    assert by_full_name("out") == by_full_name("source")  # the order of a list is arbitrary
    assert tensors("out/variables/variables").keys() == tensors("like/variables/variables").keys()
    assert Path("out/saved_model.pb").read_bytes() == Path("like/saved_model.pb").read_bytes()
    Path("like/saved_model.pb").unlink()
    for _ in range(2):
        with pytest.raises(UnwritableError, match="is no longer there: the graphs of the Saved"):
            write(Path("out2"), content, {key: key for key in content})
        assert not Path("out2").exists()
        shutil.rmtree("like", ignore_errors=True)


def by_full_name(path: str) -> set[tuple[str, str, bytes]]:
    """The values of each list of variables, by name."""
    read = tensors(f"{path}/variables/variables")
    graph = TrackableObjectGraph.FromString(
        tf.train.load_checkpoint(f"{path}/variables/variables").get_tensor(OBJECT_GRAPH)
    )
    return {
        (value.full_name, value.checkpoint_key.split("/")[0], read[value.checkpoint_key][2])
        for node in graph.nodes
        for value in node.attributes
    }


def test_does_not_guess_which_variable_a_copy_is_of() -> None:
    export = tf.Module()
    export.first = [tf.Variable([1.0], name="twin"), tf.Variable([1.0], name="twin")]
    export.second = [tf.Variable([1.0], name="twin"), tf.Variable([1.0], name="twin")]
    tf.saved_model.save(export, "twins")
    with pytest.raises(UnwritableError, match=r"'second/0/.*' has the name of another variable"):
        rewrite(write, "twins", "out")
    assert os.listdir() == ["twins"]


def test_a_saved_model_keeps_tensors_that_are_not_given() -> None:
    like = str(DATA / "estimator")
    shutil.copytree(like, "like")
    for extra in Path("like").glob("model.ckpt*"):
        extra.unlink()
    lines = rewrite(write, "like", "out", lambda key: key.startswith("dnn/logits"))
    assert any("other tensors have the values of the source" in line for line in lines)
    assert tensors("out/variables/variables") == tensors("like/variables/variables")
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.saved_model.load(session, ["serve"], "out")


@pytest.mark.parametrize("version", [1, 2])
def test_says_what_differs_from_the_source(version: int) -> None:
    arrays = partitioned.save("old/parts", version)
    lines = rewrite(write, "old/parts", "new")
    v1 = "The source has the V1 format; the new checkpoint has V2."
    assert lines == ([v1] if version == 1 else ["3 partitioned tensors were written whole."])
    reader = tf.train.load_checkpoint("new")
    assert_same([reader.get_tensor(name) for name in arrays], list(arrays.values()))
    with tf.Graph().as_default(), tf1.Session() as session:
        parts = [
            tf1.get_variable(name, (10, 7), partitioner=partitioner)
            for name, partitioner in partitioned.PARTS.items()
        ]
        tf1.train.Saver().restore(session, os.path.abspath("new"))
        joined = session.run([tf.convert_to_tensor(part) for part in parts])
        assert_same(joined, list(arrays.values()))


def test_renamed_tensors_are_name_based() -> None:
    write_checkpoint(plain_model(1), "old/ck")
    Path("old/ck-1.meta").touch()
    content = weights_of("old/ck-1")
    lines = write(Path("new"), content, {f"net/{key}": key for key in content})
    assert lines == [
        "The object graph was left out, as tensors have new names.",
        "The graph (.meta) beside the source was not copied.",
    ]
    assert tensors("new").keys() == {f"net/{key}" for key in content}


def test_writes_tensors_of_other_formats() -> None:
    arrays = {
        "b/half": np.ones((2, 3), ml_dtypes.bfloat16),
        "b/tiny": np.ones(2, ml_dtypes.float8_e4m3fn),
        "big": np.arange(3, dtype=">f4"),
        "flag": np.array(True),
        "none": np.ones((0, 2), "uint16"),
        "größe": np.ones(2, "complex64"),
    }
    write(Path("out[1].ckpt"), ArraysCheckpoint(arrays, "arrays"), {k: k for k in arrays})
    with kt.open_checkpoint("out[1].ckpt") as checkpoint:
        assert sorted(checkpoint) == sorted(arrays)
        for key, array in arrays.items():
            assert checkpoint.dtype(key) == array.dtype.newbyteorder("=")
            assert checkpoint.shape(key) == array.shape
            np.testing.assert_array_equal(checkpoint[key], array)


def test_works_in_a_graph() -> None:
    arrays = ArraysCheckpoint({"w": np.ones(3, "float32")}, "arrays")

    @tf.function
    def traced() -> None:
        write(Path("out"), arrays, {"w": "w"})

    traced()
    with tf.Graph().as_default() as graph:
        write(Path("out1"), arrays, {"w": "w"})
        assert graph.get_operations() == []
    for path in ("out", "out1"):
        assert tf.train.load_checkpoint(path).get_tensor("w").tolist() == [1, 1, 1]


def test_says_that_it_needs_eager_execution() -> None:
    run(
        """
import pathlib, numpy as np, pytest, tensorflow as tf
tf.compat.v1.disable_eager_execution()
from keras_trainops import RestoreError
from keras_trainops.checkpoints import ArraysCheckpoint
from keras_trainops.checkpoints.formats.tensorflow.writer import write
with pytest.raises(RestoreError, match="eager execution is disabled"):
    write(pathlib.Path("x"), ArraysCheckpoint({"w": np.ones(3)}, "arrays"), {"w": "w"})
print("as it should be")
""",
        KERAS_BACKEND="jax",
    )


def test_refuses_what_tensorflow_cannot_store() -> None:
    def refuses(match: str, content: Any, name: str, key: str) -> None:
        with pytest.raises(UnwritableError, match=match):
            write(Path("out"), content, {name: key})
        assert not Path("out").exists()

    content = ArraysCheckpoint({"w": np.ones(2), "when": np.ones(2, "M8[s]")}, "arrays")
    refuses("reserves the name '_CHECKPOINTABLE_OBJECT_GRAPH'", content, OBJECT_GRAPH, "w")
    refuses("no dtype for 'when', which is datetime64", content, "when", "when")
    write_checkpoint(plain_model(1), "old/ck")
    structure = content_like("old/ck-1").structure()
    refuses("'w' is not in the object graph", WithStructure({"w": np.ones(2)}, structure), "w", "w")


def test_a_plan_leads_nowhere_else() -> None:
    layout = {"base_name": "../../x", "has_state": False}
    content = WithStructure({"w": np.ones(2)}, {NAME: layout})
    write(Path("new"), content, {"w": "w"})
    assert sorted(os.listdir("new")) == ["x.data-00000-of-00001", "x.index"]
    assert os.listdir() == ["new"]


def test_a_full_disk_is_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.raw_ops, "SaveV2", fail)
    with pytest.raises(OSError, match="No space left"):
        write(Path("out"), ArraysCheckpoint({"w": np.ones(2)}, "arrays"), {"w": "w"})
    assert os.listdir() == []


def test_keras_model_restores_what_is_written() -> None:
    source, target = make_everything(plain_model)
    arrays = ArraysCheckpoint(arrays_of(source), "arrays")
    write(Path("new.ckpt"), arrays, {key: key for key in arrays})
    kt.restore(target, "new.ckpt")
    assert_same(weights(target), weights(source))
    assert isinstance(target, keras.Model)
