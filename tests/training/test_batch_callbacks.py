"""The callbacks of a `fit` are called as Keras calls them, but not for what none listens to."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.training.batch_callbacks import BatchCallbacks

X, Y = np.ones((12, 2), "float32"), np.ones((12, 1), "float32")
HOOKS = [
    f"on_{when}_{end}"
    for when in ("train", "epoch", "train_batch", "test", "test_batch")
    for end in ("begin", "end")
]


class Recorder(keras.callbacks.Callback):
    """Records what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def set_params(self, params: Any) -> None:
        super().set_params(params)
        self.calls.append(("params", dict(params)))

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self.calls.append(("model", model.built, model.optimizer is not None))


def _recording(hook: str) -> Any:
    def record(self: Recorder, *args: Any, **kwargs: Any) -> None:
        given = [*args, *kwargs.values()]
        self.calls.append((hook, *[sorted(a) if isinstance(a, dict) else a for a in given]))

    return record


for name in HOOKS:
    setattr(Recorder, name, _recording(name))


def model(extended: bool) -> Any:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,))
    made = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    made = kt.with_train_ops(made) if extended else made
    made.compile("sgd", "mse", metrics=["mae"])
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        {"epochs": 2, "validation_data": (X, Y)},
        {"epochs": 3, "initial_epoch": 1, "steps_per_epoch": 1},
        {"verbose": 2},
    ],
)
def test_callbacks_are_called_as_by_keras(arguments: dict[str, Any]) -> None:
    options = {"batch_size": 4, "verbose": 0, **arguments}
    recorders = [Recorder(), Recorder()]
    histories = [
        model(extended).fit(X, Y, callbacks=[recorder], **options).history
        for extended, recorder in zip((False, True), recorders, strict=True)
    ]
    theirs, ours = ([c for c in r.calls if c[0] not in ("params", "model")] for r in recorders)
    assert ours == theirs
    theirs, ours = ([c for c in r.calls if c[0] in ("params", "model")] for r in recorders)
    assert ours == theirs
    assert histories[0].keys() == histories[1].keys()


def test_the_history_and_the_progress_bar_are_keras_own(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for extended in (False, True):
        trained = model(extended)
        history = trained.fit(X, Y, batch_size=4, epochs=2, verbose=2)
        assert history is trained.history
        assert history.epoch == [0, 1]
        assert history.params == {"verbose": 2, "epochs": 2, "steps": 3}
        out = capsys.readouterr().out
        shown.append([line.split(" - ")[0] for line in out.splitlines()])
    assert shown[0] == shown[1]
    assert "Epoch 1/2" in shown[0]


def listened_to(*callbacks: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The batches that reach Keras's list of callbacks."""
    reached: list[str] = []
    for hook in ("on_train_batch_begin", "on_train_batch_end", "on_test_batch_end"):
        monkeypatch.setattr(
            keras.callbacks.CallbackList, hook, lambda *_, hook=hook, **__: reached.append(hook)
        )
    model(True).fit(
        X, Y, batch_size=4, verbose=0, callbacks=list(callbacks), validation_data=(X, Y)
    )
    return sorted(set(reached))


def test_batches_reach_only_those_who_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None)
    assert listened_to(epochs, monkeypatch=monkeypatch) == []


@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_train_batch_end"])
def test_an_attribute_of_a_callback_listens(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = keras.callbacks.LambdaCallback(**{hook: lambda batch, logs: None})
    assert hook in listened_to(listener, monkeypatch=monkeypatch)


def test_the_older_names_of_methods_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older(keras.callbacks.Callback):
        def on_batch_end(self, batch: int, logs: Any = None) -> None: ...

    assert listened_to(Older(), monkeypatch=monkeypatch) == ["on_train_batch_end"]


def test_a_list_of_the_users_own_stays_what_it_is() -> None:
    trained, recorder = model(True), Recorder()
    own = keras.callbacks.CallbackList([recorder], add_history=True, model=trained, epochs=1)
    trained.fit(X, Y, batch_size=4, verbose=0, callbacks=own)
    assert not isinstance(own, BatchCallbacks)
    assert sum(call[0] == "on_train_batch_end" for call in recorder.calls) == 3
