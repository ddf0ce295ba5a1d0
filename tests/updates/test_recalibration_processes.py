"""Batch-norm statistics over the data of two processes."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from tests.processes.launch import Run, run

SCENE = "tests.updates.recalibration_processes:recalibrate"


def test_statistics_are_those_of_all_data(tmp_path: Path) -> None:
    (one,) = run(SCENE, 1, tmp_path / "one")
    distributed = {"distributed": keras.backend.backend() == "jax"}
    members = Run(SCENE, 2, tmp_path / "two", arguments=distributed).join()
    assert [member.status for member in members] == [0, 0], [m.output for m in members]
    assert len(one) == 4
    for member in members:
        for path, expected in one.items():
            np.testing.assert_allclose(member.result[path], expected, atol=1e-6, err_msg=path)
            assert member.result[path].tobytes() == members[0].result[path].tobytes()
        assert "`data` is empty" in str(member.result["error"])
        assert str(member.result["error"]).startswith("ValueError")
    prints = ["Recalibrated 2 batch normalizations" in member.output for member in members]
    assert prints == [True, False]
