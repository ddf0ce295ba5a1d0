from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from keras_trainops.session.storage.lock import DirectoryLock


def lock() -> DirectoryLock:
    def on_takeover() -> None:
        raise AssertionError("there was no run")

    return DirectoryLock(Path("session.lock"), on_takeover)


def test_an_unreadable_holder_still_has_the_lock() -> None:
    first = lock()
    first.acquire()
    program = (
        "import sys, pathlib; from keras_trainops.session.storage.lock import DirectoryLock; "
        "DirectoryLock(pathlib.Path('session.lock'), None).acquire()"
    )
    Path("session.lock").write_text('{"process": []}', encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False
    )
    assert "is in use by another process. Wait for it to end" in run.stderr
    first.release()


def test_names_the_other_thread_of_the_process() -> None:
    first, second = lock(), lock()
    first.acquire()
    errors: list[str] = []

    def acquire() -> None:
        try:
            second.acquire()
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=acquire)
    thread.start()
    thread.join()
    first.release()
    (error,) = errors
    assert error.endswith(f"is in use by another thread of this process ({os.getpid()}).")


def test_takes_over_from_an_ended_run() -> None:
    first = DirectoryLock(Path("session.lock"), lambda: first.release())
    first.acquire()
    second = lock()
    second.acquire()
    second.require_held()
    with pytest.raises(PermissionError, match="belongs to another process"):
        first.require_held()
    second.release()


def test_warns_of_a_file_system_without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
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
