"""Sessions of several real processes: resumed, elastic, interrupted and killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.processes.launch import Member, Run

SCENES = "tests.session.processes"
BACKEND = keras.backend.backend()
LAYOUTS = ["data", "model"] if BACKEND == "jax" else ["data"]
STOP = 9  # within an epoch, and within an accumulation
# As many times a run is killed at a random moment. 20 takes some minutes.
ROUNDS = int(os.environ.get("KERAS_TRAINOPS_KILLS", "2"))


def part(result: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in result.items() if k.startswith(prefix)}


def assert_equal(first: Mapping[str, Any], second: Mapping[str, Any], most: float = 0.0) -> None:
    assert first.keys() == second.keys()
    assert first
    for key in first:
        np.testing.assert_allclose(first[key], second[key], rtol=0, atol=most, err_msg=key)


def succeeded(members: list[Member]) -> list[Mapping[str, Any]]:
    for index, member in enumerate(members):
        assert member.status == 0, f"process {index}:\n{member.output}"
    return [member.result for member in members]


@pytest.fixture(scope="module", params=LAYOUTS)
def story(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, list[Mapping[str, Any]]]:
    """Two processes train, with and without an interruption."""
    directory = tmp_path_factory.mktemp(request.param)
    run = Run(f"{SCENES}:cut_and_resumed", 2, directory, {"layout": request.param, "stop": STOP})
    return request.param, directory, succeeded(run.join())


def test_a_resumed_run_is_bit_equal_on_all_processes(story: Any) -> None:
    _, directory, results = story
    for result in results:
        assert_equal(part(result, "whole/"), part(result, "resumed/"))
        assert_equal(part(result, "resumed/"), part(results[0], "resumed/"))
    log = (directory / "cut" / "session.log").read_text()
    assert log.count("started in") == 1
    assert log.count(f"resumed from step {STOP} (epoch 2, batch 4)") == 1


def test_a_resume_that_fails_on_one_process_changes_nothing_on_any(story: Any) -> None:
    for result in story[2]:
        assert bool(result["unchanged"])
    assert str(story[2][0]["failed"]).startswith("Process 1 of 2 (on ")
    assert str(story[2][1]["failed"]) == "no room"


def test_variables_in_parts_are_saved_through_orbax(story: Any) -> None:
    layout, directory, _ = story
    checkpoint = directory / "copy" / "checkpoints" / f"step-{STOP:010d}"
    assert (checkpoint / "shards").exists() == (layout == "model")
    assert (checkpoint / "state.safetensors").is_file()
    session = json.loads((checkpoint / "session.json").read_text())
    assert session["processes"] == 2


def test_a_checkpoint_opens_with_all_variables(story: Any) -> None:
    _, directory, results = story
    with kt.open_checkpoint(directory / "cut") as checkpoint:
        kernel = checkpoint["hidden/kernel"]
        part = checkpoint.part("hidden/kernel", (slice(1, 3), slice(2, 7)))
        assert {"hidden/bias", "head/kernel"} <= set(checkpoint)
        assert "optimizer/adam/hidden_kernel_momentum" in checkpoint.training_state
    np.testing.assert_array_equal(kernel, results[0]["whole/0"])
    np.testing.assert_array_equal(part, kernel[1:3, 2:7])


@pytest.mark.parametrize("count", [1, 4])
def test_another_number_of_processes_continues(story: Any, count: int, tmp_path: Path) -> None:
    layout, directory, results = story
    logdir = tmp_path / "log"
    shutil.copytree(directory / "copy", logdir)
    arguments = {"layout": layout if count > 1 else "none", "logdir": str(logdir)}
    members = Run(f"{SCENES}:resumed", count, tmp_path, arguments).join()
    for result in succeeded(members):
        assert_equal(result, part(results[0], "whole/"), 1e-6)
    message = f"trained by 2 processes before, and by {count} now"
    assert message in members[0].output
    assert "the data differ" not in members[0].output  # all have the batches of the other number
    assert all("TrainingSession" not in member.output for member in members[1:])
    assert message in (logdir / "session.log").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Mapping[str, Any]]:
    run = Run(f"{SCENES}:slow", 2, tmp_path_factory.mktemp("whole"), {"layout": LAYOUTS[-1]})
    return succeeded(run.join())


def test_sigterm_to_one_process_stops_all_with_a_checkpoint(
    whole: list[Mapping[str, Any]], tmp_path: Path
) -> None:
    arguments = {"layout": LAYOUTS[-1]}
    run = Run(f"{SCENES}:slow", 2, tmp_path, arguments)
    run.wait_for("trained")
    run.send(signal.SIGTERM, 1)
    for member in run.join():
        assert member.status == 143, member.output
    checkpoints = list((tmp_path / "log" / "checkpoints").glob("step-*"))
    assert checkpoints
    for result, expected in zip(
        succeeded(Run(f"{SCENES}:slow", 2, tmp_path, arguments).join()), whole, strict=True
    ):
        assert_equal(result, expected)


def test_killed_runs_continue_bit_equal(whole: list[Mapping[str, Any]], tmp_path: Path) -> None:
    """Kill one process, or all, in the middle of anything; then the others, as schedulers do."""
    chance, directory = random.Random(1), tmp_path / "0"
    arguments = {"layout": LAYOUTS[-1]}
    for number in range(ROUNDS):
        run = Run(f"{SCENES}:slow", 2, directory, arguments)
        steps = chance.randint(1, 5)
        while run.output(0).count("trained") < steps and run.processes[0].poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.06))
        run.send(signal.SIGKILL, [0, 1, None][number % 3])
        time.sleep(chance.uniform(0, 0.2))
        run.send(signal.SIGKILL)
        if any(member.status == 0 for member in run.join()):  # all is trained: compare, begin again
            assert_finished(directory, whole)
            directory = tmp_path / str(number + 1)
    assert_finished(directory, whole)


def assert_finished(directory: Path, whole: list[Mapping[str, Any]]) -> None:
    """Let a run train what is left, and compare it with one that was not killed."""
    run = Run(f"{SCENES}:slow", 2, directory, {"layout": LAYOUTS[-1]})
    for result, expected in zip(succeeded(run.join()), whole, strict=True):
        assert_equal(result, expected)


def test_a_directory_that_is_not_shared_is_an_error_everywhere(tmp_path: Path) -> None:
    run = Run(f"{SCENES}:of_its_own", 2, tmp_path, {"layout": "data"})
    first, second = run.join()
    assert "OSError: Process 1 of 2" in first.output
    assert "is not the one that process 0 uses" in second.output
    assert "it must be on a file system that all processes share" in first.output
    assert min(first.status, second.status) > 0
