from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_forked_processes_leave_the_run_alone() -> None:
    program = Path(__file__).with_name("processes.py")
    command = [sys.executable, "-W", "ignore", str(program)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    assert "forked processes left the run alone" in run.stdout
