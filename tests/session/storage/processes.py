"""Fork processes during a run, as a program."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[3]))

import keras

from keras_trainops.session.storage.lock import DirectoryLock
from tests.session import runs

LOCK = Path("run/session.lock")


def no_takeover() -> None:
    raise AssertionError("there is no run of this process")


def lock_error() -> str:
    """Lock the directory from another process; return its error message, or an empty string."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            DirectoryLock(LOCK, no_takeover).acquire()
        except RuntimeError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, "rb") as message:
        return message.read().decode()


class Forks(keras.callbacks.Callback):
    """Fork processes as callbacks and data loaders do."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch != 3:
            return
        context: Any = multiprocessing.get_context("fork")
        workers = [context.Process(target=time.sleep, args=(30,)) for _ in range(5)]
        for worker in workers:
            worker.start()
            worker.terminate()  # before it could do anything
        for worker in workers:
            worker.join()
        assert {worker.exitcode for worker in workers} == {-signal.SIGTERM}
        with context.Pool(1) as pool:
            assert pool.map(abs, [-1]) == [1]
        shutil.copytree("run", "copy")
        assert f"'{Path.cwd() / 'run'}' is in use by process {os.getpid()} on" in lock_error()
        child = os.fork()
        if not child:
            sys.exit("a child that leaves `fit`")
        assert os.waitpid(child, 0)[1] == 0
        assert json.loads(LOCK.read_text(encoding="utf-8"))["process"] == os.getpid()


def a_child_does_not_keep_the_lock() -> None:
    Path("other").mkdir()
    reader, writer = os.pipe()
    holder = os.fork()
    if not holder:
        DirectoryLock(Path("other/session.lock"), no_takeover).acquire()
        child = os.fork()
        if child:
            os.write(writer, str(child).encode())
        signal.pause()
        os._exit(1)
    child = int(os.read(reader, 20))
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    os.kill(child, 0)  # it is alive
    lock = DirectoryLock(Path("other/session.lock"), no_takeover)
    lock.acquire()
    lock.release()
    os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    before = signal.getsignal(signal.SIGTERM)
    parent = os.getpid()
    try:
        runs.train("run", Forks(), epochs=1, beside=[])
    except SystemExit:
        os._exit(int(os.getpid() == parent))
    assert signal.getsignal(signal.SIGTERM) == before
    assert lock_error() == ""
    log = Path("run/session.log").read_text(encoding="utf-8")
    assert "stopped at step 10: all 1 epochs are trained" in log
    assert "stopped because" not in log
    assert log.count("started in") == 1
    a_child_does_not_keep_the_lock()
    print("forked processes left the run alone")
