from __future__ import annotations

from typing import Any

import pytest

from keras_trainops.processes import Processes
from keras_trainops.session.agreement import Agreement, Wishes
from tests.processes.launch import run


def test_one_process_decides_alone_in_every_step() -> None:
    wishes = iter([Wishes(save=True), Wishes(interrupt=True), Wishes(stop=True)])
    agreement = Agreement(Processes(), lambda step: None)
    assert agreement.between_steps(1, lambda: next(wishes)) == (True, False, False)
    assert agreement.between_steps(2, lambda: next(wishes)) == (False, True, False)
    assert agreement.at_end_of_epoch(3, lambda: next(wishes)) == (False, False, True)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run("tests.session.processes:wishes", 2, tmp_path_factory.mktemp("wishes"))


def test_process_0_decides_when_to_save(said: list[Any]) -> None:
    for result in said:
        assert result["0 saves"].tolist() == [True, False, False]
        assert result["1 saves"].tolist() == [False, False, False]


def test_any_process_can_stop_all(said: list[Any]) -> None:
    for result in said:
        assert result["1 interrupts"].tolist() == [False, True, False]
        assert result["1 stops"].tolist() == [False, False, True]


def test_processes_talk_often_enough_but_not_in_every_step(said: list[Any]) -> None:
    for result in said:
        talked = result["talked"].tolist()
        assert talked == said[0]["talked"].tolist()
        assert 2 < len(talked) < 300
        assert 250 in talked  # a checkpoint is due


def test_processes_at_different_places_get_an_error(said: list[Any]) -> None:
    for result in said:
        message = str(result["apart"])
        assert "process 0 is at step 1000, process 1 at the end of an epoch, at step 999" in message
        assert "same number of batches" in message
