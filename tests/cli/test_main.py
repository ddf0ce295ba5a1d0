"""Exit codes, help, and the imports of the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_trainops
from keras_trainops.cli import main
from tests.cli.command_line import Captured, document, run, stderr_of

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nothing.npz"], "There is no checkpoint at 'nothing.npz'"),
        (["inspect", "text"], "'text' is not a checkpoint of a supported format"),
        (["inspect", "cut.npz"], "'cut.npz' is not a checkpoint .* cut short"),
        (["diff", "theirs.npz", "nothing.npz"], "There is no checkpoint at 'nothing.npz'"),
        (["plan", "nothing.keras", "theirs.npz"], "There is no model at 'nothing.keras'"),
        (["plan", "theirs.npz", "theirs.npz"], "Keras cannot load a model from 'theirs.npz'"),
        (["plan", "model.keras", "theirs.npz", "--rename", "a -> b"], "must be 'KEY => PATH'"),
        (["plan", "model.keras", "theirs.npz", "--rename", "(=> b"], "not a valid regular expr"),
        (["plan", "model.keras", "theirs.npz", *["--rename", "a=>b"] * 2], "two rules for 'a'"),
        (["convert", "theirs.npz", "out.txt"], "OUT must end in one of"),
        (
            ["convert", "theirs.npz", "o.npz", "--model", "model.keras", "--all"],
            "`--all` cannot be used",
        ),
        (["convert", "theirs.npz", "o.npz", "--exclude", "a"], "Without `--model`"),
        (["convert", "theirs.npz", "no/where.npz"], "There is no directory .*no' to write 'where"),
        (["convert", "theirs.npz", "o.npz", "--rename", "( => a"], "not a valid regular expr"),
    ],
)
def test_errors_exit_with_2(
    theirs: str, model: str, capsys: Captured, arguments: list[str], message: str
) -> None:
    Path("text").write_text("no checkpoint")
    Path("cut.npz").write_bytes(Path(theirs).read_bytes()[:-30])
    before = sorted(Path().iterdir())
    error = stderr_of(capsys, 2, *arguments)
    assert len(error.splitlines()) == 1
    assert re.search(message, error)
    assert document(capsys, 2, *arguments) == {"error": error.rstrip("\n")}
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspct", "w.npz"],
        [],
        ["inspect"],
        ["inspect", "a", "--depth", "0"],
        ["diff", "a", "b", "--atol", "-1"],
        ["plan", "a", "b", "--on-missing", "explode"],
        ["plan", "a", "b", "--include", "("],
        ["suggest", "a", "b", "--exclude", "*"],
        ["convert", "a", "b.npz", "--reshape", "["],
    ],
)
def test_invalid_arguments_exit_with_2(capsys: Captured, arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: keras-trainops" in err


@pytest.mark.parametrize("command", ["inspect", "plan", "suggest", "diff", "convert"])
def test_each_command_has_help(capsys: Captured, command: str) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "--json" in capsys.readouterr().out


def test_module_runs_the_command_line() -> None:
    done = run("--version")
    assert done.stdout.strip() == f"keras-trainops {keras_trainops.__version__}"
    assert run("inspect", "nothing").returncode == 2


@pytest.mark.parametrize("command", ["inspect --stats {0}", "diff {0} {0}", "convert {0} {1}"])
@pytest.mark.parametrize("script", [False, True], ids=["module", "script"])
def test_commands_without_a_model_import_no_keras(theirs: str, command: str, script: bool) -> None:
    arguments = command.format(theirs, "out.safetensors").split()
    program = ["-m", "keras_trainops"]
    if script:  # like the one that pip writes
        Path("keras-trainops").write_text(
            "import sys\nfrom keras_trainops.cli import main\nsys.exit(main())\n"
        )
        program = ["keras-trainops"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *program, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "keras_trainops.cli" in loaded
    assert not loaded & {"keras", "tensorflow", "jax", "torch"}


@pytest.mark.parametrize("options", ["-um package.run", "-mpackage.run"])
def test_other_packages_can_import_the_library(options: str) -> None:
    Path("package").mkdir()
    Path("package/__init__.py").write_text("import keras_trainops\n")
    Path("package/run.py").write_text("import keras_trainops as kt\nprint(kt.restore.__name__)\n")
    done = subprocess.run(
        [sys.executable, *options.split()],
        env={**os.environ, "KERAS_BACKEND": "numpy"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "restore\n", done.stderr


def test_import_registers_the_classes() -> None:
    """Keras can load models saved with them, whichever package is imported first."""
    code = """
import keras_trainops as kt
import keras
name = "keras_trainops>TrainOpsModel"
assert callable(keras.saving.get_registered_object(name))  # which imports the class
assert kt.TrainOpsModel is keras.saving.get_registered_object(name)
assert callable(kt.restore) and all(hasattr(kt, name) for name in kt.__all__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "numpy"},  # the fastest backend to import
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
