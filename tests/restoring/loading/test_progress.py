from __future__ import annotations

import pytest

import keras_trainops as kt
from keras_trainops.restoring.loading import progress
from tests.helpers import two_layers
from tests.restoring.helpers import ALL


def test_verbose_prints_report_and_progress_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = kt.restore(two_layers(), ALL)
    assert capsys.readouterr().out == ""
    report = kt.restore(two_layers(), ALL, verbose=1)
    assert capsys.readouterr().out == f"{report}\n"
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "UNIT", 1)
    nbytes = 4 * sum(array.size for array in ALL.values())
    kt.restore(two_layers(), ALL, memory="bounded", verbose=1)
    assert f"{2 * nbytes}/{2 * nbytes}" in capsys.readouterr().out
    kt.restore(two_layers(), ALL, memory="once", verbose=1)
    assert f"{nbytes}/{nbytes}" in capsys.readouterr().out
    kt.restore(two_layers(), ALL)
    assert capsys.readouterr().out == ""
