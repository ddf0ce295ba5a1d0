"""The documentation runs: the Python blocks of every page, and the examples of every docstring."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

import keras_trainops
from keras_trainops.cli import main

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
ELSEWHERE = "hugging-face.md"  # needs transformers: `tests/real/test_write_back.py`
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
MODULES = [
    module.name
    for module in pkgutil.walk_packages(keras_trainops.__path__, "keras_trainops.")
    if not module.name.endswith(("__main__", "backends.tensorflow"))
]


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Line and text of each block of code that is marked so."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [(t.map[0], t.content) for t in tokens if t.type == "fence" and t.info == language]


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """Those that are marked `python` (old code is marked `py`)."""
    return blocks(page, "python")


def run_page(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__page__"}
    for line, block in python_blocks(page):
        # The line numbers of a traceback are those of the page.
        exec(compile("\n" * (line + 1) + block, str(page), "exec"), namespace)
    assert "kt" in namespace


@pytest.mark.parametrize(
    "page", [p for p in PAGES if python_blocks(p) and p.name != ELSEWHERE], ids=lambda p: p.name
)
def test_python_blocks_of_a_page_run_in_order(page: Path) -> None:
    run_page(page)


def test_commands_print_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT / "docs" / "command-line.md"
    for _, block in python_blocks(page):
        exec(block, {})
    shown = "".join(text for _, text in blocks(page, "console"))
    commands = re.findall(r"^\$ keras-trainops (.*)$", shown, re.MULTILINE)
    printed = ""
    for command in commands:
        arguments, _, echo = command.partition("; echo $?")
        code = main(shlex.split(arguments))
        out = re.sub(r"in \d+\.\d\d s", "in … s", capsys.readouterr().out)
        lines = [line.rstrip() for line in out.splitlines()]
        printed += "\n".join([f"$ keras-trainops {command}", *lines, ""])
        printed += f"{code}\n" if command.endswith("echo $?") else ""
        assert not echo
    assert printed == re.sub(r"in \d+\.\d\d s", "in … s", shown)
    assert len(commands) >= 7


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_give_what_they_show(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_the_migration_guide_covers_the_old_documentation() -> None:
    guide = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    headings = [line[3:] for line in guide.splitlines() if line.startswith("## ")]
    assert headings == [
        "Create a train op",
        "Clip gradient norms",
        "Multiply gradients",
        "Noise, adaptive clips, gradient summaries",
        "Non-gradient updates",
        "Moving averages",
        "Start from a checkpoint",
        "… whose names differ",
        "Restore a part",
        "Start from values in memory",
        "Other shapes, other vocabularies",
        "What else has changed",
    ]
