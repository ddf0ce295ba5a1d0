"""PyTorch files written like others: `torch.load(weights_only=True)` finds the same in both."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats import sharded
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.checkpoints.formats.torch_writing import write
from keras_trainops.checkpoints.forwarding import Restructured
from keras_trainops.checkpoints.storage.writing import UnwritableError

torch = pytest.importorskip("torch", reason="torch is not installed (the extra `torch`)")

pytestmark = pytest.mark.once


def loaded(path: str | Path) -> Any:
    """Load a file, after its checksums have been verified."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    return torch.load(path, weights_only=True)


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.requires_grad == expected.requires_grad
        assert found.detach().numpy(force=True).tobytes() == expected.numpy(force=True).tobytes()
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_equal(found[key], value)
        if isinstance(expected, OrderedDict):
            assert_equal(vars(found), vars(expected))
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected or (math.isnan(found) and math.isnan(expected))


def weights_of(checkpoint: Checkpoint) -> dict[str, str]:
    return {key: key for key in checkpoint if not key.startswith("optimizer")}


def rewritten(path: str, keys: Callable[[Checkpoint], dict[str, str]] = weights_of) -> list[str]:
    """Write `new.pt` like a file, with a structure from JSON; return the lines for the user."""
    with kt.open_checkpoint(path) as like:
        stored = Restructured(like, json.loads(json.dumps(like.structure())))
        counts: list[int] = []
        lines = write(Path("new.pt"), stored, keys(like), counts.append)
        assert sum(counts) == sum(like.nbytes(key) for key in keys(like).values())
        return lines


def training_checkpoint() -> dict[str, Any]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "arch": "größe",
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": (0.5, None, True, math.inf, math.nan, [1 << 100, "x"]),
        "scheduler": {"last_epoch": 3, 7: "seven", "empty": []},
        "shape": torch.Size([2, 3]),
        "ema": [torch.ones(2), {"shadow": torch.zeros(3)}],
    }


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
def test_has_the_containers_and_values_of_its_source(new: bool) -> None:
    content = training_checkpoint()
    torch.save(content, "w.pt", _use_new_zipfile_serialization=new)
    assert rewritten("w.pt") == []
    del content["optimizer"]
    assert_equal(loaded("new.pt"), content)
    assert vars(loaded("new.pt")["model"])["_metadata"]["1"] == {"version": 2}


def test_keeps_training_state_that_is_asked_for() -> None:
    torch.save(training_checkpoint(), "w.pt")
    assert rewritten("w.pt", lambda like: {key: key for key in like}) == []
    assert_equal(loaded("new.pt"), loaded("w.pt"))


@pytest.mark.parametrize(
    "dtype",
    [
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
        *("int64", "int32", "int16", "int8", "uint8", "uint16", "bool", "complex64", "complex128"),
    ],
)
def test_keeps_every_dtype(dtype: str) -> None:
    tensor = (torch.arange(6).reshape(2, 3) - 2).to(torch.int8).to(getattr(torch, dtype))
    content = {"x": tensor, "turned": tensor.T, "scalar": tensor[0, 1], "none": tensor[:0]}
    torch.save(content, "w.pt")
    rewritten("w.pt")
    found = loaded("new.pt")
    assert list(found) == list(content)
    for key, expected in content.items():
        assert found[key].dtype == expected.dtype
        assert found[key].is_contiguous()
        assert torch.equal(found[key].to(torch.complex64), expected.to(torch.complex64))


def test_keeps_parameters_and_separates_shared_memory() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    content = {"a": weight, "tied": weight, "b": frozen, "c": torch.zeros(1).requires_grad_()}
    torch.save(content, "w.pt")
    rewritten("w.pt")
    assert_equal(loaded("new.pt"), content)


@pytest.mark.parametrize("content", [torch.ones(2, 3), [torch.ones(2), 3], (torch.ones(1),)])
def test_the_root_may_be_anything(content: Any) -> None:
    torch.save(content, "w.pt")
    rewritten("w.pt")
    assert_equal(loaded("new.pt"), content)


def test_says_what_cannot_be_kept() -> None:
    content = {"x": torch.ones(2), "set": {1}, "inner": [b"bytes", torch.float16, "kept"]}
    torch.save(content, "w.pt")
    expected = "Left out, as they are neither tensors nor plain values: set, inner/0, inner/1."
    assert rewritten("w.pt") == [expected]
    assert_equal(loaded("new.pt"), {"x": torch.ones(2), "inner": [None, None, "kept"]})


def test_renames_within_a_container() -> None:
    content = {"epoch": 3, "model": {"a": torch.ones(1), "b": torch.zeros(2), "c": torch.ones(3)}}
    torch.save(content, "w.pt")
    keys = {"model/b": "model/a", "model/a": "model/b", "model/twice": "model/a"}
    assert rewritten("w.pt", lambda like: keys) == []
    model = {"b": torch.ones(1), "twice": torch.ones(1), "a": torch.zeros(2)}
    assert_equal(loaded("new.pt"), {"epoch": 3, "model": model})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a", "'a' is not in the container that has 'model/a'"),
        ("model/epoch", "'model/epoch' is the name of another value"),
    ],
)
def test_is_a_dict_of_tensors_if_a_name_leads_elsewhere(name: str, reason: str) -> None:
    torch.save({"model": {"epoch": 3, "a": torch.ones(1), "b": torch.zeros(2)}}, "w.pt")
    (line,) = rewritten("w.pt", lambda like: {"model/b": "model/b", name: "model/a"})
    assert line == f"The new file is a plain dict of tensors, without other values: {reason}."
    assert_equal(loaded("new.pt"), {"model/b": torch.zeros(2), name: torch.ones(1)})


def test_is_a_dict_of_tensors_for_other_sources() -> None:
    arrays = {"a/b": np.ones((2, 3), ml_dtypes.bfloat16), "c": np.arange(3, dtype=">i4")}
    write(Path("new.pt"), ArraysCheckpoint(arrays), {"x": "a/b", "c": "c"})
    expected = {"x": torch.ones(2, 3).bfloat16(), "c": torch.arange(3, dtype=torch.int32)}
    found = loaded("new.pt")
    assert list(found) == ["x", "c"]
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_refuses_a_dtype_that_pytorch_lacks() -> None:
    with pytest.raises(UnwritableError, match=r"no dtype for 'x', which is <U4"):
        write(Path("new.pt"), ArraysCheckpoint({"x": np.array(["text"])}), {"x": "x"})
    assert not Path("new.pt").exists()


@pytest.mark.parametrize(
    "tree", [{"dict": 3}, {"dict": [["x"]]}, {"dict": {"x": {"tensor": []}}}, {"other": []}]
)
def test_refuses_the_structure_of_a_damaged_plan(tree: Any) -> None:
    structure = {"torch": {"tree": {"tuple": [tree, {"tensor": "x"}]}, "omitted": []}}
    edited = Restructured(ArraysCheckpoint({"x": np.ones(1)}), structure)
    with pytest.raises(UnwritableError, match="The structure of the source is damaged"):
        write(Path("new.pt"), edited, {"x": "x"})


def test_exploding_and_deep_values_are_left_out() -> None:
    empty: Any = ["text"]
    for _ in range(30):
        empty = [empty, empty]
    deep: Any = []
    for _ in range(80):
        deep = [deep]
    text = "long" * 1000
    content = {"x": torch.ones(1), "deep": deep, "many": [text] * 5000, "empty": empty, "n": 3}
    torch.save(content, "w.pt")
    (line,) = rewritten("w.pt")
    assert line.startswith("Left out, as they are neither tensors nor plain values: deep/0/")
    assert line.endswith(", ….")
    found = loaded("new.pt")
    kept = found["many"].index(None)
    assert kept == (1 << 24) // len(text) - 1
    assert found["many"] == [text] * kept + [None] * (5000 - kept)
    assert list(found) == ["x", "deep", "many"]


def test_says_what_to_install_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnwritableError, match=r"pip install --upgrade 'keras-trainops\[torch\]'"):
        write(Path("new.pt"), ArraysCheckpoint({"x": np.ones(1)}), {"x": "x"})


def test_writes_shards_of_pytorch() -> None:
    index = "pytorch_model.bin.index.json"
    shards = {"1.bin": {"b": torch.ones(2), "a": torch.zeros(3)}, "2.bin": {"c": torch.ones(1)}}
    for name, content in shards.items():
        torch.save(content, name)
    files = {"a": "1.bin", "b": "1.bin", "c": "2.bin"}
    Path(index).write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": files}))
    Path("new").mkdir()
    with kt.open_checkpoint(index) as like:
        assert sharded.write(Path("new", index), like, {key: key for key in like}) == []
    assert json.loads(Path("new", index).read_text()) == json.loads(Path(index).read_text())
    for name, content in shards.items():
        assert_equal(loaded(Path("new", name)), content)


MEASURED = """
import resource, sys
from pathlib import Path
import keras_trainops as kt
from keras_trainops.checkpoints.formats.torch_writing import write

def peak(path):
    with kt.open_checkpoint(path) as like:
        write(Path("new.pt"), like, {key: key for key in like})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

first = peak("small.pt")
print(peak("large.pt") - first)
"""


def test_one_piece_is_in_memory_at_a_time() -> None:
    torch.save({"x": torch.ones(2)}, "small.pt")
    torch.save({str(i): torch.ones(1 << 23) for i in range(4)}, "large.pt")  # 32 MiB each
    run = subprocess.run(
        [sys.executable, "-c", MEASURED], env=dict(os.environ), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 16 * 1024  # KiB
    assert torch.equal(loaded("new.pt")["3"], torch.ones(1 << 23))
