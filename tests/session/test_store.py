"""What the directory of checkpoints keeps, removes, recovers and believes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_trainops.session import randomness
from keras_trainops.session.record import DataState, Position, Record
from keras_trainops.session.store import DamagedCheckpointError, SavedStep, Store

DIRECTORY = Path("checkpoints")


def folder(step: int) -> Path:
    return DIRECTORY / f"step-{step:010d}"


def save(step: int, keep: int = 9, value: float = 0.0) -> None:
    states = randomness.to_document(randomness.state())
    data = DataState(
        Position(0, step, True, 0, step),
        dict.fromkeys(("fit", "made", "used", "now"), states),
        batch_size=4,
    )
    callbacks = {
        "EarlyStopping/0": {"best": float("inf"), "best_weights": [{"array": "callbacks/b"}]}
    }
    record = Record(step, 0, step, "", 10, (0.1,), callbacks, ("net/w", "seed"), data)
    arrays = {
        "net/w": np.full(3, value),
        "seed": np.zeros(2, "uint32"),
        "callbacks/b": np.ones(2),
    }
    store = Store(DIRECTORY, keep)
    store.write(step, arrays, record)
    store.prune(step)


def newest(keep: int = 9) -> tuple[SavedStep | None, list[str]]:
    store, told = Store(DIRECTORY, keep), []
    store.recover()
    return store.newest(told.append), told


def content(root: Path = Path()) -> dict[str, bytes | str]:
    """All files and links under a directory."""
    return {
        str(p): os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else ""
        for p in root.rglob("*")
    }


def rewrite(path: Path, name: str, text: str | bytes) -> None:
    """Replaces a file of a checkpoint, and its checksum in the manifest."""
    (path / name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    sums = path / "SHA256SUMS"
    digest = hashlib.sha256((path / name).read_bytes()).hexdigest()
    listed = sums.read_text(encoding="utf-8")
    sums.write_text(re.sub(rf"\w+(?=  {re.escape(name)}\n)", digest, listed), encoding="utf-8")


def edit(path: Path, name: str, **fields: Any) -> None:
    document = json.loads((path / name).read_text(encoding="utf-8"))
    rewrite(path, name, json.dumps({**document, **fields}))


@pytest.mark.backends("torch")  # it asks nothing of a backend
def test_a_kill_at_any_moment_leaves_a_good_checkpoint() -> None:
    program = Path(__file__).with_name("store_kills.py")
    command = [sys.executable, "-W", "ignore", str(program)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    assert "every kill: a good checkpoint" in run.stdout


def test_what_somebody_else_put_there_stays() -> None:
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


def test_a_foreign_file_in_a_checkpoint_does_not_matter_and_stays() -> None:
    save(2)
    (folder(2) / ".DS_Store").write_bytes(b"Finder")
    (folder(2) / "notes").mkdir()
    checkpoint, told = newest()
    assert checkpoint is not None
    assert not told
    save(3, keep=1)
    assert sorted(p.name for p in folder(2).iterdir()) == [".DS_Store", "notes"]
    assert [p.name for p in Store(DIRECTORY, 1).paths()] == [folder(3).name]


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_is_in_the_way_is_not_replaced(kind: str) -> None:
    save(2)
    if kind == "file":
        folder(3).write_text("mine", encoding="utf-8")
    elif kind == "link":
        folder(3).symlink_to(folder(2).absolute())
    else:
        folder(3).mkdir()
        (folder(3) / "session.json").write_text("mine", encoding="utf-8")
    before = content()
    with pytest.raises(OSError, match=r"step-0000000003' is in the way: it is no checkpoint of a"):
        save(3)
    assert content() == before


def test_what_was_fallen_back_from_does_not_push_out_the_good_ones() -> None:
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
def test_what_an_earlier_kill_left_is_recovered(left: tuple[str, ...]) -> None:
    for value, name in enumerate(left):
        save(3, value=value)
        folder(3).rename(DIRECTORY / f".{name}-{folder(3).name}")
    checkpoint, told = newest()
    assert checkpoint is not None
    assert not told
    assert checkpoint.arrays["net/w"][0] == len(left) - 1  # what was to replace the other
    assert [p.name for p in DIRECTORY.iterdir()] == [folder(3).name]


def test_what_is_half_written_is_removed_with_the_library_s_own_temporary_file() -> None:
    save(2)
    aside = DIRECTORY / ".writing-step-0000000003"
    aside.mkdir()
    for name in (".tmpA1b2C3", "state.safetensors", "session.json"):
        (aside / name).write_bytes(b"half")
    checkpoint, told = newest()
    assert checkpoint is not None
    assert (checkpoint.path, told) == (folder(2), [])
    assert [p.name for p in DIRECTORY.iterdir()] == [folder(2).name]


DEEP = "[" * 100_000 + "]" * 100_000
TOO_FAR = {"python": [3, [0] * 625, None], "numpy": ["MT19937", [0] * 624, 10**6, 0, 0.0]}
POSITION = {"epoch": 0, "batch": 3, "goes_on": True, "passes": 0, "taken": 0}
WRONG: dict[str, tuple[str, Any, str]] = {
    "an empty object": ("session.json", "{}", r"session\.json has no 'step'"),
    "a list": ("session.json", "[]", r"session\.json is no JSON object"),
    "no JSON": ("session.json", "{", r"session\.json: Expecting property name"),
    "no text": ("session.json", b"\xff", r"session\.json: 'utf-8' codec"),
    "deep": ("session.json", DEEP, r"session\.json is nested too deeply"),
    "a key twice": ("session.json", '{"step": 3, "step": 3}', r"session\.json: a key stands there"),
    "a string as step": (
        "session.json",
        {"step": "3"},
        r"'step' must be a whole number\. Rec.*'3'",
    ),
    "true as step": ("session.json", {"step": True}, r"'step' must be a whole number"),
    "another step": ("session.json", {"step": 4}, r"session\.json is of step 4"),
    "NaN as epoch": ("session.json", {"epoch": float("nan")}, r"'epoch' must be a whole number"),
    "a negative epoch": ("session.json", {"epoch": -1}, r"'epoch' must be a whole number"),
    "a huge epoch": ("session.json", {"epoch": 10**400}, r"'epoch' must be a whole .*1000+…"),
    "a list as reason": ("session.json", {"ended": []}, r"'ended' must be a string"),
    "a rate": ("session.json", {"learning_rates": "0.1"}, r"'learning_rates' must be a list of n"),
    "no callbacks": ("session.json", {"callbacks": []}, r"session\.json, callbacks is no JSON obj"),
    "no state": ("session.json", {"callbacks": {"A/0": 3}}, r"'A/0' is no state of a callback"),
    "a method": (
        *("session.json", {"callbacks": {"A/0": {"on_epoch_end": 3}}}),
        r"'A/0' is no state of a callback",
    ),
    "an unknown array": (
        *("session.json", {"callbacks": {"A/0": {"best": {"array": "callbacks/x"}}}}),
        r"names the array 'callbacks/x', which there is not",
    ),
    "a forgotten array": ("session.json", {"callbacks": {}}, r"leaves out 'callbacks/b'"),
    "deep callbacks": (
        *("session.json", {"callbacks": {"A/0": {"a": json.loads("[" * 300 + "]" * 300)}}}),
        r"session\.json is nested too deeply",
    ),
    "no data": ("data.json", "[]", r"data\.json is no JSON object"),
    "empty data": ("data.json", "{}", r"data\.json has no 'position'"),
    "no position": ("data.json", {"position": {}}, r"data\.json, position has no 'epoch'"),
    "another moment": (
        *("data.json", {"position": {**POSITION, "epoch": 9}}),
        r"data\.json and session\.json are of different moments",
    ),
    "a whole as flag": (
        *("data.json", {"position": {**POSITION, "goes_on": 1}}),
        r"'goes_on' must be true or false",
    ),
    "no random states": ("data.json", {"random": {}}, r"data\.json, random has no 'fit'"),
    "a string as state": (
        *("data.json", {"random": dict.fromkeys(("fit", "made", "used", "now"), "x")}),
        r"'fit' is no state of random generators",
    ),
    "a state too far": (
        *("data.json", {"random": dict.fromkeys(("fit", "made", "used", "now"), TOO_FAR)}),
        r"'fit' is no state of random generators \(the state of NumPy's generator has not its s",
    ),
    "an object as list": ("variables.json", "{}", r"variables\.json is no list of keys"),
    "numbers as keys": ("variables.json", "[1]", r"variables\.json is no list of keys"),
    "an unknown variable": (
        *("variables.json", '["net/w", "seed", "net/x"]'),
        r"variables\.json does not list keys of the arrays that there are",
    ),
    "a variable twice": ("variables.json", '["net/w", "net/w"]', r"does not list keys of the arr"),
    "no variables": ("variables.json", "[]", r"variables\.json leaves out 'net/w'"),
    "no arrays": ("state.safetensors", b"{}", r"state\.safetensors cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_agrees_with_the_manifest_but_is_wrong_is_damaged(case: str) -> None:
    name, change, reason = WRONG[case]
    save(2)
    save(3)
    if isinstance(change, dict):
        edit(folder(3), name, **change)
    else:
        rewrite(folder(3), name, change)
    checkpoint, (message,) = newest()
    assert checkpoint is not None
    assert checkpoint.path == folder(2)
    assert re.search(
        rf"step-0000000003' is damaged: .*{reason}.*The one before it is used", message
    )
    assert len(message) < 1000
    shutil.rmtree(folder(2))
    with pytest.raises(DamagedCheckpointError, match=rf"{reason}.*There is no other"):
        newest()


@pytest.mark.parametrize(
    ("sums", "reason"),
    [
        ("0" * 64 + "  ../x\n", r"SHA256SUMS is no list of the checksums"),
        ("x\n" * 40_000, r"SHA256SUMS is larger than any that a session writes"),
        ("", r"SHA256SUMS does not name data\.json, session\.json, state\.safet"),
    ],
    ids=["elsewhere", "huge", "empty"],
)
def test_a_manifest_that_is_none_is_damage(sums: str, reason: str) -> None:
    save(2)
    save(3)
    (folder(3) / "SHA256SUMS").write_text(sums, encoding="utf-8")
    checkpoint, (message,) = newest()
    assert checkpoint is not None
    assert checkpoint.path == folder(2)
    assert re.search(reason, message)


def test_a_pipe_in_place_of_a_file_is_damage() -> None:
    save(2)
    save(3)
    (folder(3) / "data.json").unlink()
    os.mkfifo(folder(3) / "data.json")
    checkpoint, (message,) = newest()
    assert checkpoint is not None
    assert checkpoint.path == folder(2)
    assert "there is no file data.json, which SHA256SUMS names" in message


def test_files_of_earlier_versions_are_read() -> None:
    save(2)
    for name in ("session.json", "data.json"):
        document = json.loads((folder(2) / name).read_text(encoding="utf-8"))
        for later in ("batches", "learning_rates", "batch_size"):
            document.pop(later, None)
        rewrite(folder(2), name, json.dumps(document))
    checkpoint, told = newest()
    assert checkpoint is not None
    assert not told
    assert checkpoint.record.batches is None
    assert checkpoint.record.learning_rates == ()
    assert checkpoint.record.data is not None
    assert checkpoint.record.data.batch_size is None
