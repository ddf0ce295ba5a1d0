from __future__ import annotations

import threading

from keras_trainops.session.storage.writer import BackgroundWriter


def test_runs_one_job_after_the_other() -> None:
    writer, gate, jobs = BackgroundWriter(), threading.Event(), []

    def first() -> None:
        gate.wait(10)
        jobs.append("first")

    writer.start(first)
    assert writer.busy
    gate.set()
    writer.start(lambda: jobs.append("second"))
    writer.wait()
    assert not writer.busy
    assert jobs == ["first", "second"]


def test_returns_an_error_once() -> None:
    writer = BackgroundWriter()

    def fail() -> None:
        raise OSError("disk full")

    writer.start(fail)
    writer.wait()
    assert str(writer.take_error()) == "disk full"
    assert writer.take_error() is None
