"""Every format: restored, written back, equal; trained, written back, read by the format's tool."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

import keras_trainops as kt
from tests.checkpoints.writers import WRITERS, plain_model
from tests.helpers import assert_same, randomise, value, weights
from tests.writing.helpers import (
    arrays_in,
    assert_equal_files,
    hugging_face,
    network,
    rules,
    saved,
    tensors,
)

pytestmark = pytest.mark.once

FILES = {name: writer for name, writer in WRITERS.items() if name not in ("mapping", "model")}
OUT = {
    **dict.fromkeys(FILES, "ours"),
    "weights.h5": "ours.weights.h5",
    "keras": "ours.keras",
    "legacy h5": "ours.h5",
    "npz": "ours.npz",
    "safetensors": "ours.safetensors",
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_of_keras_and_tensorflow(name: str) -> None:
    theirs = FILES[name](plain_model(1))
    assert isinstance(theirs, str)
    model = plain_model(2)
    kt.restore(model, theirs)
    report = kt.write_back(model, theirs, OUT[name])
    wanted, found = arrays_in(theirs), arrays_in(OUT[name])
    assert [*found] == [key for key in wanted if key not in report.left_out]
    for key, array in found.items():
        assert (array.dtype, array.shape) == (wanted[key].dtype, wanted[key].shape)
        assert array.tobytes() == wanted[key].tobytes()
    randomise(model, 3)
    kt.write_back(model, theirs, OUT[name], overwrite=True)
    again = plain_model(4)
    kt.restore(again, OUT[name])
    assert_same(weights(again), weights(model))


def test_keras_loads_what_was_written() -> None:
    model = plain_model(1)
    model.save("theirs.keras")
    model.save_weights("theirs.weights.h5")
    randomise(model, 2)
    kt.write_back(model, "theirs.keras", "ours.keras")
    kt.write_back(model, "theirs.weights.h5", "ours.weights.h5")
    kt.write_back(model, "theirs.keras", "more.weights.h5")
    assert_same(weights(keras.saving.load_model("ours.keras")), weights(model))
    for path in ("ours.weights.h5", "more.weights.h5"):
        other = plain_model(3)
        other.load_weights(path)
        assert_same(weights(other), weights(model))
    with pytest.raises(kt.RestoreError, match="it is only written like a file of Keras"):
        kt.write_back(model, saved_npz(model), "x.weights.h5")


def saved_npz(model: keras.Model) -> str:
    np.savez("arrays.npz", **{v.path: value(v) for v in model.weights})
    return "arrays.npz"


def test_a_tf1_session_restores_what_was_written() -> None:
    prefix = WRITERS["TF1"](plain_model(1))
    assert isinstance(prefix, str)
    model = plain_model(5)
    os.mkdir("tuned")
    kt.write_back(model, prefix, "tuned/model.ckpt")
    wanted = {variable.path: value(variable) for variable in model.weights}
    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        variables = [tf1.get_variable(path, array.shape) for path, array in wanted.items()]
        tf1.train.Saver(variables).restore(session, "tuned/model.ckpt")
        assert_same(session.run(variables), [*wanted.values()])


def state_dict(**more: Any) -> dict[str, Any]:
    found = {k: torch.tensor(v) for k, v in tensors().items() if k != "global_step"}
    return {**found, **more}


def test_pytorch_loads_what_was_written() -> None:
    model = network()
    count = torch.tensor(3)
    torch.save(
        {"model": state_dict(**{"enc.bn.num_batches_tracked": count}), "epoch": 4, "optimizer": {}},
        "theirs.pth",
    )
    options = rules(model)
    options["rename"] = {f"model/{rule}": target for rule, target in options["rename"].items()}
    kt.restore(model, "theirs.pth", **options)
    report = kt.write_back(model, "theirs.pth", "ours.pth", **options)
    ours, theirs = (torch.load(path, weights_only=True) for path in ("ours.pth", "theirs.pth"))
    assert list(ours["model"]) == list(theirs["model"])
    assert ours["epoch"] == 4
    for key, tensor in theirs["model"].items():
        assert torch.equal(ours["model"][key], tensor)
    assert report.copied == ("model/enc.rotary.table", "model/enc.bn.num_batches_tracked")
    kt.restore(model, "theirs.pth", **options).save("plan.json")
    os.remove("theirs.pth")
    kt.write_back(model, "plan.json", "planned.pth", on_unexpected="ignore")
    planned = torch.load("planned.pth", weights_only=True)
    assert planned["epoch"] == 4
    assert "enc.rotary.table" not in planned["model"]
    assert planned["model"]["enc.bn.num_batches_tracked"] == 0


def test_shards_are_those_of_the_source() -> None:
    arrays = {k: v for k, v in tensors().items() if k != "global_step"}
    names = [*arrays]
    shards = {
        "model-00001-of-00002.safetensors": names[:5],
        "model-00002-of-00002.safetensors": names[5:],
    }
    Path("theirs").mkdir()
    for shard, keys in shards.items():
        saved(f"theirs/{shard}", {key: arrays[key] for key in keys})
    weight_map = {key: shard for shard, keys in shards.items() for key in keys}
    total = sum(array.nbytes for array in arrays.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    name = "model.safetensors.index.json"
    Path("theirs", name).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    model = network()
    kt.restore(model, f"theirs/{name}", **rules(model))
    Path("ours").mkdir()
    kt.write_back(model, f"theirs/{name}", f"ours/{name}", **rules(model))
    assert {p.name: p.read_bytes() for p in Path("ours").iterdir()} == {
        p.name: p.read_bytes() for p in Path("theirs").iterdir()
    }
    with pytest.raises(kt.RestoreError, match="would be replaced by one of"):
        kt.write_back(
            model, f"theirs/{name}", "theirs/tuned.index.json", overwrite=True, **rules(model)
        )
    os.remove(f"ours/{name}")
    with pytest.raises(kt.RestoreError, match=r"exists. Pass `overwrite=True`"):
        kt.write_back(model, f"theirs/{name}", f"ours/{name}", **rules(model))
    assert len([*Path("ours").iterdir()]) == 2


def test_a_hugging_face_directory_becomes_one() -> None:
    directory, model = hugging_face("bert", num_labels=5), network()
    Path(directory, "pytorch_model.bin").write_bytes(b"stale")
    kt.restore(model, directory, **rules(model))
    report = kt.write_back(model, directory, "tuned", **rules(model))
    assert any("pytorch_model.bin" in line for line in report.notes)
    names = {path.name for path in Path("tuned").iterdir()}
    assert names == {"config.json", "vocab.txt", "model.safetensors"}
    for name in names:
        assert Path("tuned", name).read_bytes() == Path(directory, name).read_bytes()
    randomise(model, 3)
    kt.write_back(model, directory, "tuned", overwrite=True, **rules(model))
    assert arrays_in("tuned")["head.bias"].tobytes() == value(model.weights[-1]).tobytes()
    kt.write_back(model, directory, directory, overwrite=True, **rules(model))
    assert Path(directory, "vocab.txt").exists()
    assert_equal_files(directory, "tuned")
    report = kt.write_back(network(3), directory, "new", shape="model", **rules(network(3)))
    assert any("config.json: `num_labels` is 5" in line for line in report.notes)
    kt.restore(model, directory, **rules(model)).save("plan.json")
    shutil.rmtree(directory)
    report = kt.write_back(model, "plan.json", "planned", on_unexpected="ignore")
    assert [path.name for path in Path("planned").iterdir()] == ["model.safetensors"]


def test_files_of_an_overwritten_directory_stay() -> None:
    directory, model = hugging_face("run"), network()
    kt.restore(model, directory, **rules(model))
    for name in ("train.py", ".git/HEAD", "checkpoint-5/optimizer.pt", "pytorch_model.bin"):
        path = Path(directory, name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    before = {path for path in Path(directory).rglob("*") if path.is_file()}
    randomise(model, 3)
    kt.write_back(model, directory, directory, overwrite=True, **rules(model))
    assert {path for path in Path(directory).rglob("*") if path.is_file()} == before
    assert Path(directory, ".git/HEAD").read_text() == ".git/HEAD"
    np.testing.assert_array_equal(arrays_in(directory)["head.bias"], value(model.weights[-1]))
    Path("file").touch()
    with pytest.raises(kt.RestoreError, match="is a file, so no directory can be written there"):
        kt.write_back(model, directory, "file", overwrite=True, **rules(model))


def test_older_checkpoints_of_a_directory_stay() -> None:
    model = plain_model(1)
    for number in (1, 2):
        checkpoint = tf.train.Checkpoint(model=model)
        checkpoint.write(f"tf/ck-{number}")
    Path("tf/checkpoint").write_text('model_checkpoint_path: "ck-2"\n')
    randomise(model, 4)
    kt.write_back(model, "tf", "tf", overwrite=True)
    assert {path.name for path in Path("tf").glob("*.index")} == {"ck-1.index", "ck-2.index"}
    again = plain_model(2)
    kt.restore(again, "tf")
    assert_same(weights(again), weights(model))
