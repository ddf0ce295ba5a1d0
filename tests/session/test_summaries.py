from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import pytest

import keras_trainops as kt
from tests.session.events import scalars
from tests.session.runs import Interrupt, Interrupted, X, Y, net, train


def fit(logdir: str, *more: Any, model: Any = None, stop: int | None = None, **options: Any) -> Any:
    data = {"x": X, "y": Y, "shuffle": False, **options}
    session = {"summary_steps": 7, "save_steps": 4, "stop_at_step": stop}
    return train(logdir, *more, model=model, data=data, session=session, beside=[])


def test_writes_every_n_steps_and_after_validation() -> None:
    model = fit("run", validation_data=(X[:8], Y[:8]))
    tags = scalars("run")
    assert set(tags) == {
        *("loss", "mae", "learning_rate", "steps_per_second", "gradient_norm"),
        *("val_loss", "val_mae"),
    }
    for tag in ("loss", "mae", "learning_rate", "gradient_norm"):
        assert list(tags[tag]) == [7, 14, 21, 28, 35]
    assert list(tags["val_loss"]) == [10, 20, 30, 40]
    assert list(tags["val_loss"].values()) == pytest.approx(model.history.history["val_loss"])
    assert list(tags["learning_rate"].values()) == pytest.approx([0.01] * 5)
    assert all(norm > 0 for norm in tags["gradient_norm"].values())


def test_the_loss_is_the_epoch_s_running_mean() -> None:
    seen: list[float] = []

    class Means(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append(logs["loss"])

    fit("run", Means())
    for step, loss in scalars("run")["loss"].items():
        assert loss == pytest.approx(seen[step - 1], rel=1e-6)


@pytest.mark.backends("tensorflow", "jax")  # PyTorch has no such option in Keras
def test_writes_after_the_next_block_of_steps() -> None:
    fit("run", model=net(steps_per_execution=4))
    assert list(scalars("run")["loss"]) == [8, 14, 24, 28, 38]


def test_rewrites_events_after_the_last_checkpoint() -> None:
    fit("whole")
    with pytest.raises(Interrupted, match="before batch"):
        fit("run", Interrupt(16))
    fit("run")
    whole, resumed = scalars("whole"), scalars("run")
    assert resumed["loss"] == whole["loss"]
    assert resumed["gradient_norm"] == whole["gradient_norm"]


def test_keeps_the_events_of_the_checkpoint_step() -> None:
    fit("whole")
    fit("run", stop=14)
    fit("run")
    assert list(scalars("run")["loss"]) == list(scalars("whole")["loss"]) == [7, 14, 21, 28, 35]


def test_writes_no_files_without_summaries() -> None:
    train("run", session={"summary_steps": None}, epochs=1, beside=[])
    assert not list(Path("run").glob("events.*"))


def test_reports_a_missing_tensorboardx(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["tensorboardX", *(n for n in sys.modules if n.startswith("tensorboardX."))]:
        monkeypatch.setitem(sys.modules, name, None)
    train("run", session={"summary_steps": 5}, epochs=1, beside=[])
    log = Path("run/session.log").read_text(encoding="utf-8")
    assert "no summaries: pip install 'keras-trainops[tensorboard]'" in log


def test_the_state_stays_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On JAX each use of a callback's `model` copies its state from the device."""
    looks: list[int] = []
    of_callbacks = keras.callbacks.Callback.model

    def counted(self: Any) -> Any:
        looks.append(1)
        return of_callbacks.fget(self)

    model = net()
    session = kt.TrainingSession("run", save_seconds=1e9, summary_steps=10**9, verbose=0)
    monkeypatch.setattr(keras.callbacks.Callback, "model", property(counted))
    counts = []
    for epochs in (1, 5):
        looks.clear()
        model.fit(X, Y, batch_size=4, epochs=epochs, verbose=0, callbacks=[session])
        counts.append(len(looks))
        session = kt.TrainingSession("other", save_seconds=1e9, summary_steps=None, verbose=0)
    per_epoch = (counts[1] - counts[0]) / 4
    assert per_epoch <= 2  # by the history, at the end of an epoch
