"""Orbax directories written by JAX programs and by Keras's callback."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, randomise, refused, two_layers, weights

ocp = pytest.importorskip(
    "orbax.checkpoint", reason="orbax-checkpoint is not installed (the extra `orbax`)"
)

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore::ResourceWarning"),
]


def tree(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    dense = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2).astype("float32")}
    half = rng.normal(size=4).astype(ml_dtypes.bfloat16)
    return {"params": {"dense": dense, "list": [half, np.int32(3)]}, "step": 7, "note": "text"}


def save(path: str, content: object, **options: object) -> str:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(os.path.abspath(path), content)
    return path


@pytest.mark.parametrize(
    "options",
    [{}, {"use_ocdbt": False}, {"use_zarr3": True}],
    ids=["database", "files", "zarr 3"],
)
def test_tree_is_a_mapping_of_its_arrays(options: dict[str, Any]) -> None:
    content = tree()
    with kt.open_checkpoint(save("tree", content, **options)) as checkpoint:
        expected = {
            "params/dense/kernel": content["params"]["dense"]["kernel"],
            "params/dense/bias": content["params"]["dense"]["bias"],
            "params/list/0": content["params"]["list"][0],
            "params/list/1": content["params"]["list"][1],
            "step": np.asarray(7),
        }
        assert sorted(checkpoint) == sorted(expected)
        for key, array in expected.items():
            assert checkpoint.shape(key) == array.shape
            assert checkpoint.dtype(key) == array.dtype
            np.testing.assert_array_equal(checkpoint[key], array)


def test_opens_the_latest_step_of_a_manager() -> None:
    with ocp.CheckpointManager(os.path.abspath("run")) as manager:
        for step in (9, 10):
            state = {"w": np.full(3, float(step)), "opt_state": {"mu": np.ones(3)}}
            items = {
                "state": ocp.args.StandardSave(state),
                "extra": ocp.args.JsonSave({"a": 1}),
            }
            manager.save(step, args=ocp.args.Composite(**items))
        manager.wait_until_finished()
    for path in ("run", "run/10", "run/10/state"):
        with kt.open_checkpoint(path) as checkpoint:
            assert set(checkpoint) - checkpoint.training_state == {"w"}
            assert checkpoint["w"].tolist() == [10.0] * 3
    with kt.open_checkpoint("run/9") as checkpoint:
        assert checkpoint["w"].tolist() == [9.0] * 3


def test_prefixes_keys_with_the_tree() -> None:
    save("run/1/ema", {"w": np.ones(2)})
    save("run/1/state", {"w": np.zeros(2)})
    with kt.open_checkpoint("run") as checkpoint:
        assert sorted(checkpoint) == ["ema/w", "state/w"]


def model(seed: int) -> keras.Model:
    inputs = keras.Input((4,))
    x = keras.layers.Dropout(0.1)(keras.layers.Dense(3, name="trunk")(inputs))
    x = keras.layers.BatchNormalization(name="norm")(x)
    return randomise(keras.Model(inputs, keras.layers.Dense(2, name="head")(x)), seed)


def test_reads_the_callback_of_keras() -> None:
    source, target = model(1), model(2)
    source.compile("adam", "mse")
    callback = keras.callbacks.OrbaxCheckpoint(
        directory=os.path.abspath("keras"), save_on_background=False
    )
    source.fit(np.ones((4, 4)), np.ones((4, 2)), callbacks=[callback], verbose=0)
    report = kt.restore(target, "keras")
    assert_same(weights(target), weights(source))
    assert report.unexpected == ()
    assert any("momentum" in key for key in report.slots)


def test_refuses_damaged_files() -> None:
    target = two_layers()
    save("tree", {"trunk": {"bias": np.ones(3)}})
    good = Path("tree/_METADATA").read_text()
    for bad in ("", "{", "[]", '{"tree_metadata": {"x": {}}}', '{"tree_metadata": {}}'):
        Path("tree/_METADATA").write_text(bad)
        with refused(target, "'tree'", kt.RestoreError):
            kt.restore(target, "tree")
    Path("tree/_METADATA").write_text(good)
    for part in (*Path("tree").rglob("d/*"), Path("tree/manifest.ocdbt")):
        part.write_bytes(part.read_bytes()[:-9])
    with refused(target, "'tree'", kt.RestoreError):
        kt.restore(target, "tree")
    shutil.rmtree("tree")


@pytest.mark.parametrize("name", ["..", "../outside", "/etc", "a/../../b"])
def test_refuses_names_that_lead_elsewhere(name: str) -> None:
    save("tree", {"x": np.ones(3)}, use_ocdbt=False)
    metadata = json.loads(Path("tree/_METADATA").read_text())
    (entry,) = metadata["tree_metadata"].values()
    entry["key_metadata"] = [{"key": name, "key_type": 2}, {"key": "x", "key_type": 2}]
    Path("tree/_METADATA").write_text(json.dumps(metadata))
    with pytest.raises(kt.RestoreError, match=r"contains the name .*, which leads out of it"):
        kt.open_checkpoint("tree")


def test_refuses_an_array_that_claims_terabytes() -> None:
    save("tree", {"x": np.ones(3)}, use_ocdbt=False)
    header = Path("tree/x/.zarray")
    header.write_text(header.read_text().replace("[3]", "[4398046511104]"))
    with (
        kt.open_checkpoint("tree") as checkpoint,
        pytest.raises(kt.RestoreError, match="'x' claims 35,184,372,088,832 bytes"),
    ):
        checkpoint["x"]


def test_says_what_to_install_without_tensorstore(monkeypatch: pytest.MonkeyPatch) -> None:
    save("tree", tree())
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(kt.RestoreError, match=r"pip install 'keras-trainops\[orbax\]'"):
        kt.open_checkpoint("tree")


def test_refuses_a_tree_without_arrays() -> None:
    save("tree", {"note": "text"})
    with pytest.raises(kt.RestoreError, match="contains no arrays"):
        kt.open_checkpoint("tree")
