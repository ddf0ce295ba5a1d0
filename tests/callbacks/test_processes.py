"""Callbacks of real processes see the same, and write once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.processes.launch import Run

Results = Sequence[Mapping[str, np.ndarray]]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results, Sequence[str], Path]:
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    members = Run("tests.callbacks.processes:trained", 1, one).join()
    assert members[0].status == 0, members[0].output
    alone = [members[0].result]
    members = Run("tests.callbacks.processes:trained", 2, two).join()
    for member in members:
        assert member.status == 0, member.output
    return alone, [member.result for member in members], [m.output for m in members], two


def test_callbacks_see_the_averages_and_logs_of_all_processes(story: tuple) -> None:
    (alone,), several, _, _ = story
    names = [name for name in alone if name != "files"]
    assert {"val_loss 0", "loss 2", "weights 1", "at the end"} <= set(names)
    for result in several:
        for name in names:
            np.testing.assert_array_equal(result[name], several[0][name], err_msg=name)
            np.testing.assert_allclose(result[name], alone[name], atol=1e-6, err_msg=name)


def test_one_process_writes_and_prints(story: tuple) -> None:
    (alone,), _, outputs, directory = story
    written = [path.parent.name for path in directory.rglob("*events*") if path.is_file()]
    assert sorted(written) == sorted(map(str, alone["files"]))
    assert sorted(written) == ["board", "log"]
    assert "TrainingSession: started in" in outputs[0]
    assert "TrainingSession" not in outputs[1]
