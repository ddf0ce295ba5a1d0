"""Files that were made to do harm: refused with what, where and what to do, in little memory."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

import keras_trainops as kt
from keras_trainops.checkpoints.storage import limits
from tests.helpers import refused, two_layers


def npy(array: np.ndarray, shape: str | None = None) -> bytes:
    """An array as in an `.npy` file; its header may claim another shape."""
    file = io.BytesIO()
    np.save(file, array)
    data = file.getvalue()
    if shape is None:
        return data
    old = f"({array.shape[0]},), }}"
    new = f"{shape}, }}"
    return data.replace(f"{old}{' ' * (len(new) - len(old))}".encode(), new.encode(), 1)


def zip_with(members: dict[str, bytes], path: str, method: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts as large, so that the bombs of these tests are small."""
    monkeypatch.setattr(limits, "_LARGE", 1 << 16)


def test_headers_that_claim_terabytes() -> None:
    claims = npy(np.ones(3), "(4398046511104,)")
    Path("w.npy").write_bytes(claims)
    zip_with({"x.npy": claims}, "w.npz")
    for path in ("w.npy", "w.npz"):
        with pytest.raises(kt.RestoreError, match="claims 35,184,372,088,832 bytes, but 24 follow"):
            kt.open_checkpoint(path)
    entry = {"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    header = json.dumps(entry).encode()
    Path("w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(kt.RestoreError, match=r"'w.safetensors': it looks damaged"):
        kt.open_checkpoint("w.safetensors")
    Path("h.safetensors").write_bytes(struct.pack("<Q", 1 << 39) + b"{" + bytes(8))
    with pytest.raises(kt.RestoreError, match=r"'h.safetensors': it looks damaged"):
        kt.open_checkpoint("h.safetensors")


@pytest.mark.parametrize("chunks", [None, (1 << 10,)], ids=["contiguous", "chunked"])
def test_a_data_set_that_claims_terabytes(chunks: tuple[int] | None) -> None:
    two_layers().save_weights("w.weights.h5")
    with h5py.File("w.weights.h5", "r+") as file:
        del file["layers/dense/vars/1"]
        file["layers/dense/vars"].create_dataset("1", (1 << 40,), "float32", chunks=chunks)
    with refused(
        two_layers(), "vars/1 claims 4,398,046,511,104 bytes, but only 0", kt.RestoreError
    ):
        kt.restore(two_layers(), "w.weights.h5")


def test_a_view_of_terabytes_over_one_number_in_a_tensorflow_file_is_no_view() -> None:
    """TensorFlow checks sizes against the file itself; damage is found by its checksums."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.get_variable("x", initializer=np.ones(300, "float32"))
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, "tf/ck", write_meta_graph=False)
    with kt.open_checkpoint("tf/ck") as checkpoint:
        checkpoint._tensors["x"] = checkpoint._tensors["x"]._replace(shape=(1 << 40,))
        with pytest.raises(kt.RestoreError, match="'x' claims 4,398,046,511,104 bytes, but only"):
            checkpoint["x"]


@pytest.mark.usefixtures("low_limit")
def test_zip_bombs() -> None:
    zeros = npy(np.zeros(1 << 20, "uint8"))
    zip_with({"x.npy": zeros}, "bomb.npz", zipfile.ZIP_DEFLATED)
    with pytest.raises(
        kt.RestoreError, match=r"'x.npy' claims .* save it again without compression"
    ):
        kt.open_checkpoint("bomb.npz")
    members = {"model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(1 << 20), "config.json": b"{}"}
    zip_with(members, "bomb.keras", zipfile.ZIP_DEFLATED)
    with pytest.raises(kt.RestoreError, match=r"'model.weights.h5' claims 1,048,584 bytes"):
        kt.open_checkpoint("bomb.keras")
    zip_with({"x.npy": zeros}, "stored.npz")  # the same array, not compressed
    with kt.open_checkpoint("stored.npz") as checkpoint:
        assert not checkpoint["x"].any()


@pytest.mark.usefixtures("low_limit")
def test_a_data_set_that_is_compressed_out_of_proportion() -> None:
    two_layers().save_weights("w.weights.h5")
    with h5py.File("w.weights.h5", "r+") as file:
        del file["layers/dense/vars/1"]
        group = file["layers/dense/vars"]
        group.create_dataset("1", data=np.zeros(1 << 20, "uint8"), compression="gzip")
    with pytest.raises(
        kt.RestoreError, match=r"vars/1 claims 1,048,576 bytes, but only \d,\d+ are"
    ):
        kt.open_checkpoint("w.weights.h5")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..", "a\\..\\x"])
def test_names_that_lead_out(name: str) -> None:
    zip_with({f"{name}.npy": npy(np.ones(3))}, "w.npz")
    safetensors.numpy.save_file({name: np.ones(3)}, "w.safetensors")
    for path in ("w.npz", "w.safetensors"):
        with pytest.raises(kt.RestoreError, match=r"holds the name .*, which leads out of it"):
            kt.open_checkpoint(path)


def test_an_archive_with_two_members_of_one_name() -> None:
    with zipfile.ZipFile("w.npz", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for value in (1.0, 2.0):
            archive.writestr("x.npy", npy(np.full(3, value)))
    with pytest.raises(kt.RestoreError, match=r"holds 'x.npy' more than once"):
        kt.open_checkpoint("w.npz")


class Bomb:
    """Makes a directory where it is unpickled."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("exploded",))


def test_pickles_in_an_npy_are_never_loaded() -> None:
    np.save("w.npy", np.array([Bomb()]))
    with (
        kt.open_checkpoint("w.npy") as checkpoint,
        pytest.raises(kt.RestoreError, match=r"the array 'w' holds Python objects"),
    ):
        checkpoint["w"]
    assert not os.path.exists("exploded")


def save_graph(graph: Any, **tensors: np.ndarray) -> str:
    """A TF2 checkpoint with this object graph."""
    graph_tensor = tf.constant(graph.SerializeToString())
    names = ["_CHECKPOINTABLE_OBJECT_GRAPH", *tensors]
    values = [graph_tensor, *map(tf.constant, tensors.values())]
    tf.raw_ops.SaveV2(
        prefix="graph", tensor_names=names, shape_and_slices=[""] * len(names), tensors=values
    )
    return "graph"


def test_object_graphs_that_go_round_or_nowhere() -> None:
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    for number in range(2):  # each the other's child, and the root its own
        node = graph.nodes.add()
        for child in (0, 1):
            node.children.add(node_id=child, local_name=f"c{child}")
        node.attributes.add(name="VARIABLE_VALUE", full_name="v", checkpoint_key=f"t{number}")
    path = save_graph(graph, t0=np.ones(2), t1=np.zeros(3))
    with kt.open_checkpoint(path) as checkpoint:
        assert sorted(checkpoint) == ["t0", "t1"]
        assert checkpoint["t1"].tolist() == [0, 0, 0]
    graph.nodes[0].slot_variables.add(slot_variable_node_id=99)
    with pytest.raises(kt.RestoreError, match="'graph': it looks damaged"):
        kt.open_checkpoint(save_graph(graph, t0=np.ones(2), t1=np.zeros(3)))


def test_an_object_graph_with_a_name_that_leads_out() -> None:
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.nodes.add().attributes.add(full_name="../v", checkpoint_key="t")
    with pytest.raises(kt.RestoreError, match=r"holds the name '../v', which leads out of it"):
        kt.open_checkpoint(save_graph(graph, t=np.ones(2)))


def test_a_link_that_goes_round_in_hdf5() -> None:
    """A group that is its own descendant, by a hard link."""
    two_layers(seed=5).save_weights("w.weights.h5")
    with h5py.File("w.weights.h5", "r+") as file:
        file["layers/dense/again"] = file["layers"]
    target = two_layers()
    report = kt.restore(target, "w.weights.h5")
    assert len(report.restored) == len(target.weights)
    assert not report.unexpected
