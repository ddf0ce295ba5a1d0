from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from keras_trainops.cli import main
from keras_trainops.cli.output import print_columns, print_json, progress_bar, size_text
from tests.cli.command_line import Captured, run

pytestmark = pytest.mark.once


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_prints_any_name_in_any_encoding(options: list[str]) -> None:
    np.savez("größe.npz", **{"net/größe": np.ones(2)})
    done = run("inspect", "größe.npz", *options, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert ("gr\\u00f6" if options else r"net/gr\xf6\xdfe  (2,)") in done.stdout


def test_undecodable_file_names_are_valid_json() -> None:
    name = os.fsdecode(b"w\xff.npz")
    try:
        np.savez(name, a=np.ones(2))
    except OSError:
        pytest.skip("this file system has no such names")
    command = [sys.executable, "-m", "keras_trainops", "inspect", name, "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert json.loads(done.stdout.decode("ascii"))["location"] == name


def test_no_traceback_if_the_reader_goes_away(theirs: str) -> None:
    command = [sys.executable, "-m", "keras_trainops", "inspect", theirs]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.stdout is not None
    done.stdout.close()
    _, err = done.communicate(timeout=60)
    assert err == ""
    assert done.returncode == 141


def test_no_traceback_if_nobody_reads_an_error() -> None:
    command = [sys.executable, "-m", "keras_trainops", "inspect", "nothing.npz", "--json"]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.stdout is not None
    done.stdout.close()
    _, err = done.communicate(timeout=60)
    assert len(err.splitlines()) == 1
    assert done.returncode == 141


@pytest.mark.parametrize("streams", [["stdout"], ["stdout", "stderr"]])
def test_closed_streams_are_ignored(
    theirs: str, streams: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in streams:
        monkeypatch.setattr(sys, stream, None)  # as Python does after `>&-`
    assert main(["inspect", theirs, "--stats"]) == 0
    assert main(["inspect", "nothing.npz", "--json"]) == 2


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_500, "1 MB")],
)
def test_sizes_have_three_digits(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text


def test_json_has_null_for_infinity(capsys: Captured) -> None:
    print_json({"a": [float("nan"), (float("inf"), 1.5)]})
    assert json.loads(capsys.readouterr().out) == {"a": [None, [None, 1.5]]}


def test_columns_are_aligned(capsys: Captured) -> None:
    print_columns([("a", "1"), ("bcd", "10")], right=[1])
    assert capsys.readouterr().out == "a     1\nbcd  10\n"


def test_no_progress_bar_without_a_terminal(capsys: Captured) -> None:
    with progress_bar(10, "reading") as progress:
        progress(5)
    assert capsys.readouterr() == ("", "")
