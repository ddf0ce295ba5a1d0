"""Processes that agree, disagree, and wait in vain; real ones on 127.0.0.1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from keras_trainops.processes import Processes
from keras_trainops.processes.framing import gathered
from tests.processes.launch import Run, run


def test_processes_talk_and_agree(tmp_path: Path) -> None:
    results = run("tests.processes.scenes:talk", 2, tmp_path)
    for index, result in enumerate(results):
        assert int(result["index"]) == index
        assert int(result["count"]) == 2
        assert result["short"].tolist() == [0, 1]
        assert result["long"].tolist() == [0, 10_000]
        assert result["arrays"].tolist() == [[[0, 0, 7]], [[1, 1, 7]]]
        assert str(result["first"]) == "from 0"
        assert "RestoreError: no such file" in str(result["both"])
        assert "The processes differ in b: 0 in process 0, 1 in process 1 of 2. Use one b." in str(
            result["same"]
        )
        assert "talks to the others to " in str(result["apart"])
        assert result["number"].tolist() == [3, 3]
        assert result["at_end"].tolist() == ["end", "end"]
    assert "to restore, and process 1 to save." in str(results[0]["apart"])
    assert "to save, and process 0 to restore." in str(results[1]["apart"])
    assert str(results[0]["coded"]).startswith("ValueError: Process 1 of 2 (on ")
    assert "UnicodeDecodeError: 'utf-8' codec" in str(results[0]["coded"])
    assert str(results[1]["coded"]).startswith("UnicodeDecodeError: 'utf-8' codec")
    assert str(results[0]["message"]).startswith("RestoreError: Process 1 of 2 (on ")
    assert str(results[0]["message"]).strip().endswith("RestoreError: no such file")
    assert str(results[1]["message"]) == ("RestoreError: no such file ['All 2 processes stop.']")


def test_a_process_at_work_is_waited_for_and_one_that_never_comes_is_an_error(
    tmp_path: Path,
) -> None:
    patience = {"KERAS_TRAINOPS_PROCESS_TIMEOUT": "3"}
    waiting = Run("tests.processes.scenes:wait_in_vain", 2, tmp_path, environment=patience)
    first, _ = waiting.join()
    assert "RestoreError: Process 1 of 2 (on " in first.output
    assert "ProcessTimeoutError: Process 0 of 2 waited for 3 seconds for the others, to end" in (
        first.output
    )


def test_one_process_sends_nothing() -> None:
    processes = Processes()
    assert (processes.index, processes.count, processes.is_first) == (0, 1, True)
    tree = {"not": ("for", "JSON")}
    assert processes.gather(tree, "to test") == [tree]
    with pytest.raises(KeyError, match="own"), processes.agreed("to test"):
        raise KeyError("own")


@pytest.mark.once
@pytest.mark.parametrize("size", [0, 1, 4087, 4088, 4089, 100_000])
def test_documents_of_any_length_are_framed(size: int) -> None:
    frames: list[int] = []

    def gather(frame: np.ndarray) -> np.ndarray:
        frames.append(frame.size)
        return np.stack([frame, frame])

    assert gathered(b"x" * size, gather, 4096) == [b"x" * size] * 2
    assert all(n & (n - 1) == 0 for n in frames)
    assert len(frames) == (1 if size <= 4088 else 2)


@pytest.mark.once
@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_the_patience_must_be_a_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_TRAINOPS_PROCESS_TIMEOUT", text)
    with pytest.raises(ValueError, match=f"must be a number of seconds > 0. Received: '{text}'"):
        Processes().in_time(list, "to test")
