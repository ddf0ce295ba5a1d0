from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import keras_trainops as kt
from keras_trainops.checkpoints import Format
from keras_trainops.cli import main
from tests.cli.command_line import THEIRS, Captured, document, stderr_of
from tests.helpers import assert_same, randomise, two_layers, value, weights

pytestmark = pytest.mark.once


def test_convert_to_safetensors(capsys: Captured) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "odd": np.arange(3, dtype="int8"),
        "flag": np.array(True),
        "net/wide": rng.normal(size=(600, 700)),  # more than one piece
        "half": rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
        "none": np.ones((0, 2), "float32"),
        "größe": np.ones((2, 1), "float16"),
    }
    safetensors.numpy.save_file(arrays, "a.safetensors")
    assert main(["convert", "a.safetensors", "b.safetensors"]) == 0
    assert capsys.readouterr().out.startswith("b.safetensors: 6 tensors, 3.36 MB")
    found = safetensors.numpy.load_file("b.safetensors")
    assert found.keys() == arrays.keys()
    for key, array in arrays.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)
    assert main(["diff", "a.safetensors", "b.safetensors"]) == 0


def test_npz_leaves_out_training_state(theirs: str, capsys: Captured) -> None:
    safetensors.numpy.save_file(THEIRS, "a.safetensors")
    assert document(capsys, 0, "convert", "a.safetensors", "b.npz")["tensors"] == 4
    assert set(np.load("b.npz")) == set(THEIRS) - {"global_step"}
    assert main(["convert", "a.safetensors", "all.npz", "--all"]) == 0
    found = dict(np.load("all.npz", allow_pickle=False))
    assert found.keys() == THEIRS.keys()
    for key, array in THEIRS.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)


def test_converts_to_a_registered_format(theirs: str, capsys: Captured) -> None:
    def write(path: Path, checkpoint: Any, keys: Any, progress: Any) -> None:
        path.write_text("".join(f"{name}={checkpoint.shape(key)}\n" for name, key in keys.items()))

    assert main(["convert", theirs, "shapes.txt"]) == 2
    assert (
        "OUT must end in one of .ckpt, .orbax, .weights.h5, .keras, .pt, .pth, .bin, .npz, "
        ".safetensors. Received: 'shapes.txt'" in capsys.readouterr().err
    )
    kt.register_format(Format("lists", lambda path: False, print, ".txt", write))
    assert main(["convert", theirs, "shapes.txt"]) == 0
    assert "net/l1/w=(" in Path("shapes.txt").read_text()


def test_converts_byte_order_and_column_order(capsys: Captured) -> None:
    np.savez("a.npz", big=np.arange(6, dtype=">f4").reshape(2, 3), f=np.ones((2, 3), order="F"))
    assert main(["convert", "a.npz", "b.safetensors"]) == 0
    found = safetensors.numpy.load_file("b.safetensors")
    np.testing.assert_array_equal(found["big"], np.arange(6).reshape(2, 3))
    assert found["big"].dtype == "float32"
    assert main(["diff", "a.npz", "b.safetensors"]) == 0  # byte order does not count


def test_writes_a_tensorflow_checkpoint(theirs: str, capsys: Captured) -> None:
    import tensorflow as tf

    assert main(["convert", theirs, "new.ckpt", "--all"]) == 0
    assert capsys.readouterr().out.startswith(f"new.ckpt: {len(THEIRS)} tensors, ")
    read = tf.train.load_checkpoint("new.ckpt")
    for key, array in THEIRS.items():
        np.testing.assert_array_equal(read.get_tensor(key), array)
    assert "'new.ckpt' exists" in stderr_of(capsys, 1, "convert", theirs, "new.ckpt")
    assert main(["convert", theirs, "new.ckpt", "--force"]) == 0
    assert "global_step" not in tf.train.load_checkpoint("new.ckpt").get_variable_to_shape_map()
    tf.train.Checkpoint(step=tf.Variable(3, name="step")).write("objects")
    assert main(["convert", "objects", "renamed.ckpt", "--rename", "step => steps"]) == 0
    assert "The object graph was left out" in capsys.readouterr().err


def test_writes_an_orbax_directory(theirs: str, capsys: Captured) -> None:
    pytest.importorskip("orbax.checkpoint", reason="the extra `orbax` is not installed")
    assert main(["convert", theirs, "new.orbax", "--all"]) == 0
    assert main(["diff", theirs, "new.orbax"]) == 0
    assert main(["convert", theirs, "new.orbax", "--all", "--force"]) == 0
    Path("project").mkdir()
    Path("project/thesis.txt").touch()
    Path("project").rename("thesis.orbax")  # no other directory is deleted
    assert main(["convert", theirs, "thesis.orbax", "--all", "--force"]) == 1
    assert Path("thesis.orbax/thesis.txt").exists()
    files = [path for path in Path("new.orbax").rglob("*") if path.is_file()]
    size = document(capsys, 0, "convert", theirs, "other.orbax", "--all")["bytes"]
    assert 0 < size <= 2 * sum(path.stat().st_size for path in files)


def test_renames_tensors(theirs: str, capsys: Captured) -> None:
    rules = ["--rename", r"net/l(\d)/(.*) => layer\g<1-1>.\2", "--rename", "layer.*=>"]
    assert "matches no key" in stderr_of(capsys, 1, "convert", theirs, "b.npz", *rules)
    rules[-1] = "net.*=>"
    assert "never applies" in stderr_of(capsys, 1, "convert", theirs, "b.npz", *rules)
    assert main(["convert", theirs, "b.npz", *rules[:2]]) == 0
    assert set(np.load("b.npz")) == {"layer0.w", "layer0.b", "layer1.w", "layer1.b"}
    np.testing.assert_array_equal(np.load("b.npz")["layer1.w"], THEIRS["net/l2/w"])
    crowded = ["--rename", "net/l./w => same"]
    assert "Several keys would be named 'same'" in stderr_of(
        capsys, 1, "convert", theirs, "c.npz", *crowded
    )
    assert not Path("c.npz").exists()


@pytest.mark.parametrize("out", ["new.weights.h5", "new.keras", "new.npz", "new.safetensors"])
def test_writes_the_weights_of_a_model(model: str, theirs: str, out: str, capsys: Captured) -> None:
    rules = [
        *("--rename", r"net/(l\d)/w => \1/kernel", "--rename", r"net/(l\d)/b => \1/bias"),
    ]
    assert "leads to no variable of the model" in stderr_of(
        capsys, 1, "convert", theirs, out, "--model", model, *rules
    )
    assert not Path(out).exists()
    rules = [
        option
        for i, layer in ((1, "trunk"), (2, "head"))
        for leaf, name in (("w", "kernel"), ("b", "bias"))
        for option in ("--rename", f"net/l{i}/{leaf} => {layer}/{name}")
    ]
    assert main(["convert", theirs, out, "--model", model, *rules]) == 0
    expected = [array for key, array in THEIRS.items() if key != "global_step"]
    if out.endswith(".h5"):
        target = two_layers(seed=5)
        target.load_weights(out)
        assert_same(weights(target), expected)
    elif out.endswith(".keras"):
        assert_same(weights(keras.saving.load_model(out)), expected)
    else:
        load = np.load if out.endswith(".npz") else safetensors.numpy.load_file
        found = dict(load(out))
        assert list(map(str, sorted(found))) == [
            *("head/bias", "head/kernel", "trunk/bias", "trunk/kernel")
        ]
        names = ("trunk/kernel", "trunk/bias", "head/kernel", "head/bias")
        assert_same([found[name] for name in names], expected)


@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
def test_without_a_model_files_of_keras_are_written_like_others(
    model: str, theirs: str, ending: str, capsys: Captured
) -> None:
    source = keras.saving.load_model(model)
    source.save_weights("model.weights.h5")
    assert main(["convert", f"model{ending}", f"new{ending}"]) == 0
    target = two_layers(seed=5)
    kt.restore(target, f"new{ending}")
    assert_same(weights(target), weights(source))
    message = stderr_of(capsys, 1, "convert", theirs, f"other{ending}")
    assert "only written like" in message
    assert not Path(f"other{ending}").exists()


def test_selection_keeps_other_values_of_the_model(
    model: str, theirs: str, capsys: Captured
) -> None:
    own = weights(keras.saving.load_model(model))
    rules = ["--rename", "net/l1/w => trunk/kernel", "--rename", "net/l1/b => trunk/bias"]
    options = ["--model", model, *rules, "--include", "trunk"]
    assert main(["convert", theirs, "new.weights.h5", *options]) == 0
    target = randomise(two_layers(), 9)
    target.load_weights("new.weights.h5")
    np.testing.assert_array_equal(value(target.weights[0]), THEIRS["net/l1/w"])
    assert_same(weights(target)[2:], own[2:])


def test_overwrites_only_with_force(theirs: str, capsys: Captured) -> None:
    Path("b.npz").write_text("precious")
    assert "'b.npz' exists. Overwrite it with --force." in stderr_of(
        capsys, 1, "convert", theirs, "b.npz"
    )
    assert Path("b.npz").read_text() == "precious"
    assert main(["convert", theirs, "b.npz", "--force"]) == 0
    assert len(np.load("b.npz")) == 4
    assert main(["convert", "b.npz", "b.npz", "--force"]) == 0  # even onto itself
    assert len(np.load("b.npz")) == 4


def test_writes_to_the_target_of_a_link(theirs: str, capsys: Captured) -> None:
    Path("far").mkdir()
    Path("far/b.npz").write_text("precious")
    Path("link.npz").symlink_to("far/b.npz")
    Path("dangling.npz").symlink_to("far/new.npz")
    for link, target in (("link.npz", "far/b.npz"), ("dangling.npz", "far/new.npz")):
        assert "exists. Overwrite it" in stderr_of(capsys, 1, "convert", theirs, link)
        assert main(["convert", theirs, link, "--force"]) == 0
        assert Path(link).is_symlink()
        assert len(np.load(target)) == 4
    assert sorted(path.name for path in Path("far").iterdir()) == ["b.npz", "new.npz"]


def test_refuses_a_directory(theirs: str, capsys: Captured) -> None:
    Path("b.npz").mkdir()
    for options in ([], ["--force"]):
        error = stderr_of(capsys, 1, "convert", theirs, "b.npz", *options)
        assert error == "'b.npz' is a directory.\n"
    assert sorted(path.name for path in Path().iterdir()) == ["b.npz", theirs]


@pytest.mark.parametrize("name", ["a/../b", "/abs", "..", "a\\\\..\\\\b"])
def test_refuses_names_that_lead_elsewhere(theirs: str, capsys: Captured, name: str) -> None:
    rules = ["--rename", f"net/l1/w => {name}"]
    for out in ("b.npz", "b.safetensors"):
        assert "No tensor may be named" in stderr_of(capsys, 1, "convert", theirs, out, *rules)
        assert not Path(out).exists()


def test_refuses_the_name_of_the_metadata(capsys: Captured) -> None:
    np.savez("a.npz", __metadata__=np.ones(3), w=np.ones(2))
    message = stderr_of(capsys, 1, "convert", "a.npz", "b.safetensors")
    assert "cannot store a tensor named '__metadata__'" in message
    assert not Path("b.safetensors").exists()
    rules = ["--rename", "__metadata__ => metadata"]
    assert main(["convert", "a.npz", "b.safetensors", *rules]) == 0
    assert set(safetensors.numpy.load_file("b.safetensors")) == {"metadata", "w"}


def test_refuses_values_that_do_not_fit(capsys: Captured) -> None:
    layers = [keras.Input((300,)), keras.layers.Dense(300, name="d")]
    keras.Sequential(layers).save("m.keras")
    arrays = {"d/bias": np.full(300, np.nan), "d/kernel": np.ones((300, 300))}
    np.savez("nan.npz", **arrays)
    message = stderr_of(capsys, 1, "convert", "nan.npz", "o.npz", "--model", "m.keras")
    assert "has 300 values that are NaN or infinite" in message
    damaged = bytearray(Path("nan.npz").read_bytes())
    damaged[-1000] ^= 1  # in the values of the kernel
    Path("damaged.npz").write_bytes(damaged)
    options = ["--model", "m.keras", "--exclude", "bias"]
    message = stderr_of(capsys, 2, "convert", "damaged.npz", "o.npz", *options)
    assert "Cannot read 'd/kernel' from 'damaged.npz'" in message
    assert not Path("o.npz").exists()


def test_failure_leaves_nothing_behind(capsys: Captured) -> None:
    arrays = {"a": np.ones(3, "float32"), "b": np.ones(3, ml_dtypes.bfloat16)}
    safetensors.numpy.save_file(arrays, "a.safetensors")
    message = stderr_of(capsys, 1, "convert", "a.safetensors", "b.npz")
    assert ".npz has no dtype for 'b', which is bfloat16" in message
    np.savez("a.npz", a=np.ones(3), b=np.ones(70_000))
    damaged = bytearray(Path("a.npz").read_bytes())
    damaged[-1000] ^= 1  # in the values of `b`
    Path("a.npz").write_bytes(damaged)
    Path("b.safetensors").write_text("precious")
    message = stderr_of(capsys, 2, "convert", "a.npz", "b.safetensors", "--force")
    assert "Cannot read 'b' from 'a.npz'" in message
    assert Path("b.safetensors").read_text() == "precious"
    assert sorted(p.name for p in Path().iterdir()) == ["a.npz", "a.safetensors", "b.safetensors"]


def test_converts_to_a_pytorch_state_dict(theirs: str, capsys: Captured) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (the extra `torch`)")
    for name in ("b.pt", "b.pth", "b.bin"):
        assert main(["convert", theirs, name]) == 0
        found = torch.load(name, weights_only=True)
        assert type(found) is dict
        assert found.keys() == THEIRS.keys() - {"global_step"}
        for key, tensor in found.items():
            np.testing.assert_array_equal(tensor.numpy(), THEIRS[key])
