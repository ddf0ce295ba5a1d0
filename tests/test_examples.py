"""The examples run as a newcomer would run them, on less data, and do what they show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, output: Path, *arguments: str) -> str:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / name), "--output", str(output), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes().startswith(b"\x89PNG")
    return done.stdout


def test_fine_tune_prints_report_and_accuracies_and_draws(tmp_path: Path) -> None:
    printed = run("fine_tune.py", tmp_path / "out" / "1.png", "--train", "64", "--epochs", "2")
    assert "restored 78 of 78 variables" in printed
    accuracies = re.findall(r"(?:warm start|from scratch) +(0\.\d{3})", printed)
    assert len(accuracies) == 2


def test_the_target_network_learns_the_shortest_way(tmp_path: Path) -> None:
    printed = run("dqn.py", tmp_path / "dqn.png")
    steps, shortest = re.findall(
        r"goal reached in (\d+) steps; the shortest way has (\d+)", printed
    )[0]
    assert int(steps) == int(shortest)


def test_the_averaged_codebook_learns_digits(tmp_path: Path) -> None:
    printed = run("vq_vae.py", tmp_path / "vq_vae.png", "--train", "1000", "--epochs", "8")
    before, after = map(float, re.findall(r"held out: (\S+) before, (\S+) after", printed)[0])
    assert after < before / 4
    used = int(re.findall(r"codes in use: (\d+) of 64", printed)[0])
    assert used > 32
