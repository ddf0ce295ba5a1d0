"""Small valid files of each format, for the fuzz test to damage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from tests.helpers import two_layers, value


class Format(NamedTuple):
    """A format in the fuzz test.

    Attributes:
        write: Writes a valid checkpoint to the current directory.
        damaged: The file to damage.
        path: The path to restore from.
        checked: If True, checksums ensure that damage never loads other values.
        rename: Rules that rename its keys to the model's paths.
    """

    write: Callable[[], Any]
    damaged: str
    path: str
    checked: bool = False
    rename: dict[str, str] | None = None

    @property
    def whole(self) -> str:
        """Path of a copy of the valid file."""
        return self.damaged.replace("/", "+") + ".whole"


def _arrays() -> dict[str, np.ndarray]:
    return {variable.path: value(variable) for variable in two_layers(seed=5).weights}


def _index() -> None:
    arrays = _arrays()
    safetensors.numpy.save_file(arrays, "shard.safetensors")
    weight_map = dict.fromkeys(arrays, "shard.safetensors")
    Path("index.json").write_text(json.dumps({"weight_map": weight_map}))


def _tensorflow(kind: str) -> None:
    import tensorflow as tf

    os.makedirs(kind, exist_ok=True)
    if kind == "tf2":
        tf.train.Checkpoint(model=two_layers(seed=5)).write("tf2/ck")
        return
    tf1, arrays = tf.compat.v1, _arrays()
    with tf.Graph().as_default(), tf1.Session() as session:
        for name, array in arrays.items():
            tf1.get_variable(name, initializer=array)
        session.run(tf1.global_variables_initializer())
        version = tf1.train.SaverDef.V1 if kind == "v1" else tf1.train.SaverDef.V2
        saver = tf1.train.Saver(write_version=version)
        saver.save(session, f"{kind}/ck", write_meta_graph=False)


def _torch(path: str, new: bool = True) -> None:
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in _arrays().items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=new)


def _hugging_face() -> None:
    os.makedirs("bert", exist_ok=True)
    Path("bert/config.json").write_text("{}")
    safetensors.numpy.save_file(_arrays(), "bert/model.safetensors")


def _torch_index() -> None:
    _torch("shard.bin")
    content = {"weight_map": dict.fromkeys(_arrays(), "shard.bin")}
    Path("w.bin.index.json").write_text(json.dumps(content))


def _orbax() -> None:
    import orbax.checkpoint as ocp

    tree: dict[str, Any] = {}
    for name, array in _arrays().items():
        layer, leaf = name.split("/")
        tree.setdefault(layer, {})[leaf] = array
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(os.path.abspath("orbax"), tree)


_DATA = "ck.data-00000-of-00001"
FORMATS: dict[str, Format] = {
    "npz": Format(lambda: np.savez("w.npz", **_arrays()), "w.npz", "w.npz", True),
    "safetensors": Format(
        lambda: safetensors.numpy.save_file(_arrays(), "w.safetensors"),
        "w.safetensors",
        "w.safetensors",
    ),
    "safetensors index": Format(_index, "index.json", "index.json", True),
    "weights.h5": Format(
        lambda: two_layers(seed=5).save_weights("w.weights.h5"), "w.weights.h5", "w.weights.h5"
    ),
    "weights.json": Format(
        lambda: two_layers(seed=5).save_weights("s.weights.json", max_shard_size=1),
        "s.weights.json",
        "s.weights.json",
        True,
    ),
    "keras": Format(lambda: two_layers(seed=5).save("w.keras"), "w.keras", "w.keras"),
    "legacy h5": Format(lambda: two_layers(seed=5).save("w.h5"), "w.h5", "w.h5"),
    "TF1 data": Format(lambda: _tensorflow("tf1"), f"tf1/{_DATA}", "tf1/ck", True),
    "TF1 index": Format(lambda: _tensorflow("tf1"), "tf1/ck.index", "tf1/ck", True),
    "TF1 V1 file": Format(lambda: _tensorflow("v1"), "v1/ck", "v1/ck", True),
    "TF2 data": Format(lambda: _tensorflow("tf2"), f"tf2/{_DATA}", "tf2/ck", True),
    "PyTorch": Format(lambda: _torch("w.pt"), "w.pt", "w.pt"),
    "PyTorch before 1.6": Format(lambda: _torch("old.pt", False), "old.pt", "old.pt"),
    "PyTorch index": Format(_torch_index, "shard.bin", "w.bin.index.json"),
    "Hugging Face": Format(_hugging_face, "bert/model.safetensors", "bert"),
    "Orbax metadata": Format(_orbax, "orbax/_METADATA", "orbax", True),
    "Orbax array": Format(_orbax, "orbax/head.kernel/0.0", "orbax"),
    "Orbax header": Format(_orbax, "orbax/head.kernel/.zarray", "orbax"),
}
