"""Files without an end, or larger than what is in them: refused before a library reads them.

Each is opened by a process of its own, whose memory and time are bounded.
"""

from __future__ import annotations

import ast
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import keras_trainops as kt
from keras_trainops import errors
from keras_trainops.checkpoints import nested
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.checkpoints.storage import files
from tests.helpers import refused, two_layers

HERE = Path(__file__).parent
CHECKPOINTS = Path(files.__file__).parents[1]
GIGABYTE = 2**30


def answer(path: str, what: str = "read", *libraries: str) -> str:
    """What a process says that reads `path`; how it died, if it did."""
    run = subprocess.run(
        [sys.executable, str(HERE / "bounded_child.py"), path, what, *libraries],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        capture_output=True,
        text=True,
    )
    return run.stdout.strip() or f"died ({run.returncode}): {run.stderr[-2000:]}"


def tensorflow_checkpoint(prefix: str) -> None:
    import tensorflow as tf

    tf.train.Checkpoint(x=tf.Variable(np.ones(3, "float32"), name="x")).write(prefix)


def orbax_checkpoint(**options: Any) -> None:
    ocp = pytest.importorskip("orbax.checkpoint", reason="the extra `orbax` is not installed")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(os.path.abspath("orbax"), {"w": np.ones((3, 2))})


def pipe_in_place_of(path: str) -> None:
    Path(path).unlink(missing_ok=True)
    os.mkfifo(path)


def test_a_pipe_or_a_device_is_no_file() -> None:
    os.mkfifo("pipe.npz")
    os.symlink("/dev/zero", "zero")
    assert "'pipe.npz' is a pipe and not a regular file" in answer("pipe.npz")
    assert "'zero' is a device and not a regular file" in answer("zero")


@pytest.mark.parametrize("name", ["ck.index", "ck.data-00000-of-00001", "checkpoint"])
def test_a_pipe_among_the_files_of_tensorflow(name: str) -> None:
    tensorflow_checkpoint("run/ck")
    pipe_in_place_of(f"run/{name}")
    assert "is a pipe and not a regular file" in answer("run", "read", "tensorflow")


def test_a_state_file_without_an_end() -> None:
    tensorflow_checkpoint("run/ck")
    os.symlink("/dev/zero", "run/checkpoint")
    assert "is a device and not a regular file" in answer("run", "read", "tensorflow")
    os.remove("run/checkpoint")
    Path("run/checkpoint").write_bytes(b"#" * (20 * 2**20))
    assert "too large to be what it should be" in answer("run", "read", "tensorflow")


def test_a_pipe_among_shards() -> None:
    Path("w.index.json").write_text(json.dumps({"weight_map": {"x": "shard.safetensors"}}))
    os.mkfifo("shard.safetensors")
    assert answer("w.index.json").startswith("refused")


def test_an_npy_whose_header_claims_gigabytes() -> None:
    header = b"\x93NUMPY\x02\x00" + struct.pack("<I", 4 * GIGABYTE - 1)
    Path("w.npy").write_bytes(header)
    os.truncate("w.npy", 4 * GIGABYTE)
    assert "the file claims 4,294,967,296 bytes" in answer("w.npy")
    Path("w.npy").write_bytes(header + b" " * 20_000)
    found = answer("w.npy")
    assert "claims 4,294,967,295 bytes, which is too long for a shape" in found
    assert "pickle" not in found


def test_an_hdf5_file_with_a_tail_of_nothing() -> None:
    """The library takes it, as it ends before: what is behind that is not looked at."""
    two_layers().save_weights("w.weights.h5")
    end = os.path.getsize("w.weights.h5")
    with open("w.weights.h5", "r+b") as file:
        file.seek(end)
        file.write(b"GCOL\x01\0\0\0" * 1000)  # heaps without an end, which nobody will walk
    assert answer("w.weights.h5") == "read"
    os.truncate("w.weights.h5", 8 * GIGABYTE)
    assert "the file claims 8,589,934,592 bytes" in answer("w.weights.h5")


def test_holes_are_told_from_data() -> None:
    block = 1 << 20
    with open("sparse", "w+b") as file:
        for place in (0, 64 * block):
            file.seek(place)
            file.write(b"x" * block)
        file.truncate(GIGABYTE)
        found = list(files.data_ranges(file.fileno(), 0, GIGABYTE))
        inside = list(files.data_ranges(file.fileno(), block // 2, 65 * block))
    covered = {place // block for start, stop in found for place in range(start, stop, block)}
    assert {0, 64} <= covered
    assert sum(stop - start for start, stop in found) < 8 * block
    assert inside[0][0] == block // 2
    assert inside[-1][1] == 65 * block


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"use_ocdbt": False}, "w/.zarray"),
        ({"use_ocdbt": False, "use_zarr3": True}, "w/zarr.json"),
        ({"use_ocdbt": False}, "w/0.0"),
        ({}, "manifest.ocdbt"),
        ({}, "_METADATA"),
    ],
)
def test_a_file_of_orbax_that_is_nearly_all_hole(options: dict[str, Any], name: str) -> None:
    orbax_checkpoint(**options)
    os.truncate(f"orbax/{name}", 64 * GIGABYTE)
    assert "the file claims 68,719,476,736 bytes" in answer("orbax", "read", "tensorstore")


def test_a_header_of_orbax_that_is_too_large_and_a_chunk_that_claims_terabytes() -> None:
    orbax_checkpoint(use_ocdbt=False)
    header = json.loads(Path("orbax/w/.zarray").read_text())
    Path("orbax/w/.zarray").write_bytes(b" " * (17 * 2**20))
    assert "too large to be what it should be" in answer("orbax", "read", "tensorstore")
    Path("orbax/w/.zarray").write_text(json.dumps({**header, "chunks": [1 << 40, 2]}))
    found = answer("orbax", "read", "tensorstore")
    assert "a chunk of the array 'w' claims 17,592,186,044,416 bytes" in found
    pipe_in_place_of("orbax/w/0.0")
    assert "is a pipe and not a regular file" in answer("orbax", "read", "tensorstore")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
def test_a_pytorch_file_that_is_cut_short_while_it_is_open(new: bool) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (the extra `torch`)")
    torch.save({"x": torch.ones(1 << 20)}, "w.pt", _use_new_zipfile_serialization=new)
    assert answer("w.pt", "read", "torch") == "read"
    assert "the file ends 4194304 bytes too early" in answer("w.pt", "cut", "torch")


@pytest.mark.parametrize(
    "write",
    [
        lambda: safetensors.numpy.save_file({"x": np.ones(1 << 20)}, "w"),
        lambda: np.savez("w", x=np.ones(1 << 20)),
        lambda: two_layers().save_weights("w.weights.h5"),
    ],
    ids=["safetensors", "npz", "weights.h5"],
)
def test_other_files_that_are_cut_short_while_they_are_open(write: Callable[[], Any]) -> None:
    write()
    (path,) = [path for path in os.listdir() if path.startswith("w")]
    assert answer(path, "cut").startswith("refused")


def test_json_that_says_a_thing_twice() -> None:
    safetensors.numpy.save_file({"x": np.ones(3)}, "w.safetensors")
    data = Path("w.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length].rstrip()
    twice = header[:-1] + b"," + header[1:]
    Path("w.safetensors").write_bytes(struct.pack("<Q", len(twice)) + twice + data[8 + length :])
    Path("w.index.json").write_text('{"weight_map": {"x": "a"}, "weight_map": {"x": "b"}}')
    for path in ("w.safetensors", "w.index.json"):
        with refused(two_layers(), f"'{path}'.*", kt.RestoreError):
            kt.restore(two_layers(), path)
    with pytest.raises(kt.RestoreError, match="holds 'weight_map' twice in one object"):
        kt.open_checkpoint("w.index.json")


@pytest.mark.parametrize(
    ("text", "depth"), [(b"[[{}]]", 3), (b'{"[[[[": "\\"[["}', 1), (b"3", 0), (b'"', 0)]
)
def test_the_depth_of_json(text: bytes, depth: int) -> None:
    assert files._depth(text) == depth


def test_names_that_are_endless_are_shortened_in_messages() -> None:
    name = "x" * 120_000
    with pytest.raises(kt.RestoreError, match=r"Cannot restore|No variable|x{100}") as raised:
        kt.restore(two_layers(), {name: np.ones(3)})
    assert len(str(raised.value)) < 5000
    safetensors.numpy.save_file({name: np.ones(3)}, "w.safetensors")
    with pytest.raises(kt.RestoreError, match="holds a name of 120,000 characters"):
        kt.open_checkpoint("w.safetensors")
    text = errors.shortened("a word " * 10_000)
    assert len(text) < 20_000
    assert text.startswith("a word a word")
    assert text.endswith("a word ")
    assert errors.shortened("short") == "short"


def writes(call: ast.Call) -> bool:
    """Whether it opens a new file."""
    return any(isinstance(a, ast.Constant) and a.value == "wb" for a in call.args)


def test_files_are_opened_in_one_place() -> None:
    """`open`, `read_bytes` and `json.load` of the readers are those of `storage/files.py`."""
    found = [
        (path.name, ast.unparse(node.func))
        for path in CHECKPOINTS.rglob("*.py")
        if path != Path(files.__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and not writes(node)
    ]
    own = ("open", "io.open", "io.FileIO", "os.open", "json.loads", "json.load")
    methods = (".read_bytes", ".read_text", "path.open")
    assert [call for call in found if call[1] in own or call[1].endswith(methods)] == []


def test_one_array_may_have_many_names() -> None:
    array = np.ones(3, "float32")
    with ArraysCheckpoint({f"x{i}": array for i in range(20_000)}) as checkpoint:
        assert len(checkpoint) == 20_000


def test_containers_that_hold_each_other_again_and_again() -> None:
    array = np.ones(3)
    doubled: Any = [array]
    for _ in range(18):
        doubled = [doubled, doubled]
    with pytest.raises(kt.RestoreError, match="the mapping holds the same containers again"):
        kt.restore(two_layers(), {"x": doubled})
    deep: Any = {"x": array}
    for _ in range(200):
        deep = {"x": deep}
    with pytest.raises(kt.RestoreError, match="the mapping is nested more than 100 deep"):
        kt.restore(two_layers(), deep)
    many = {str(i): array for i in range(nested._EACH)}
    assert len(kt.suggest_rename(two_layers(), many).unmatched) == len(many)
