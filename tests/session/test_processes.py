"""Forked processes and copies of the directory do a run no harm."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from keras_trainops.session.lock import DirectoryLock


def test_forked_processes_have_neither_its_signal_handler_nor_its_lock() -> None:
    program = Path(__file__).with_name("processes.py")
    command = [sys.executable, "-W", "ignore", str(program)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    assert "forked processes left the run alone" in run.stdout


def lock() -> DirectoryLock:
    def succeeded() -> None:
        raise AssertionError("there was no run")

    return DirectoryLock(Path("session.lock"), succeeded)


def test_a_lock_that_names_nobody_is_held_all_the_same() -> None:
    first = lock()
    first.acquire()
    program = (
        "import sys, pathlib; from keras_trainops.session.lock import DirectoryLock; "
        "DirectoryLock(pathlib.Path('session.lock'), None).acquire()"
    )
    Path("session.lock").write_text('{"process": []}', encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False
    )
    assert "is in use by another process. Wait for it to end" in run.stderr
    first.release()


def test_a_file_system_without_locks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    one = lock()
    with pytest.warns(UserWarning, match=r"cannot be locked .*not implemented.*no other run uses"):
        one.acquire()
    one.release()
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.acquire()
    one.release()
