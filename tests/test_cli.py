from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import keras_trainops
from keras_trainops.cli import main


def test_inspect_lists_keys_shapes_and_dtypes(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("w.npz", **{"head/kernel": np.ones((2, 3), "float32"), "step": np.int64(7)})
    assert main(["inspect", "w.npz"]) == 0
    out = capsys.readouterr().out
    assert "2 weights and 0 tensors of training state" in out
    row = next(line for line in out.splitlines() if "head/kernel" in line)
    assert "(2, 3)" in row
    assert "float32" in row


def test_a_checkpoint_that_cannot_be_read_is_exit_code_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["inspect", "nothing.npz"]) == 1
    assert "There is no checkpoint at 'nothing.npz'" in capsys.readouterr().err


def test_arguments_that_make_no_sense_are_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["inspct", "w.npz"])
    assert "inspct" in capsys.readouterr().err


def test_module_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "keras_trainops", "--version"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"keras-trainops {keras_trainops.__version__}"
