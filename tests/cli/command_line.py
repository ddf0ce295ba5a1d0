"""Call the command line and check what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from keras_trainops.cli import main

Captured = pytest.CaptureFixture[str]


THEIRS = {
    "net/l1/w": np.arange(12, dtype="float32").reshape(4, 3),
    "net/l1/b": np.full(3, 0.5, "float32"),
    "net/l2/w": -np.arange(6, dtype="float32").reshape(3, 2),
    "net/l2/b": np.zeros(2, "float32"),
    "global_step": np.array(7),
}


RULES = [
    *("--rename", r"net/l1/(.*) => trunk/\1", "--rename", r"net/l2/(.*) => head/\1"),
]


def document(capsys: Captured, code: int, *arguments: str) -> Any:
    """Run with `--json`, check the exit code, and return the document printed to stdout."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def stderr_of(capsys: Captured, code: int, *arguments: str) -> str:
    """Run, check the exit code and that stdout is empty, and return stderr."""
    capsys.readouterr()
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    return err


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "keras_trainops", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)
