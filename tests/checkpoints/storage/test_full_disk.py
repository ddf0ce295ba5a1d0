"""Every format explains a full disk; a limit on the size of files stands for the disk's."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest

pytestmark = pytest.mark.once

_SCRIPT = """
    import resource, signal, sys
    from keras_trainops.cli import main
    source, out, limit = sys.argv[1:]
    if out.endswith(".ckpt"):
        import tensorflow
    if out.endswith(".pt"):
        import torch
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    print(main(["convert", source, out]))
"""


def write_source(kind: str) -> str:
    """Write a file with 80 kB of values."""
    values = np.random.default_rng(0).normal(size=(100, 100))
    if "h5" not in kind:
        np.savez("like.npz", **{"dense/0": values})
        return "like.npz"
    options = {"compression": "gzip"} if kind.startswith("deflated") else {}
    with h5py.File("like.weights.h5", "w") as file:
        file.create_group("layers/dense/vars").create_dataset("0", data=values, **options)
    return "like.weights.h5"


@pytest.mark.parametrize("limit", [100, 20_000])
@pytest.mark.parametrize(
    "out", ["w.npz", "w.safetensors", "w.pt", "w.ckpt", "w.weights.h5", "deflated.weights.h5"]
)
def test_a_full_disk_is_explained(out: str, limit: int) -> None:
    if out == "w.pt":
        pytest.importorskip("torch", reason="torch is not installed (the extra `torch`)")
    source = write_source(out)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_SCRIPT), source, out, str(limit)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "2\n"), run.stderr
    assert f"{out}': File too large" in run.stderr
    assert "Nothing was changed." in run.stderr
    assert "Traceback" not in run.stderr
    assert [path.name for path in Path().iterdir()] == [source]
