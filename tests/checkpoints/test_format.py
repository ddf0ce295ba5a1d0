from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

import keras_trainops as kt
from keras_trainops.checkpoints import Candidate, Format

pytestmark = pytest.mark.once


def test_head_is_the_first_bytes_of_a_file() -> None:
    Path("file").write_bytes(bytes(range(100)))
    assert Candidate("file").head == bytes(range(16))
    assert Candidate("missing").head == Candidate(os.curdir).head == b""
    assert Candidate(os.curdir).is_directory


def test_members_are_the_names_in_an_archive() -> None:
    with zipfile.ZipFile("archive", "w") as archive:
        archive.writestr("a/b.npy", b"")
    Path("file").write_bytes(b"PK\x03\x04")
    assert Candidate("archive").members == {"a/b.npy"}
    assert Candidate("file").members is None
    assert Candidate("missing").members is None


def test_shard_head_is_that_of_the_first_shard() -> None:
    Path("shard").write_bytes(b"shard")
    Path("index").write_text(json.dumps({"weight_map": {"x": "shard"}}))
    Path("other").write_text("{}")
    assert Candidate("index").shard_head == b"shard"
    assert Candidate("other").shard_head == Candidate("shard").shard_head == b""


def test_a_writer_may_have_none_one_or_several_suffixes() -> None:
    def suffixes(*given: object) -> tuple[str, ...]:
        return Format("lists", lambda path: False, kt.open_checkpoint, *given).suffixes

    assert [suffixes(), suffixes(".a"), suffixes((".a", ".b"))] == [(), (".a",), (".a", ".b")]


def test_refuses_to_read_a_pipe() -> None:
    os.mkfifo("pipe")
    with pytest.raises(kt.RestoreError, match="is a pipe"):
        Candidate("pipe").head  # noqa: B018 - the property reads
