"""Files made to do harm, refused with a helpful message and in little memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

import keras_trainops as kt
from tests.checkpoints.hostile_files import npy, zip_with
from tests.helpers import two_layers

pytestmark = pytest.mark.once


def test_refuses_headers_that_claim_terabytes() -> None:
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


def test_refuses_a_tensorflow_tensor_that_claims_terabytes() -> None:
    """TensorFlow compares sizes with the file itself, and its checksums detect damage."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.get_variable("x", initializer=np.ones(300, "float32"))
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, "tf/ck", write_meta_graph=False)
    with kt.open_checkpoint("tf/ck") as checkpoint:
        checkpoint._tensors["x"] = checkpoint._tensors["x"]._replace(shape=(1 << 40,))
        with pytest.raises(kt.RestoreError, match="'x' claims 4,398,046,511,104 bytes, but only"):
            checkpoint["x"]


def save_graph(graph: Any, **tensors: np.ndarray) -> str:
    """Write a TF2 checkpoint with an object graph, and return its prefix."""
    graph_tensor = tf.constant(graph.SerializeToString())
    names = ["_CHECKPOINTABLE_OBJECT_GRAPH", *tensors]
    values = [graph_tensor, *map(tf.constant, tensors.values())]
    tf.raw_ops.SaveV2(
        prefix="graph", tensor_names=names, shape_and_slices=[""] * len(names), tensors=values
    )
    return "graph"


def test_reads_cyclic_and_refuses_broken_object_graphs() -> None:
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    for number in range(2):  # children of each other, and the root of itself
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


def test_refuses_object_graph_names_that_lead_elsewhere() -> None:
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.nodes.add().attributes.add(full_name="../v", checkpoint_key="t")
    with pytest.raises(kt.RestoreError, match=r"contains the name '../v', which leads out of it"):
        kt.open_checkpoint(save_graph(graph, t=np.ones(2)))


def test_reads_cyclic_links_in_hdf5() -> None:
    """A hard link makes a group its own descendant."""
    two_layers(seed=5).save_weights("w.weights.h5")
    with h5py.File("w.weights.h5", "r+") as file:
        file["layers/dense/again"] = file["layers"]
    target = two_layers()
    report = kt.restore(target, "w.weights.h5")
    assert len(report.restored) == len(target.weights)
    assert not report.unexpected
