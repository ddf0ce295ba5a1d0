"""Orbax directories written like others, and read by Orbax and Keras."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints import ArraysCheckpoint
from keras_trainops.checkpoints.formats.orbax_tree import NAME
from keras_trainops.checkpoints.formats.orbax_writer import write
from keras_trainops.checkpoints.storage.writing import UnwritableError
from tests.checkpoints.with_structure import WithStructure, content_like, rewrite
from tests.helpers import assert_same, make_everything, randomise, two_layers, weights

ocp = pytest.importorskip(
    "orbax.checkpoint", reason="orbax-checkpoint is not installed (the extra `orbax`)"
)

pytestmark = pytest.mark.once


def tree() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    half = rng.normal(size=4).astype(ml_dtypes.bfloat16)
    return {
        "params": {
            "dense": {"kernel": rng.normal(size=(3, 2)), "bias": np.ones(2, "float32")},
            "list": [half, np.int32(3), {"x": np.ones((1, 1))}],
            "nothing": {},
        },
        "step": 7,
        "note": "text",
        "none": None,
    }


def save(path: str, content: object, **options: object) -> str:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(os.path.abspath(path), content)
    return path


def load(path: str) -> Any:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(os.path.abspath(path))


def metadata(path: str) -> Any:
    return json.loads(Path(path, "_METADATA").read_text())


def entries(path: str) -> list[str]:
    """The files, but for those of TensorStore's databases, which have random names."""
    found = (str(file.relative_to(path)) for file in Path(path).rglob("*") if file.is_file())
    return sorted(name for name in found if "/d/" not in f"/{name}")


def assert_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    else:
        assert one == other


@pytest.mark.parametrize(
    "options",
    [{}, {"use_ocdbt": False}, {"use_zarr3": True}],
    ids=["database", "files", "zarr 3"],
)
def test_writes_a_tree_like_the_source(options: dict[str, Any]) -> None:
    save("old", tree(), **options)
    before = set(threading.enumerate())
    assert rewrite(write, "old", "new") == []
    assert set(threading.enumerate()) <= before
    assert sorted(os.listdir()) == ["new", "old"]
    assert_equal(load("new"), load("old"))
    assert metadata("new") == metadata("old")
    assert entries("new") == entries("old")
    same = Path("new/_CHECKPOINT_METADATA").read_text()
    assert same == Path("old/_CHECKPOINT_METADATA").read_text()
    with kt.open_checkpoint("new") as new, kt.open_checkpoint("old") as old:
        assert list(new) == list(old)


def test_leaves_out_tensors() -> None:
    save("old", tree())
    wanted = ("params/dense/kernel", "params/list/1")
    rewrite(write, "old", "new", lambda key: key in wanted)
    content = load("new")
    assert list(content["params"]["dense"]) == ["kernel"]
    assert content["params"]["list"] == [None, 3]  # positions stay
    with kt.open_checkpoint("new") as checkpoint:
        assert sorted(checkpoint) == sorted(wanted)


def save_steps(directory: str) -> None:
    with ocp.CheckpointManager(os.path.abspath(directory)) as manager:
        for step in (9, 10):
            state = {"w": np.full(3, float(step)), "opt_state": {"mu": np.ones(3)}}
            items = {
                "state": ocp.args.StandardSave(state),
                "ema": ocp.args.StandardSave({"w": np.full(3, step + 0.5)}),
                "extra": ocp.args.JsonSave({"a": 1}),
            }
            manager.save(step, args=ocp.args.Composite(**items))
        manager.wait_until_finished()


def test_writes_the_latest_step_of_a_manager() -> None:
    save_steps("old")
    assert rewrite(write, "old", "new") == ["Only the latest of 2 steps was written."]
    assert os.listdir("new") == ["10"]
    assert entries("new/10") == entries("old/10")
    with ocp.CheckpointManager(os.path.abspath("new")) as manager:
        assert manager.latest_step() == 10
        items = {"state": ocp.args.StandardRestore(), "extra": ocp.args.JsonRestore()}
        restored = manager.restore(10, args=ocp.args.Composite(**items))
    assert restored["extra"] == {"a": 1}
    assert restored["state"]["w"].tolist() == [10.0] * 3
    assert rewrite(write, "old/10", "step") == []
    assert entries("step") == entries("old/10")
    assert rewrite(write, "old/10/ema", "ema") == []
    assert load("ema")["w"].tolist() == [10.5] * 3


def test_leaves_out_trees_and_items() -> None:
    save_steps("old")
    content = content_like("old", lambda key: key.startswith("state"))
    shutil.rmtree("old")
    lines = write(Path("new"), content, {key: key for key in content})
    assert "The tree '10/ema' was left out." in lines
    assert any("'10/extra' was left out, as" in line for line in lines)
    handlers = json.loads(Path("new/10/_CHECKPOINT_METADATA").read_text())["item_handlers"]
    assert list(handlers) == ["state"]
    with kt.open_checkpoint("new") as checkpoint:
        assert sorted(checkpoint) == ["opt_state/mu", "w"]


def model(seed: int) -> keras.Model:
    keras_model = two_layers(seed)
    keras_model.compile(keras.optimizers.Adam(name="adam"), "mse")
    return keras_model


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore::ResourceWarning")
def test_keras_loads_what_is_written_like_its_callback() -> None:
    source, like = make_everything(model)
    for name, one in (("source", source), ("like", like)):
        callback = keras.callbacks.OrbaxCheckpoint(
            directory=os.path.abspath(name), save_on_background=False
        )
        one.fit(np.ones((4, 4)), np.ones((4, 2)), callbacks=[callback], verbose=0)
    with kt.open_checkpoint("source") as new, kt.open_checkpoint("like") as old:
        content = WithStructure({key: new[key] for key in old}, old.structure())
    assert write(Path("out"), content, {key: key for key in content}) == []
    assert entries("out") == entries("like")
    loaded = keras.saving.load_model(os.path.abspath("out"))
    assert_same(weights(loaded), weights(source))
    assert int(loaded.optimizer.iterations.numpy()) == int(source.optimizer.iterations.numpy())
    target = randomise(model(3), 3)
    kt.restore(target, "out")
    assert_same(weights(target), weights(source))


def test_writes_tensors_of_other_formats() -> None:
    arrays = {
        "net/wide": np.random.default_rng(0).normal(size=(600, 700)),  # more than one piece
        "net/layer.0.weight": np.ones(2, ml_dtypes.float8_e5m2),
        "big": np.arange(3, dtype=">f4"),
        "flag": np.array(True),
    }
    moved: list[int] = []
    content = ArraysCheckpoint(arrays, "arrays")
    assert write(Path("new.orbax"), content, {key: key for key in arrays}, moved.append) == []
    assert sum(moved) == sum(array.nbytes for array in arrays.values())
    assert os.listdir() == ["new.orbax"]
    with kt.open_checkpoint("new.orbax") as checkpoint:
        assert sorted(checkpoint) == sorted(arrays)
        for key, array in arrays.items():
            assert checkpoint.dtype(key) == array.dtype.newbyteorder("=")
            np.testing.assert_array_equal(checkpoint[key], array)
    save("old", tree())
    content = content_like("old", lambda key: "dense" in key)
    assert write(Path("renamed"), content, {key.upper(): key for key in content}) == [
        "The tree of the source was left out, as tensors have new names."
    ]
    assert list(load("renamed")["PARAMS"]["DENSE"]) == ["BIAS", "KERNEL"]


def refuses(match: str, content: Any, *keys: str, kind: type[Exception] = UnwritableError) -> None:
    with pytest.raises(kind, match=match):
        write(Path("out"), content, {key: key for key in keys})
    assert not Path("out").exists()


def test_refuses_what_orbax_cannot_store() -> None:
    arrays = ArraysCheckpoint(
        {
            **{name: np.ones(1) for name in ("a", "a/b", "a.b", "x//y")},
            "none": np.ones((0, 2)),
            "when": np.ones(1, "M8[s]"),
            "text": np.array(["x"]),
        },
        "arrays",
    )
    refuses("'a/b' in a tree: it is a tensor and a group", arrays, "a", "a/b")
    refuses("'a/b' in a tree: it is|'a' in a tree: it is", arrays, "a/b", "a")
    refuses("cannot store 'a.b': give it another", arrays, "a/b", "a.b")
    refuses(r"cannot store 'x\.\.y': give", arrays, "x//y")
    refuses("'none', which has no elements", arrays, "none")
    refuses("no dtype for 'when', which is datetime64", arrays, "when")
    refuses("no dtype for 'text', which is <U1", arrays, "text")


def test_checks_the_structure() -> None:
    save("old", tree())
    content = content_like("old")
    structure = json.loads(json.dumps(content.structure()))
    added = WithStructure({"w": np.ones(1)}, structure)
    refuses("'w' has no place in the trees", added, "w")
    (described,) = structure[NAME]["trees"]
    (leaf,) = [leaf for leaf in described["leaves"] if leaf["key"] == "params/list/1"]
    leaf["path"][-1][0] = "999999999999"
    refuses("Position 999999999999", WithStructure(dict(content), structure), "params/list/1")
    described["place"] = "../outside"
    away = WithStructure(dict(content), structure)
    refuses("leads out of it", away, "step", kind=kt.RestoreError)


def test_copies_only_items_of_an_orbax_checkpoint() -> None:
    save("old", tree())
    content = content_like("old")
    home = Path("home")
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id").touch()
    shutil.copytree("old", "home/other")
    for directory in (home, home / "other"):  # the second is a checkpoint without this item
        structure = json.loads(json.dumps(content.structure()))
        structure[NAME].update(source=str(directory.absolute()), items=[".ssh"])
        hostile = WithStructure(dict(content), structure)
        (line,) = write(Path("out"), hostile, {key: key for key in content})
        assert "'.ssh' was left out, as " in line
        assert not Path("out/.ssh").exists()
        shutil.rmtree("out")


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    content = ArraysCheckpoint({"w": np.ones(1)}, "arrays")
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    refuses(r"pip install 'keras-trainops\[orbax\]'", content, "w", kind=kt.RestoreError)
