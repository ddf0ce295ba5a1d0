from __future__ import annotations

from tests.session.small_runs import fit, steps


def test_saves_by_steps_by_seconds_and_at_end() -> None:
    fit("end")
    assert steps("end") == [20]
    fit("steps", save_steps=6, keep=9)
    assert steps("steps")[-1] == 20
    assert 6 in steps("steps")
    fit("seconds", save_seconds=1e-6, save_steps=19, keep=99)
    assert steps("seconds")[0] < 19
    assert steps("seconds")[-1] == 20


def test_keeps_the_newest_checkpoints() -> None:
    for stop in (3, 7, 12, 15):
        fit("run", stop_at_step=stop, keep=2)
    assert steps("run") == [12, 15]
