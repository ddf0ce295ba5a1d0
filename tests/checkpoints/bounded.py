"""Open a file in a process of limited memory and time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CHILD = Path(__file__).with_name("bounded_child.py")
GIGABYTE = 2**30


def answer(path: str, what: str = "read", *libraries: str) -> str:
    """Read `path` in a process, and return its answer, or how it died.

    Args:
        path: The checkpoint.
        what: "read", or "cut" to truncate the file while it is open.
        *libraries: Modules to import before the memory is limited.
    """
    return answers([path], what, *libraries)[0]


def answers(paths: Sequence[str], what: str = "read", *libraries: str) -> list[str]:
    """Read each of `paths` in the same process; see `answer`."""
    run = subprocess.run(
        [sys.executable, str(CHILD), what, ",".join(libraries), *paths],
        env={**os.environ, "PYTHONPATH": str(CHILD.parents[2])},
        capture_output=True,
        text=True,
    )
    answered = run.stdout.splitlines()
    died = f"died ({run.returncode}): {run.stderr[-2000:]}"
    return answered + [died] * (len(paths) - len(answered))
