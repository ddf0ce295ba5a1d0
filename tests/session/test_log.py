from __future__ import annotations

from pathlib import Path

import pytest

from keras_trainops.session.log import SessionLog
from tests.session.small_runs import fit, log


def test_logs_and_prints_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    fit("run", stop_at_step=12, verbose=1)
    fit("run", verbose=1)
    story = [line[20:] for line in log("run").splitlines()]
    run = Path.cwd() / "run"
    assert story[0] == f"started in '{run}'"
    assert story[1].startswith(
        f"saved step 12 to '{run}/checkpoints/step-0000000012' (0.0 MB; train"
    )
    assert story[2] == "stopped at step 12: stop_at_step=12 is reached"
    assert story[3].startswith(f"resumed from step 12 (epoch 2, batch 3) of '{run}/checkpoints/")
    assert story[5] == "stopped at step 20: all 2 epochs are trained"
    out = capsys.readouterr().out
    assert "TrainingSession: resumed from step 12" in out
    assert "saved step" not in out


def test_writes_without_printing(capsys: pytest.CaptureFixture[str]) -> None:
    session_log = SessionLog(Path("session.log"), verbose=1)
    session_log.report("reported")
    session_log.write("written")
    lines = Path("session.log").read_text(encoding="utf-8").splitlines()
    assert [line[20:] for line in lines] == ["reported", "written"]
    assert capsys.readouterr().out == "TrainingSession: reported\n"


def test_ignores_a_file_that_cannot_be_written() -> None:
    SessionLog(Path("missing/session.log"), verbose=0).report("lost")
    assert not Path("missing").exists()
