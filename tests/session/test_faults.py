"""Faults of real processes: SIGKILL, SIGTERM, a full disk, two runs at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import keras

# PyTorch gets most: it traces and compiles nothing, so that a restart is cheap.
KILLS = {"torch": 24, "tensorflow": 3, "jax": 2}


def test_ends_bit_equal_after_any_fault() -> None:
    kills = KILLS[keras.backend.backend()]
    program = Path(__file__).with_name("faults.py")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(program), str(kills)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    out = run.stdout
    holder = re.search(r"holder (\d+)", out)
    assert holder is not None
    refusal = rf"RuntimeError: The log directory '.*/two' is in use by process {holder[1]} on .*"
    assert re.search(refusal + r"faults\.py", out)
    assert "SIGTERM: status 143, bit-equal" in out
    assert re.search(r"OSError: The final checkpoint, at step 80, could not be written", out)
    assert "disk full: bit-equal after there was room" in out
    count = re.search(r"(\d+) kills, (\d+) of them during a save: bit-equal", out)
    assert count is not None
    assert int(count[1]) == kills
    assert int(count[2]) >= kills // 4
