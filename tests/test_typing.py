"""pyright and mypy on a user's scripts in `tests/typing`, whose wrong lines name the errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(ROOT.glob("tests/typing/*.py"))
MARK = re.compile(r"# error: ([\w-]+(?:, [\w-]+)*)$")

Errors = dict[tuple[str, int], set[str]]  # (file, line) -> the rules that it breaks


def marked(*, of_pyright: bool) -> Errors:
    """The errors that the scripts name; only pyright's begin with `report`."""
    found: Errors = {}
    for script in SCRIPTS:
        for line, text in enumerate(script.read_text(encoding="utf-8").splitlines(), start=1):
            rules = set(match[1].split(", ")) if (match := MARK.search(text)) else set()
            if chosen := {r for r in rules if r.startswith("report") == of_pyright}:
                found[script.name, line] = chosen
    return found


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a checker away from this project's configuration, as on a user's project."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_there_are_right_and_wrong_lines() -> None:
    assert len(marked(of_pyright=True)) > 40
    assert len(marked(of_pyright=False)) > 30


def test_pyright_finds_the_marked_errors_and_no_others() -> None:
    beside_python = Path(sys.executable).with_name("pyright")
    pyright = beside_python if beside_python.exists() else shutil.which("pyright")
    if pyright is None:
        pytest.skip("pyright is not installed: it is among the `dev` extras")
    result = run(pyright, "--outputjson", "--pythonpath", sys.executable, *SCRIPTS)
    assert result.stdout, result.stderr
    found: Errors = defaultdict(set)
    texts: list[Any] = []
    for diagnostic in json.loads(result.stdout)["generalDiagnostics"]:
        place = Path(diagnostic["file"]).name, diagnostic["range"]["start"]["line"] + 1
        found[place].add(diagnostic.get("rule", diagnostic["severity"]))
        texts.append((place, diagnostic["message"]))
    assert found == marked(of_pyright=True), texts


def test_mypy_finds_the_marked_errors_and_no_others() -> None:
    options = ["--config-file=", "--ignore-missing-imports", "--no-error-summary", "--output=json"]
    cache = ROOT / ".cache" / "mypy"  # of what does not change from run to run
    result = run(sys.executable, "-m", "mypy", "--cache-dir", cache, *options, *SCRIPTS)
    assert not result.stderr
    found: Errors = defaultdict(set)
    for line in result.stdout.splitlines():
        error = json.loads(line)
        if error["severity"] == "error":
            found[Path(error["file"]).name, error["line"]].add(error["code"])
    assert found == marked(of_pyright=False), result.stdout
