"""Nothing is written, and `like` and `out` stay what they were."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import randomise, two_layers
from tests.writing.helpers import BFLOAT16, arrays_in, network, rules, saved, tensors

pytestmark = pytest.mark.once


@contextlib.contextmanager
def nothing_written(match: str, kind: type[Exception] = kt.RestoreError) -> Iterator[None]:
    """The block raises, and every file is what it was."""

    def files() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()}

    before = files()
    with pytest.raises(kind, match=match):
        yield
    assert files() == before


def test_the_source_is_not_overwritten_by_mistake() -> None:
    theirs, model = saved("theirs.npz"), network()
    os.symlink("theirs.npz", "link.npz")
    for out in (theirs, "./theirs.npz", "link.npz", os.path.abspath(theirs), Path(theirs)):
        with nothing_written(r"is `like` itself. Pass `overwrite=True`"):
            kt.write_back(model, theirs, out, **rules(model))
    Path("other.npz").write_text("precious")
    with nothing_written("'other.npz' exists. Pass `overwrite=True`"):
        kt.write_back(model, theirs, "other.npz", **rules(model))
    report = kt.write_back(model, theirs, theirs, overwrite=True, **rules(model))
    assert report.copied == ("enc.rotary.table",)
    np.testing.assert_array_equal(
        arrays_in(theirs)["enc.rotary.table"], tensors()["enc.rotary.table"]
    )
    Path("project").mkdir()
    Path("project/thesis.txt").touch()
    with nothing_written("is a directory, so no file can be written there"):
        kt.write_back(model, theirs, "project", overwrite=True, **rules(model))


def test_an_overwritten_source_is_whole_or_unchanged() -> None:
    theirs, model = saved("theirs.npz"), network()
    model.get_layer("head").bias.assign(np.full(5, np.nan))
    with nothing_written(r"head\.bias: 'head/bias' has 5 values that are NaN or infinite"):
        kt.write_back(model, theirs, theirs, overwrite=True, **rules(model))


def test_all_values_that_do_not_fit_are_listed() -> None:
    theirs, model = saved("theirs.safetensors", tensors(dtype="float16")), network()
    model.get_layer("head").kernel.assign(np.full((6, 5), 1e5))
    model.get_layer("norm").gamma.assign(np.full(6, -1e6))
    pattern = (
        r"(?s)enc\.norm\.weight: 'norm/gamma' has values outside the range of float16.*"
        r"head\.weight: 'head/kernel' has values outside the range of float16"
    )
    with nothing_written(pattern):
        kt.write_back(model, theirs, "ours.safetensors", **rules(model))
    theirs = saved("bf.safetensors", tensors(dtype=BFLOAT16))
    kt.write_back(model, theirs, "fine.safetensors", **rules(model))  # 1e6 fits
    model.get_layer("norm").gamma.assign(np.full(6, 3.4e38))
    with nothing_written("outside the range of bfloat16"):
        kt.write_back(model, theirs, "ours.safetensors", **rules(model))


def test_floats_do_not_become_integers() -> None:
    model = two_layers()
    theirs = saved("theirs.npz", {"trunk/bias": np.arange(3)})
    kt.restore(model, theirs, on_missing="ignore")
    kt.write_back(model, theirs, "ours.npz", on_missing="ignore")  # still whole numbers
    assert arrays_in("ours.npz")["trunk/bias"].dtype == "int64"
    model.get_layer("trunk").bias.assign([0.5, 1.0, 2.0])
    with nothing_written("trunk/bias' has values outside the range of int64"):
        kt.write_back(model, theirs, "new.npz", on_missing="ignore")


def test_two_variables_may_not_claim_a_tensor_with_different_values() -> None:
    theirs = saved("theirs.npz", {"bias": np.ones(3, "float32")})
    inputs = keras.Input((4,))
    twins = [keras.layers.Dense(3, name=name)(inputs) for name in ("one", "two")]
    model = randomise(keras.Model(inputs, twins, name="twins"), 0)
    options: dict[str, Any] = {
        "rename": {"bias": ["one/bias", "two/bias"]},
        "include": ["one/bias", "two/bias"],
    }
    message = "bias: 'one/bias' and 'two/bias' lead to it, but have different values"
    with nothing_written(message):
        kt.write_back(model, theirs, "ours.npz", **options)
    kt.restore(model, theirs, **options)
    kt.write_back(model, theirs, "ours.npz", **options)


def test_a_dtype_that_the_format_lacks() -> None:
    theirs, model = saved("theirs.safetensors", tensors(dtype=BFLOAT16)), network()
    with nothing_written(r"Cannot write '.*ours.npz': .npz has no dtype for .* bfloat16"):
        kt.write_back(model, theirs, "ours.npz", **rules(model))


def test_a_model_that_is_not_built() -> None:
    theirs, model = saved("theirs.npz"), keras.Sequential([keras.layers.Dense(2)])
    with nothing_written("has no variables yet"):
        kt.write_back(model, theirs, "ours.npz")
    with nothing_written("`model` must be a Keras model", ValueError):
        kt.write_back("model", theirs, "ours.npz")


def test_arguments_are_checked() -> None:
    theirs, model = saved("theirs.npz"), network()
    for argument in ("shape", "lora", "on_unexpected", "on_missing"):
        with nothing_written(f"`{argument}` must be one of", ValueError):
            kt.write_back(model, theirs, "ours.npz", **{argument: "other"}, **rules(model))
    with nothing_written("`report` must be the report of a restore", ValueError):
        kt.write_back(model, theirs, "ours.npz", report=7)
    with nothing_written("There is no checkpoint at 'missing.npz'"):
        kt.write_back(model, "missing.npz", "ours.npz")
    with nothing_written("There is no directory '.*nowhere' to write 'nowhere/ours.npz' to"):
        kt.write_back(model, theirs, "nowhere/ours.npz", **rules(model))
    with nothing_written("matches no key"):
        kt.write_back(model, theirs, "ours.npz", rename={"nothing": "head/bias"})


def test_a_disk_that_fills() -> None:
    """A limit on the size of files stands for the disk's."""
    saved("theirs.npz")
    script = """
        import resource, signal
        import keras_trainops as kt
        from tests.writing.helpers import network, rules
        model = network()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        try:
            kt.write_back(model, "theirs.npz", "ours.npz", **rules(model))
        except kt.RestoreError as error:
            print(error)
    """
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ours.npz': File too large" in run.stdout
    assert "Nothing was changed." in run.stdout
    assert [path.name for path in Path().iterdir()] == ["theirs.npz"]


def test_a_disk_without_room_is_found_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs, model = saved("theirs.npz"), network()
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with nothing_written(r"too full: \d+ bytes are needed, and 10 are free"):
        kt.write_back(model, theirs, "ours.npz", **rules(model))
