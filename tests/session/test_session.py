"""What a session keeps, writes, refuses and says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, refused, two_layers
from tests.session.runs import X, Y, net, state, train

SMALL_X, SMALL_Y = X[:, :4], Y


def fit(
    logdir: str, model: keras.Model | None = None, epochs: int = 2, **options: Any
) -> keras.Model:
    """A plain, small model with 10 batches in an epoch."""
    if model is None:
        keras.backend.clear_session()
        model = kt.with_train_ops(two_layers(1, name="small"))
        model.compile(keras.optimizers.Adam(0.01), "mse")
    defaults = {"save_seconds": None, "summary_steps": None, "verbose": 0}
    session = kt.TrainingSession(logdir, **{**defaults, **options})
    callbacks = [session]
    data = {"batch_size": 4, "shuffle": False, "verbose": 0}
    model.fit(SMALL_X, SMALL_Y, epochs=epochs, callbacks=callbacks, **data)
    return model


def steps(logdir: str) -> list[int]:
    return sorted(int(path.name[5:]) for path in Path(logdir, "checkpoints").glob("step-*"))


def log(logdir: str) -> str:
    return Path(logdir, "session.log").read_text(encoding="utf-8")


def test_checkpoints_by_steps_and_by_seconds_and_one_at_the_end() -> None:
    fit("end")
    assert steps("end") == [20]
    fit("steps", save_steps=6, keep=9)
    assert steps("steps")[-1] == 20
    assert 6 in steps("steps")
    fit("seconds", save_seconds=1e-6, save_steps=19, keep=99)
    assert steps("seconds")[0] < 19
    assert steps("seconds")[-1] == 20


def test_the_newest_are_kept() -> None:
    for stop in (3, 7, 12, 15):
        fit("run", stop_at_step=stop, keep=2)
    assert steps("run") == [12, 15]


def test_the_files_are_of_formats_that_others_read() -> None:
    model = fit("run")
    folder = Path("run/checkpoints/step-0000000020")
    assert sorted(p.name for p in folder.iterdir()) == [
        *("SHA256SUMS", "data.json", "session.json", "state.safetensors", "variables.json"),
    ]
    session = json.loads((folder / "session.json").read_text(encoding="utf-8"))
    assert (session["step"], session["epoch"], session["batch"]) == (20, 2, 0)
    other = two_layers(5, name="other")
    report = kt.restore(other, str(folder / "state.safetensors"))
    assert len(report.restored) == 4
    assert_same(other.get_weights(), model.get_weights())


@pytest.mark.parametrize("damage", ["flipped", "cut", "no sums", "no sum"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage: str) -> None:
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


def test_all_damaged_is_an_error_that_says_what_to_do() -> None:
    fit("run")
    Path("run/checkpoints/step-0000000020/SHA256SUMS").unlink()
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(OSError, match=r"There is no other: remove '.*checkpoints' to start anew"),
    ):
        fit("run")
    assert steps("run") == [20]


def test_a_directory_of_another_model_is_refused_and_left_alone() -> None:
    fit("run")
    before = {p: p.read_bytes() for p in Path("run/checkpoints").rglob("*") if p.is_file()}
    keras.backend.clear_session()
    inputs = keras.Input((4,))
    x = keras.layers.Dense(5, name="trunk")(inputs)
    other = kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="top")(x), name="other")
    other.compile(keras.optimizers.Adam(0.01), "mse")
    other.optimizer.build(other.trainable_variables)
    message = (
        r"(?s)Cannot resume from '.*step-0000000020': it is of another model.*"
        r"- head/bias: float32 \(2,\).*\+ top/bias: float32 \(2,\).*"
        r"! trunk/kernel: float32 \(4, 5\) in the model, float32 \(4, 3\) saved.*nothing was ch"
    )
    with refused(other, message, kt.RestoreError):
        fit("run", other)
    assert {p: p.read_bytes() for p in before} == before
    assert steps("run") == [20]
    fit("run")  # the lock was given back


def test_another_optimizer_is_refused() -> None:
    fit("run")
    model = kt.with_train_ops(two_layers(1, name="small"))
    model.compile("sgd", "mse")
    with pytest.raises(kt.RestoreError, match=r"- optimizer/adam/trunk_kernel_momentum"):
        fit("run", model)


def test_layers_that_keras_numbers_on_are_the_same_model() -> None:
    def numbered() -> keras.Model:
        inputs = keras.Input((4,))
        model = kt.TrainOpsModel(inputs, keras.layers.Dense(2)(inputs))
        model.compile("adam", "mse")
        return model

    first = fit("run", numbered())
    second = fit("run", numbered())
    assert first.layers[-1].name != second.layers[-1].name
    assert_same(second.get_weights(), first.get_weights())


def test_stop_at_step_and_on_from_there() -> None:
    whole = fit("whole", epochs=3)
    for stop in (7, 7, 10, 23):
        model = fit("run", epochs=3, stop_at_step=stop)
        assert int(model.optimizer.iterations) == stop
        assert f"stopped at step {stop}: stop_at_step={stop} is reached" in log("run")
    assert_same(state(fit("run", epochs=3)), state(whole))


def test_a_loss_that_is_nan_ends_it_and_the_last_checkpoint_stays() -> None:
    model = kt.with_train_ops(two_layers(1, name="small"))
    model.compile(keras.optimizers.Adam(0.01), "mse", check_numerics=True)
    bad = SMALL_Y.copy()
    bad[30] = np.nan
    session = kt.TrainingSession("run", save_steps=3, summary_steps=None, verbose=0)
    with pytest.raises(kt.NonFiniteLossError, match="at step 7"):
        model.fit(*(SMALL_X, bad), batch_size=4, shuffle=False, verbose=0, callbacks=[session])
    assert steps("run")[-1] <= 7
    assert "stopped because of NonFiniteLossError: The loss became NaN" in log("run")
    assert f"(the last is '{Path.cwd()}/run/checkpoints/step-" in log("run")


def test_a_plain_model_goes_on_at_an_epoch_and_says_so() -> None:
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
    assert steps("run") in ([], [10])  # it may still be writing
    assert_same(state(run("run")), state(whole))
    assert "resumed from step 10 (epoch 2) of" in log("run")
    run("early", stop_at_step=4)
    run("early")
    assert "epoch 1 starts over, with weights that have seen 4 of its batches: a plain" in log(
        "early"
    )


@pytest.mark.parametrize(
    ("make", "doubt"),
    [
        (lambda: {"x": X, "y": Y, "shuffle": False}, None),
        (lambda: {"x": (pair for pair in [(X, Y)] * 99)}, "a generator is taken to give the same"),
    ],
    ids=["arrays", "generator"],
)
def test_data_whose_order_may_not_come_again_are_told(make: Any, doubt: str | None) -> None:
    data = {"shuffle": False, "steps_per_epoch": 2, **make()}
    train("run", data=data, epochs=1, beside=[])
    assert ("may not see the same batches" in log("run")) == (doubt is not None)
    assert (doubt or "started in") in log("run")


@pytest.mark.backends("tensorflow")
def test_a_dataset_that_is_shuffled_without_a_seed_is_told() -> None:
    import tensorflow as tf

    def run(name: str, seed: int | None) -> None:
        model = kt.with_train_ops(two_layers(1))
        model.compile("sgd", "mse")
        keras.src.backend.common.global_state.set_global_attribute("global_random_seed", None)
        tf.random.set_seed(None)
        data = tf.data.Dataset.from_tensor_slices((SMALL_X, SMALL_Y)).shuffle(40, seed=seed)
        session = kt.TrainingSession(name, summary_steps=None, verbose=0)
        model.fit(data.batch(4), verbose=0, shuffle=False, callbacks=[session])

    run("seeded", 1)
    assert "may not see the same batches" not in log("seeded")
    run("not", None)
    assert "may not see the same batches: the dataset is shuffled without a seed" in log("not")


def test_the_log_tells_the_story(capsys: pytest.CaptureFixture[str]) -> None:
    fit("run", stop_at_step=12, verbose=1)
    fit("run", verbose=1)
    story = [line[20:] for line in log("run").splitlines()]
    run = Path.cwd() / "run"
    assert story[0] == f"started in '{run}'"
    assert story[1].startswith(
        f"saved step 12 to '{run}/checkpoints/step-0000000012' (0.0 MB; train"
    )
    assert story[2] == "stopped at step 12: stop_at_step=12 is reached"
    assert story[3].startswith(f"resumed from step 12 (epoch 2, batch 3) of '{run}/checkpoints/")
    assert story[5] == "stopped at step 20: all 2 epochs are trained"
    out = capsys.readouterr().out
    assert "TrainingSession: resumed from step 12" in out
    assert "saved step" not in out


def test_two_sessions_are_refused() -> None:
    sessions = [kt.TrainingSession("a"), kt.TrainingSession("b")]
    with pytest.raises(ValueError, match="one of these only: TrainingSession and TrainingSession"):
        net().fit(X, Y, callbacks=sessions, verbose=0)
    assert not Path("a").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_seconds": 0}, r"`save_seconds` must be > 0, or None\. Received: save_seconds=0"),
        ({"save_seconds": True}, r"`save_seconds` must be > 0, or None\. Received: save_seconds=T"),
        (
            {"save_seconds": "9"},
            r"`save_seconds` must be > 0, or None\. Received: save_seconds='9'",
        ),
        ({"save_seconds": float("nan")}, r"`save_seconds` must be > 0, or None"),
        ({"save_steps": True}, r"`save_steps` must be an integer >= 1, or None"),
        ({"summary_steps": True}, r"`summary_steps` must be an integer >= 1, or None"),
        ({"keep": True}, r"`keep` must be an integer >= 1\. Received: keep=True"),
        ({"keep": "5"}, r"`keep` must be an integer >= 1\. Received: keep='5'"),
        ({"verbose": "yes"}, r"`verbose` must be 0 or 1\. Received: verbose='yes'"),
        ({"save_steps": 0}, r"`save_steps` must be an integer >= 1, or None\. Received: save_st"),
        ({"summary_steps": 1.5}, r"`summary_steps` must be an integer >= 1, or None"),
        ({"keep": None}, r"`keep` must be an integer >= 1\. Received: keep=None"),
        ({"stop_at_step": True}, r"`stop_at_step` must be an integer >= 1, or None"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kt.TrainingSession("run", **options)


def test_state_of_callbacks_is_what_training_changed_in_them() -> None:
    class Counts(keras.callbacks.Callback):
        def __init__(self, limit: int, held: np.ndarray) -> None:
            super().__init__()
            self.limit, self.held = limit, held
            self.seen, self.best, self.small = 0, None, np.zeros(3)
            self.table = {"epochs": [], "last": float("inf")}
            self.net = object()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seen += 1
            self.small += epoch  # in place
            self.best = [np.full((600, 600), float(epoch))]
            self.table["epochs"].append(epoch)
            self.table["last"] = logs["loss"]

    held = np.zeros((600, 600))
    first, second = Counts(3, held), Counts(5, held + 1)
    train("run", beside=[first], epochs=2)
    train("run", beside=[second], epochs=2)
    assert (second.limit, second.seen) == (5, 2)
    assert second.held[0, 0] == 1
    assert second.small.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(second.best[0], first.best[0])
    assert second.table == first.table
