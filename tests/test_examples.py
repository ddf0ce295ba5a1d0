"""The demo runs as a newcomer would run it, on fewer images."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "examples" / "fine_tune.py"


def test_fine_tune_prints_report_and_accuracies_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "out" / "curves.png"
    command = [sys.executable, str(SCRIPT), "--train", "64", "--epochs", "2"]
    run = subprocess.run(
        [*command, "--output", str(picture)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "restored 78 of 78 variables" in run.stdout
    accuracies = re.findall(r"(?:warm start|from scratch) +(0\.\d{3})", run.stdout)
    assert len(accuracies) == 2
    assert picture.read_bytes().startswith(b"\x89PNG")
