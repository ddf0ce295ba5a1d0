from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from keras_trainops.session.storage import store
from tests.helpers import assert_same
from tests.session.checkpoints import rewrite
from tests.session.runs import state
from tests.session.small_runs import At, fit, log, model, run, steps


@pytest.mark.parametrize("damage", ["flipped", "cut", "no sums", "no sum"])
def test_falls_back_from_a_damaged_checkpoint(damage: str) -> None:
    whole = fit("whole")
    fit("run", stop_at_step=12)
    shutil.copytree("run/checkpoints/step-0000000012", "run/checkpoints/step-0000000015")
    newest = Path("run/checkpoints/step-0000000015")
    arrays = newest / "state.safetensors"
    content = bytearray(arrays.read_bytes())
    if damage == "flipped":
        content[-3] ^= 1
        arrays.write_bytes(content)
    elif damage == "cut":
        arrays.write_bytes(content[:-3])
    elif damage == "no sums":
        (newest / "SHA256SUMS").unlink()
    else:
        sums = (newest / "SHA256SUMS").read_text(encoding="utf-8").splitlines(keepends=True)
        (newest / "SHA256SUMS").write_text("".join(sums[:-1]), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"step-0000000015' is damaged: .*The one before it"):
        resumed = fit("run")
    assert_same(state(resumed), state(whole))
    assert "is damaged" in log("run")


@pytest.mark.parametrize("name", ["session.json", "data.json", "variables.json"])
def test_falls_back_from_a_wrong_document(name: str) -> None:
    whole = run(model(), stop_at_step=14, keep=9)
    shutil.move("run", "whole")
    run(model(), stop_at_step=6)
    run(model(), stop_at_step=9)
    newest = Path("run/checkpoints/step-0000000009")
    rewrite(newest, name, "[]" if name == "session.json" else '{"position": 1}')
    with pytest.warns(UserWarning, match=rf"is damaged: {name}.*The one before it is used"):
        resumed = run(model(), stop_at_step=14)
    assert_same(resumed.get_weights(), whole.get_weights())
    assert f"is damaged: {name}" in log("run")
    np.testing.assert_equal(steps("run"), [6, 9, 14])


def test_raises_if_all_checkpoints_are_damaged() -> None:
    fit("run")
    Path("run/checkpoints/step-0000000020/SHA256SUMS").unlink()
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(OSError, match=r"There is no other: remove '.*checkpoints' to start over"),
    ):
        fit("run")
    assert steps("run") == [20]


@pytest.mark.parametrize("during", ["between", "while writing"])
def test_reports_a_directory_deleted_during_training(
    monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    def vanish() -> None:
        Path("run").rename("gone")  # atomically, so that nothing is written meanwhile
        shutil.rmtree("gone")

    def delete() -> None:
        while not steps("run"):
            time.sleep(0.01)
        if during == "between":
            vanish()
        else:  # the files vanish before the next checkpoint is synced
            sync = store._sync

            def late(path: Path) -> None:
                if path.is_file() and Path("run").exists():
                    vanish()
                sync(path)

            monkeypatch.setattr(store, "_sync", late)

    message = r"the log directory '.*/run' was deleted, moved or replaced while the run trained"
    with (
        pytest.warns(
            UserWarning, match=rf"training continues: {message} \(there is no checkpoint\)"
        ),
        pytest.raises(OSError, match=rf"The final checkpoint, at step 10, could not .*{message}"),
    ):
        run(model(), At(3, delete), save_steps=2, epochs=1)
    assert not Path("run").exists()


def test_leaves_a_replaced_directory_alone() -> None:
    def replace() -> None:
        Path("run").rename("moved")
        Path("run").mkdir()
        Path("run/session.lock").write_text("another's", encoding="utf-8")

    with pytest.raises(OSError, match=r"The final checkpoint.*deleted, moved or replaced"):
        run(model(), At(6, replace), epochs=1)
    assert not Path("run/checkpoints").exists()
    assert Path("run/session.lock").read_text(encoding="utf-8") == "another's"
