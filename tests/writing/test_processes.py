"""A model that is sharded over two processes is written as on one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.processes.launch import Run, run


@pytest.mark.backends("jax")
def test_files_and_reports_are_those_of_one_process(tmp_path: Path) -> None:
    (one,) = run("tests.writing.processes:write", 1, tmp_path / "one")
    members = Run("tests.writing.processes:write", 2, tmp_path / "two").join()
    assert [member.status for member in members] == [0, 0], [m.output for m in members]
    assert len(one["files"]) == 3
    for member in members:
        assert member.result["files"].tolist() == one["files"].tolist()
        np.testing.assert_array_equal(member.result["module"], one["module"])
        for ours, theirs in zip(member.result["reports"], one["reports"], strict=True):
            ours, theirs = json.loads(ours), json.loads(theirs)
            for key in ("written", "adapted", "copied", "missing", "bytes"):
                assert ours[key] == theirs[key]
        assert member.result["reports"].tolist() == members[0].result["reports"].tolist()
    assert "exists. Pass `overwrite=True`" in str(one["failure"])
    assert "Process 0 of 2" in str(members[1].result["failure"])
    assert str(one["failure"]).split("/two/")[-1][-60:] in str(members[1].result["failure"])
    assert ["wrote 4 of 4" in member.output for member in members] == [True, False]
