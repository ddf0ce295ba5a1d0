from __future__ import annotations

import ast
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import keras_trainops as kt
from keras_trainops.checkpoints.storage import files, writing
from tests.checkpoints.bounded import GIGABYTE
from tests.helpers import refused, two_layers

pytestmark = pytest.mark.once

CHECKPOINTS = Path(files.__file__).parents[1]


def test_finds_the_data_between_holes() -> None:
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


def test_refuses_repeated_keys_in_json() -> None:
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
    with pytest.raises(kt.RestoreError, match="contains 'weight_map' twice in one object"):
        kt.open_checkpoint("w.index.json")


@pytest.mark.parametrize(
    ("text", "depth"), [(b"[[{}]]", 3), (b'{"[[[[": "\\"[["}', 1), (b"3", 0), (b'"', 0)]
)
def test_depth_of_json(text: bytes, depth: int) -> None:
    assert files._depth(text) == depth


def writes(call: ast.Call) -> bool:
    """Return True for calls that open a new file, or one that was just written."""
    return any(isinstance(a, ast.Constant) and a.value in ("wb", "r+b") for a in call.args)


def test_readers_open_files_in_one_place() -> None:
    """Only `storage/files.py` opens files and parses JSON; `writing.py` flushes new ones."""
    found = [
        (path.name, ast.unparse(node.func))
        for path in CHECKPOINTS.rglob("*.py")
        if path not in (Path(files.__file__), Path(writing.__file__))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and not writes(node)
    ]
    own = ("open", "io.open", "io.FileIO", "os.open", "json.loads", "json.load")
    methods = (".read_bytes", ".read_text", "path.open")
    assert [call for call in found if call[1] in own or call[1].endswith(methods)] == []
