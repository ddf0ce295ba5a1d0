"""What happens to real processes: SIGKILL, SIGTERM, a full disk, two at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import keras

# Most of them where a restart costs least: PyTorch has nothing to trace or to compile.
KILLS = {"torch": 50, "tensorflow": 3, "jax": 2}


def test_whatever_happens_the_run_ends_as_if_nothing_had_been() -> None:
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
    told = re.search(r"(\d+) kills, (\d+) of them during a save: bit-equal", out)
    assert told is not None
    assert int(told[1]) == kills
    assert int(told[2]) >= kills // 4
