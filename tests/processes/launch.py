"""Start real processes of one run on 127.0.0.1, and collect what they return."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.processes.forks import Child, forks

PATIENCE = 300.0  # seconds; processes that hang are killed, and the test fails
ROOT = Path(__file__).parents[2]


@dataclass
class Member:
    """One process of a run, after it has ended.

    Attributes:
        status: Its exit status.
        output: What it printed, errors included.
        result: What its function returned: arrays by name.
    """

    status: int
    output: str
    result: Mapping[str, np.ndarray]


@dataclass
class Run:
    """Processes that are running.

    Args:
        function: "module:function" of a function that each process calls with a `Place`.
        count: Number of processes.
        directory: A directory that they share.
        arguments: What JSON can hold, for the function.
        backend: Keras's backend; by default that of the tests.
        missing: Indices of processes that are not started.
        environment: More environment variables.
    """

    function: str
    count: int
    directory: Path
    arguments: Mapping[str, Any] = field(default_factory=dict)
    backend: str = ""
    missing: Sequence[int] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backend = self.backend or os.environ["KERAS_BACKEND"]
        self.directory.mkdir(parents=True, exist_ok=True)
        ports = free_ports(self.count)
        self.processes = {
            i: self._start(i, ports) for i in range(self.count) if i not in self.missing
        }

    def _start(self, index: int, ports: Sequence[int]) -> Child:
        task = {
            "function": self.function,
            "index": index,
            "count": self.count,
            "ports": list(ports),
            "directory": str(self.directory),
            "arguments": dict(self.arguments),
        }
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        source = forks(self.backend, path)
        return source.start(task, self._log(index), self.environment, self.directory)

    def _log(self, index: int) -> Path:
        return self.directory / f"output-{index}.txt"

    def output(self, index: int) -> str:
        """Return what a process has printed so far."""
        return self._log(index).read_text(errors="replace")

    def wait_for(self, text: str, index: int = 0) -> None:
        """Wait until a process has printed a text."""
        began = time.monotonic()
        while text not in self.output(index):
            if self.processes[index].poll() is not None or time.monotonic() - began > PATIENCE:
                raise AssertionError(
                    f"process {index} never printed {text!r}:\n{self.output(index)}"
                )
            time.sleep(0.02)

    def send(self, number: signal.Signals, index: int | None = None) -> None:
        """Send a signal to one process, or to all."""
        for i, process in self.processes.items():
            if index in (None, i):
                process.send_signal(number)

    def join(self) -> list[Member]:
        """Wait until all have ended, and return them; kill those that hang."""
        began = time.monotonic()
        try:
            for process in self.processes.values():
                process.wait(max(0.1, PATIENCE - (time.monotonic() - began)))
        except subprocess.TimeoutExpired:
            outputs = "\n".join(f"--- {i}:\n{self.output(i)}" for i in self.processes)
            raise AssertionError(f"the processes hang:\n{outputs}") from None
        finally:
            for process in self.processes.values():
                process.kill()
                process.wait()
        return [self._member(i) for i in self.processes]

    def _member(self, index: int) -> Member:
        path = self.directory / f"result-{index}.npz"
        result: Mapping[str, np.ndarray] = {}
        if path.exists():
            with np.load(path) as file:
                result = dict(file)
            path.unlink()
        return Member(self.processes[index].wait(), self.output(index), result)


def run(function: str, count: int, directory: Path, **options: Any) -> list[Mapping[str, Any]]:
    """Run a function in real processes, and return their results; see `Run` for the arguments.

    Raises:
        AssertionError: If one of them fails; it shows what that one printed.
    """
    members = Run(function, count, directory, **options).join()
    for i, member in enumerate(members):
        assert member.status == 0, f"process {i} ended with {member.status}:\n{member.output}"
    return [member.result for member in members]


def free_ports(count: int) -> list[int]:
    """Return ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
