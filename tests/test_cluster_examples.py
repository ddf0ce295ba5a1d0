"""The examples of clusters start real processes: with one command, or as schedulers do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import BACKEND
from tests.processes.launch import free_ports

SCRIPT = Path(__file__).parents[1] / "examples" / "cluster" / f"{BACKEND}_run.py"
OF_SCHEDULERS = r"(RANK|WORLD_SIZE|MASTER_|SLURM_|JOB_COMPLETION_INDEX|TF_CONFIG|WORKERS|JAX_NUM_)"


def start(output: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a script in an environment without traces of this one's."""
    inherited = {k: v for k, v in os.environ.items() if not re.match(OF_SCHEDULERS, k)}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), "--output", str(output), *arguments],
        env={**inherited, "CUDA_VISIBLE_DEVICES": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def printed(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return out


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster") / "run"


def test_two_processes_train_like_one(output: Path) -> None:
    out = printed(start(output, "--processes", "2", "--compare", "--epochs", "2"))
    (one, first), (two, second) = re.findall(r"digits: (0\.\d+), processes: (\d)", out)
    assert (first, second) == ("1", "2")
    assert float(one) > 0.85
    assert float(two) == pytest.approx(float(one), abs=0.002)
    (largest,) = re.findall(r"same as one process: largest difference (\S+)", out)
    assert float(largest) <= 1e-6


def environments(ports: list[int]) -> list[Mapping[str, str]]:
    """What SLURM and Kubernetes set, and what the files of the documentation add."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
    workers = {"WORKERS": ",".join(f"127.0.0.1:{port}" for port in ports)}
    by_slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
    by_kubernetes = {"JOB_COMPLETION_INDEX": "1", "WORLD_SIZE": "2"}
    return [{**address, **workers, **own} for own in (by_slurm, by_kubernetes)]


def test_processes_that_schedulers_start_continue(output: Path) -> None:
    """The run continues; on JAX with another layout."""
    layout = ("--layout", "model") if BACKEND == "jax" else ()
    places = environments(free_ports(2))
    members = [start(output, "--epochs", "3", *layout, **place) for place in places]
    first, second = map(printed, members)
    assert "resumed from step 40" in first
    assert "processes: 2" in first
    assert "accuracy" not in second
