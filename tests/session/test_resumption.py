"""An interrupted run, started again, ends bit for bit like an uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest

import keras_trainops as kt
from tests.helpers import assert_same
from tests.session.runs import EPOCHS, Interrupt, Interrupted, X, Y, callbacks, net, state, train
from tests.session.small_runs import SMALL_X, SMALL_Y, log, model, run, steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Variables and history of the uninterrupted run."""
    model = train(tmp_path_factory.mktemp("whole") / "run")
    return state(model), model.history.history


def assert_same_run(resumed: Any, whole: Any) -> None:
    values, history = whole
    assert_same(state(resumed), values)
    assert resumed.history.history == history
    assert resumed.history.epoch == list(range(len(history["loss"])))


def test_resumes_within_and_between_epochs(whole: Any) -> None:
    for at in (3, 7, 12):  # batches of each process: steps 3, 10 (the first of an epoch) and 22
        with pytest.raises(Interrupted, match="before batch"):
            train("run", Interrupt(at))
    assert_same_run(train("run"), whole)


def test_a_session_does_not_change_training(whole: Any) -> None:
    model = net()
    beside = callbacks()
    model.fit(X, Y, batch_size=4, epochs=EPOCHS, verbose=0, shuffle=False, callbacks=beside)
    assert_same_run(model, whole)


def test_trains_more_epochs_and_then_nothing(whole: Any) -> None:
    train("run", epochs=2)
    train("run")
    assert_same_run(train("run"), whole)


@pytest.mark.backends("tensorflow", "jax")  # PyTorch has no such option in Keras
def test_resumes_blocks_of_steps(whole: Any) -> None:
    """Train 10 batches in blocks of 4."""
    whole_in_blocks = train("whole", model=net(steps_per_execution=4))
    with pytest.raises(Interrupted, match="before batch"):
        train("run", Interrupt(5), model=net(steps_per_execution=4))
    resumed = train("run", model=net(steps_per_execution=4))
    assert_same(state(resumed), state(whole_in_blocks))
    assert resumed.history.history == whole_in_blocks.history.history


def test_resumes_lazily_built_models_with_validation() -> None:
    class Lazy(kt.TrainOpsMixin, keras.Model):
        def __init__(self) -> None:
            super().__init__(name="lazy")
            self.drop = keras.layers.Dropout(0.2, seed=1, name="drop")
            self.head = keras.layers.Dense(2, name="head")

        def call(self, x: Any, training: bool = False) -> Any:
            return self.head(self.drop(x, training=training))

    def run(name: str, *more: Any) -> Any:
        keras.backend.clear_session()
        keras.utils.set_random_seed(3)
        model = Lazy()
        model.compile("adam", "mse", metrics=["mae"])
        data = {"x": X, "y": Y, "shuffle": False, "validation_data": (X[:8], Y[:8])}
        stop = keras.callbacks.EarlyStopping("val_loss", patience=0, min_delta=1.0)
        return train(name, *more, model=model, data=data, beside=[stop])

    whole = run("whole")
    assert whole.history.epoch == [0, 1]  # it stopped early
    with pytest.raises(Interrupted, match="before batch"):
        run("run", Interrupt(15))
    for _ in range(2):  # the second time it does not continue
        resumed = run("run")
        assert_same(state(resumed), state(whole))
        assert resumed.history.history == whole.history.history
    log = Path("run/session.log").read_text(encoding="utf-8")
    assert "nothing is left to do: a callback stopped training in epoch 2" in log


def test_resumes_the_logs_of_steps_with_an_evaluation() -> None:
    """Those of the evaluation do not exist yet when the run is resumed."""

    class Stepping(kt.TrainOpsModel):
        def training_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
            x, y, _ = step.unpack(data)
            loss = step.minimize(lambda: step.loss(x, y, step.forward(x)))
            return {"loss": loss, "twice": 2 * loss}

        def evaluation_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
            x, y, _ = step.unpack(data)
            return {"error": keras.ops.mean(step.forward(x) - y)}

    def run(name: str, **options: Any) -> Any:
        keras.backend.clear_session()
        keras.utils.set_random_seed(3)
        inputs = keras.Input((4,))
        model = Stepping(inputs, keras.layers.Dense(2, name="head")(inputs), name="net")
        model.compile("sgd", "mse")
        session = kt.TrainingSession(name, save_steps=1, summary_steps=None, verbose=0, **options)
        data = {"batch_size": 4, "shuffle": False, "validation_data": (SMALL_X[:4], SMALL_Y[:4])}
        model.fit(SMALL_X, SMALL_Y, epochs=3, verbose=0, callbacks=[session], **data)
        return model.history.history

    whole = run("whole")
    run("run", stop_at_step=15)  # within the second epoch
    assert run("run") == whole


def test_a_plain_model_resumes_at_an_epoch() -> None:
    class Stop(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if self.model.optimizer.iterations == 15:
                raise KeyboardInterrupt("Ctrl-C")

    def run(name: str, *more: Any, **options: Any) -> keras.Model:
        keras.backend.clear_session()
        keras.utils.set_random_seed(3)
        inputs = keras.Input((4,))
        x = keras.layers.Dropout(0.3, seed=1, name="drop")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
        model.compile("adam", "mse")
        session = kt.TrainingSession(name, save_steps=1, summary_steps=None, verbose=0, **options)
        start = kt.WarmStart({"head/bias": [5.0, 6.0]}, verbose=0)
        model.fit(
            *(SMALL_X, SMALL_Y),
            batch_size=4,
            epochs=3,
            shuffle=False,
            verbose=0,
            callbacks=[start, session, *more],
        )
        return model

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
        run("run", Stop())
    assert steps("run") in ([], [10])  # the process may still be writing
    assert_same(state(run("run")), state(whole))
    assert "resumed from step 10 (epoch 2) of" in log("run")
    run("early", stop_at_step=4)
    run("early")
    assert "epoch 1 starts over, although 4 of its batches were trained: a plain" in log("early")


def test_a_session_works_again_after_a_failed_fit() -> None:
    class Fail(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            raise RuntimeError("disk full")

    session = kt.TrainingSession("run", save_steps=1, summary_steps=None, verbose=0)
    net = model(kind=lambda plain: plain)
    options: Any = {"batch_size": 4, "epochs": 2, "verbose": 0}
    with pytest.raises(RuntimeError, match="disk full"):
        net.fit(SMALL_X, SMALL_Y, callbacks=[session, Fail()], **options)
    net.fit(SMALL_X, SMALL_Y, callbacks=[session], **options)
    assert session.step == net.optimizer.iterations == 2 * len(SMALL_X) // 4
    assert log("run").count("resumed from step") == 1


def test_an_epoch_of_a_plain_model_starts_over() -> None:
    run(model(kind=lambda plain: plain), stop_at_step=4)
    resumed = run(model())
    said = "epoch 1 starts over, although 4 of its batches were trained: the checkpoint is from"
    assert said in log("run")
    assert steps("run")[-1] == 24
    assert int(resumed.optimizer.iterations) == 24
