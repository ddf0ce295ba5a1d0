"""Damaged files of each format give the right values or a `RestoreError`, and never crash or hang.

The cases run in a child process, as damage could crash the libraries used by readers, or make them
loop forever: then the process is killed after a deadline.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoints.fuzz_formats import FORMATS

pytestmark = pytest.mark.once

HERE = Path(__file__).parent
DEADLINE = 120  # seconds after which a case has hung


class Child:
    """A process that runs cases one by one; it is restarted after a crash."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    def answer(self, case: Any) -> str:
        """Return the result of a case; `died` or `hung` if there is none."""
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(f"{json.dumps(case)}\n")
        process.stdin.flush()
        try:
            line = self._answers.get(timeout=DEADLINE)
        except queue.Empty:
            line = "hung"
        if line in ("hung", "died"):
            self.close()
        return line

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
        self._answers = answers = queue.Queue()
        self._process = process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / "fuzz_child.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.directory,
            env=environment,
            text=True,
        )

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                answers.put(line.strip())
            answers.put("died")

        threading.Thread(target=read, daemon=True).start()
        return process

    def close(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """A process for all formats, in a directory with a valid file of each."""
    directory = tmp_path_factory.mktemp("fuzz")
    before = Path.cwd()
    os.chdir(directory)
    try:
        for form in FORMATS.values():
            if not os.path.exists(form.damaged):
                form.write()
            shutil.copy(form.damaged, directory / form.whole)
    finally:
        os.chdir(before)
    child = Child(directory)
    yield child
    child.close()


def cases(size: int) -> st.SearchStrategy[tuple[list[tuple[int, int]], int]]:
    """Flip some bits, truncate the file, or both."""
    flips = st.lists(st.tuples(st.integers(0, size - 1), st.integers(1, 255)), max_size=3)
    return st.tuples(flips, st.one_of(st.just(size), st.integers(0, size)))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.data())
def test_damage_is_harmless(child: Child, name: str, data: st.DataObject) -> None:
    form = FORMATS[name]
    size = os.path.getsize(child.directory / form.whole)
    flips, length = data.draw(cases(size))
    answer = child.answer([name, flips, length])
    if not flips and length == size:
        assert answer == "right"
    only_flipped = flips and not form.checked
    assert answer in ("right", "refused", *(("other values",) if only_flipped else ()))


def flips_of(
    child: Child, name: str, found: bytes, offset: int, new: bytes
) -> list[tuple[int, int]]:
    """Return the flips that write `new` at `offset` after `found` in the valid file."""
    whole = (child.directory / FORMATS[name].whole).read_bytes()
    place = whole.index(found) + offset
    return [(place + i, whole[place + i] ^ byte) for i, byte in enumerate(new)]


@pytest.mark.parametrize("name", ["weights.h5", "legacy h5", "keras"])
def test_refuses_a_heap_that_hangs_the_hdf5_library(child: Child, name: str) -> None:
    """The first entry of the heap becomes free space of length zero."""
    flips = flips_of(child, name, b"GCOL", 16, bytes(16))
    assert child.answer([name, flips, None]) == "refused"


def test_refuses_a_type_that_crashes_the_hdf5_library(child: Child) -> None:
    """The string with a layer's name becomes a variable-length sequence."""
    flips = flips_of(child, "weights.h5", b"name\0\0\0\0\x19\x01", 9, b"\x05")
    assert child.answer(["weights.h5", flips, None]) == "refused"
