"""Files that are endless or larger than their content, opened in limited memory and time."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.checkpoints.bounded import GIGABYTE, answer, answers
from tests.helpers import two_layers

pytestmark = pytest.mark.once


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


def test_refuses_a_pipe_or_a_device() -> None:
    os.mkfifo("pipe.npz")
    os.symlink("/dev/zero", "zero")
    assert "'pipe.npz' is a pipe and not a regular file" in answer("pipe.npz")
    assert "'zero' is a device and not a regular file" in answer("zero")


def test_refuses_pipes_and_endless_files_of_tensorflow() -> None:
    piped = ["ck.index", "ck.data-00000-of-00001", "checkpoint"]
    runs = [*piped, "device", "large"]
    for run in runs:
        tensorflow_checkpoint(f"{run}/ck")
        if run in piped:
            pipe_in_place_of(f"{run}/{run}")
    os.symlink("/dev/zero", "device/checkpoint")
    Path("large/checkpoint").write_bytes(b"#" * (20 * 2**20))
    *pipes, device, large = answers(runs, "read", "tensorflow")
    for found in pipes:
        assert "is a pipe and not a regular file" in found
    assert "is a device and not a regular file" in device
    assert "more than the limit of" in large


def test_refuses_a_pipe_among_shards() -> None:
    Path("w.index.json").write_text(json.dumps({"weight_map": {"x": "shard.safetensors"}}))
    os.mkfifo("shard.safetensors")
    assert answer("w.index.json").startswith("refused")


def test_refuses_an_npy_header_that_claims_gigabytes() -> None:
    header = b"\x93NUMPY\x02\x00" + struct.pack("<I", 4 * GIGABYTE - 1)
    Path("w.npy").write_bytes(header)
    os.truncate("w.npy", 4 * GIGABYTE)
    assert "the file claims 4,294,967,296 bytes" in answer("w.npy")
    Path("w.npy").write_bytes(header + b" " * 20_000)
    found = answer("w.npy")
    assert "claims 4,294,967,295 bytes, which is too long for a shape" in found
    assert "pickle" not in found


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
def test_refuses_a_sparse_file_of_orbax(options: dict[str, Any], name: str) -> None:
    orbax_checkpoint(**options)
    os.truncate(f"orbax/{name}", 64 * GIGABYTE)
    assert "the file claims 68,719,476,736 bytes" in answer("orbax", "read", "tensorstore")


def test_refuses_huge_headers_and_chunks_of_orbax() -> None:
    orbax_checkpoint(use_ocdbt=False)
    header = json.loads(Path("orbax/w/.zarray").read_text())
    Path("orbax/w/.zarray").write_bytes(b" " * (17 * 2**20))
    assert "more than the limit of" in answer("orbax", "read", "tensorstore")
    Path("orbax/w/.zarray").write_text(json.dumps({**header, "chunks": [1 << 40, 2]}))
    found = answer("orbax", "read", "tensorstore")
    assert "a chunk of the array 'w' claims 17,592,186,044,416 bytes" in found
    pipe_in_place_of("orbax/w/0.0")
    assert "is a pipe and not a regular file" in answer("orbax", "read", "tensorstore")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
def test_detects_a_pytorch_file_truncated_while_open(new: bool) -> None:
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
def test_refuses_other_files_truncated_while_open(write: Callable[[], Any]) -> None:
    write()
    (path,) = [path for path in os.listdir() if path.startswith("w")]
    assert answer(path, "cut").startswith("refused")
