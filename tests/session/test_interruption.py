from __future__ import annotations

import os
import signal
import threading

import pytest

import keras_trainops as kt
from keras_trainops.session.interruption import Interruption


def test_records_sigterm_until_it_stops_listening() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        interruption = Interruption()
        interruption.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (interruption.requested, received) == (True, [])
        interruption.stop_listening()
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_keeps_a_handler_that_was_installed_later() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        interruption = Interruption()
        interruption.listen()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        interruption.stop_listening()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_listens_in_the_main_thread_only() -> None:
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=Interruption().listen)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before


def test_exits_with_the_status_of_sigterm() -> None:
    with pytest.raises(SystemExit, match="saved a checkpoint at step 7") as interrupted:
        raise kt.SessionInterrupted(7)
    assert interrupted.value.code == 143
