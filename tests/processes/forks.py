"""A process that has imported everything, and forks: importing takes longer than most tests.

The forked processes are like new ones: nothing has started a backend before the fork. As a program,
it reads tasks from its input, a line of JSON each, forks, and prints what has become of each.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_USED = {"jax": ["orbax.checkpoint", "jax.experimental.multihost_utils"]}


class Child:
    """A forked process, as `subprocess.Popen` describes one.

    Attributes:
        returncode: Its exit status once it has ended; negative for a signal.
    """

    def __init__(self, pid: int, ended: threading.Event) -> None:
        self.pid, self._ended = pid, ended
        self.returncode: int | None = None

    def end(self, status: int) -> None:
        """Note that it has ended."""
        self.returncode = status
        self._ended.set()

    def poll(self) -> int | None:
        """Return the exit status, or None if it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit status."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("member", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        self.send_signal(signal.SIGKILL)


class Forks:
    """Forks processes with everything imported for a backend.

    Args:
        backend: Keras's backend.
        path: The value of PYTHONPATH.
    """

    def __init__(self, backend: str, path: str) -> None:
        self._children: dict[int, Child] = {}
        self._started: list[Child] = []
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "KERAS_BACKEND": backend,
                "PYTHONPATH": path,
                "JAX_NUM_CPU_DEVICES": "1",  # not the devices of the process that tests
            },
        )
        threading.Thread(target=self._listen, daemon=True).start()
        assert self._process.stdin is not None
        atexit.register(self._process.stdin.close)

    def start(
        self, task: Mapping[str, Any], log: Path, environment: Mapping[str, str], cwd: Path
    ) -> Child:
        """Fork a process that runs a task of `member.main`."""
        log.touch()
        request = {"task": task, "log": str(log), "environment": dict(environment), "cwd": str(cwd)}
        assert self._process.stdin is not None
        with self._news:
            self._process.stdin.write(f"{json.dumps(request)}\n".encode())
            self._process.stdin.flush()
            while not self._started:
                assert self._news.wait(300), "the process that forks others does not answer"
            return self._started.pop()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, pid, *status = line.decode().split()
            with self._news:
                if word == "started":
                    child = self._children[int(pid)] = Child(int(pid), threading.Event())
                    self._started.append(child)
                    self._news.notify_all()
                else:
                    self._children.pop(int(pid)).end(int(status[0]))


@functools.cache
def forks(backend: str, path: str) -> Forks:
    """Return the one that forks processes for a backend."""
    return Forks(backend, path)


def serve() -> None:
    """Read tasks, and fork a process for each, until the input ends."""
    backend = os.environ["KERAS_BACKEND"]
    keras_trainops = importlib.import_module("keras_trainops")
    for name in keras_trainops.__all__:
        getattr(keras_trainops, name)
    member = importlib.import_module("tests.processes.member")
    for name in _USED.get(backend, []):
        importlib.import_module(name)
    waiting, children = b"", set[int]()
    while True:
        readable, _, _ = select.select([0], [], [], 0.01)
        if readable:
            read = os.read(0, 1 << 16)
            if not read:  # whoever has started this has ended
                for pid in children:
                    os.kill(pid, signal.SIGKILL)
                return
            *lines, waiting = (waiting + read).split(b"\n")
            for line in lines:
                child = _fork(json.loads(line))
                if not child:
                    member.main(json.loads(line)["task"])
                    return
                children.add(child)
        children -= _reported()


def _fork(request: Mapping[str, Any]) -> int:
    """Return the number of the new process, and 0 in it."""
    pid = os.fork()
    if pid:
        os.write(1, f"started {pid}\n".encode())
        return pid
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    return 0


def _reported() -> set[int]:
    """Report the children that have ended, and return them."""
    ended: set[int] = set()
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        os.write(1, f"ended {pid} {os.waitstatus_to_exitcode(status)}\n".encode())
        ended.add(pid)


if __name__ == "__main__":
    serve()
