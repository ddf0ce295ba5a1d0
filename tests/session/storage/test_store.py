from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import keras_trainops as kt
from keras_trainops.session.state.record import Record
from keras_trainops.session.storage.store import Store
from tests.helpers import assert_same, two_layers
from tests.session.checkpoints import DIRECTORY, content, folder, newest, save
from tests.session.small_runs import fit


def test_writes_files_in_common_formats() -> None:
    model = fit("run")
    folder = Path("run/checkpoints/step-0000000020")
    assert sorted(p.name for p in folder.iterdir()) == [
        *("SHA256SUMS", "data.json", "session.json", "state.safetensors", "variables.json"),
    ]
    session = json.loads((folder / "session.json").read_text(encoding="utf-8"))
    assert (session["step"], session["epoch"], session["batch"]) == (20, 2, 0)
    other = two_layers(5, name="other")
    report = kt.restore(other, str(folder / "state.safetensors"))
    assert len(report.restored) == 4
    assert_same(other.get_weights(), model.get_weights())


@pytest.mark.backends("torch")  # it needs no backend
def test_a_kill_leaves_a_good_checkpoint() -> None:
    program = Path(__file__).with_name("store_kills.py")
    command = [sys.executable, "-W", "ignore", str(program)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    assert "every kill: a good checkpoint" in run.stdout


def test_leaves_files_of_others_alone() -> None:
    save(2)
    outside = Path("outside")
    shutil.copytree(folder(2), outside / "kept")
    shutil.copytree(folder(2), DIRECTORY / "step-0000000002.bak")
    shutil.copytree(folder(2), DIRECTORY / "step-2")
    for name in ("step-notes.txt", ".deleting-step-notes.txt", ".writing-notes", "step-0000000007"):
        (DIRECTORY / name).write_text("mine", encoding="utf-8")
    for name in (".writing-mine", ".deleting-step-old", ".writing-step-1", "step-0000000001"):
        (DIRECTORY / name).mkdir()
        (DIRECTORY / name / "weights.npz").write_bytes(b"mine")
    folder(3).symlink_to(Path("../outside/kept"))
    (DIRECTORY / ".writing-step-0000000009").symlink_to(Path("../outside/kept"))
    before = {name: mine for name, mine in content().items() if not name.startswith(str(folder(2)))}
    before.update({n: c for n, c in content().items() if "step-0000000002.bak" in n})
    for step in (4, 5, 6):
        newest()
        save(step, keep=1)
    newest()
    after = content()
    assert before == {name: after.get(name) for name in before}
    assert [p.name for p in Store(DIRECTORY, 1).paths()] == [folder(6).name, folder(3).name]


def test_keeps_foreign_files_in_a_checkpoint() -> None:
    save(2)
    (folder(2) / ".DS_Store").write_bytes(b"Finder")
    (folder(2) / "notes").mkdir()
    (folder(2) / "shards").mkdir()  # the name of a directory that sessions write, too
    checkpoint, warnings = newest()
    assert checkpoint is not None
    assert not warnings
    save(3, keep=1)
    assert sorted(p.name for p in folder(2).iterdir()) == [".DS_Store", "notes", "shards"]
    assert [p.name for p in Store(DIRECTORY, 1).paths()] == [folder(3).name]


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_refuses_to_replace_files_of_others(kind: str) -> None:
    save(2)
    if kind == "file":
        folder(3).write_text("mine", encoding="utf-8")
    elif kind == "link":
        folder(3).symlink_to(folder(2).absolute())
    else:
        folder(3).mkdir()
        (folder(3) / "session.json").write_text("mine", encoding="utf-8")
    before = content()
    with pytest.raises(
        OSError, match=r"step-0000000003' is in the way: it is not a checkpoint of a"
    ):
        save(3)
    assert content() == before


def test_damaged_checkpoints_do_not_push_out_intact_ones() -> None:
    for step in (2, 3, 6):
        save(step)
    for step in (3, 6):
        (folder(step) / "data.json").unlink()
    store = Store(DIRECTORY, keep=2)
    checkpoint = store.newest(lambda message: None)
    assert checkpoint is not None
    assert checkpoint.path == folder(2)
    for step in (4, 5):
        store.write(step, checkpoint.arrays, Record(**{**vars(checkpoint.record), "step": step}))
        store.prune(step)
        there = {p.name for p in DIRECTORY.iterdir()}
        assert {folder(s).name for s in (step, step - 1) if s != 3} <= there
    assert sorted(p.name for p in DIRECTORY.iterdir()) == [folder(s).name for s in (4, 5, 6)]


@pytest.mark.parametrize("left", [("deleting",), ("writing",), ("deleting", "writing")], ids=str)
def test_recovers_after_an_earlier_kill(left: tuple[str, ...]) -> None:
    for value, name in enumerate(left):
        save(3, value=value)
        folder(3).rename(DIRECTORY / f".{name}-{folder(3).name}")
    checkpoint, warnings = newest()
    assert checkpoint is not None
    assert not warnings
    assert checkpoint.arrays["net/w"][0] == len(left) - 1  # the newer one
    assert [p.name for p in DIRECTORY.iterdir()] == [folder(3).name]


def test_removes_half_written_files() -> None:
    save(2)
    aside = DIRECTORY / ".writing-step-0000000003"
    aside.mkdir()
    for name in (".tmpA1b2C3", "state.safetensors", "session.json"):
        (aside / name).write_bytes(b"half")
    checkpoint, warnings = newest()
    assert checkpoint is not None
    assert (checkpoint.path, warnings) == (folder(2), [])
    assert [p.name for p in DIRECTORY.iterdir()] == [folder(2).name]


@pytest.mark.parametrize(
    ("sums", "reason"),
    [
        ("0" * 64 + "  ../x\n", r"SHA256SUMS is not a list of the checksums"),
        ("x\n" * 40_000, r"SHA256SUMS is larger than any that a session writes"),
        ("", r"SHA256SUMS does not name data\.json, session\.json, state\.safet"),
    ],
    ids=["elsewhere", "huge", "empty"],
)
def test_rejects_an_invalid_manifest(sums: str, reason: str) -> None:
    save(2)
    save(3)
    (folder(3) / "SHA256SUMS").write_text(sums, encoding="utf-8")
    checkpoint, (message,) = newest()
    assert checkpoint is not None
    assert checkpoint.path == folder(2)
    assert re.search(reason, message)


def test_rejects_a_pipe_as_file() -> None:
    save(2)
    save(3)
    (folder(3) / "data.json").unlink()
    os.mkfifo(folder(3) / "data.json")
    checkpoint, (message,) = newest()
    assert checkpoint is not None
    assert checkpoint.path == folder(2)
    assert "there is no file data.json, which SHA256SUMS names" in message
