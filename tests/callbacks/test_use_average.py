"""Averages for measuring and keeping weights, the model's own weights for training."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, differ, value, values, weights

C, L, U = keras.callbacks, keras.layers, kt.updates
RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype("float32")
Y = (X @ RNG.normal(size=(4, 2)) + RNG.normal(size=(64, 2))).astype("float32")
VALID = (X[:32], Y[:32])
ORDERS = ("first", "middle", "last")


def net(
    ema: bool = False, norm: bool = False, policy: str = "float32", **average: Any
) -> tuple[Any, Any]:
    """Make a network whose learning rate is too high, so that its average is better."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    x = L.Dense(8, activation="tanh", name="trunk", dtype=policy)(inputs)
    x = L.BatchNormalization(name="norm")(x) if norm else x
    outputs = L.Dense(2, name="head")(x)
    if ema:
        model = keras.Model(inputs, outputs, name="net")
        model.compile(keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9), "mse")
        return model, None
    model = kt.TrainOpsModel(inputs, outputs, name="net")
    model.dtype_policy = policy
    moving = U.MovingAverage(0.9, **average)
    model.compile(
        keras.optimizers.SGD(0.02 if norm else 0.5),
        "mse",
        updates=[U.LayerUpdates(), moving],
        gradient_transforms=kt.transforms.Monitor(),
    )
    return model, moving


def fit(model: Any, callbacks: Any, **options: Any) -> dict[str, list[float]]:
    data = {"batch_size": 8, "epochs": 6, "shuffle": False, "verbose": 0, "validation_data": VALID}
    return model.fit(X, Y, callbacks=callbacks, **{**data, **options}).history


def ordered(use: Any, others: list[Any], order: str) -> list[Any]:
    at = {"first": 0, "middle": len(others) // 2, "last": len(others)}[order]
    return [*others[:at], use, *others[at:]]


def loss(model: Any) -> float:
    return float(model.evaluate(*VALID, verbose=0))


class Sees(keras.callbacks.Callback):
    """Record the weights at each event, and call `act` at one of them."""

    def __init__(self, act: Any = None, at: str = "") -> None:
        super().__init__()
        self.seen: dict[str, list[list[np.ndarray]]] = {}
        self._act, self._at = act, at

    def _look(self, event: str) -> None:
        model = self.model
        self.seen.setdefault(event, []).append(weights(model))
        if event == self._at:
            self._act(model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._look("epoch begins")

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._look("batch begins")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._look("batch ends")

    def on_test_begin(self, logs: Any = None) -> None:
        self._look("test begins")

    def on_test_end(self, logs: Any = None) -> None:
        self._look("test ends")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._look("epoch ends")

    def on_train_end(self, logs: Any = None) -> None:
        self._look("train ends")


def raises(error: BaseException) -> Any:
    def act(model: Any) -> None:
        raise error

    return act


def best_losses(model: Any, use: Any, order: str) -> tuple[float, float, float]:
    """Return the best loss in `fit`, and those of the weights that two callbacks kept."""
    stop = C.EarlyStopping(patience=3, restore_best_weights=True)
    keep = C.ModelCheckpoint("best.weights.h5", save_best_only=True, save_weights_only=True)
    best = min(fit(model, ordered(use, [stop, keep], order))["val_loss"])
    stopped = loss(model)
    model.load_weights("best.weights.h5")
    return best, stopped, loss(model)


@functools.cache
def losses_of_keras() -> tuple[float, float, float]:
    return best_losses(net(ema=True)[0], C.SwapEMAWeights(swap_on_epoch=True), "first")


@functools.cache
def best_loss_without_average() -> float:
    return min(fit(net()[0], [])["val_loss"])


@pytest.mark.parametrize("order", ORDERS)
def test_other_callbacks_keep_the_validated_weights(order: str) -> None:
    best, stopped, kept = best_losses(net()[0], kt.UseAverage(), order)
    assert stopped == pytest.approx(best, rel=1e-6)
    assert kept == pytest.approx(best, rel=1e-6)
    # SwapEMAWeights swaps by sums on TensorFlow, which changes the last digits of the weights.
    assert (best, stopped, kept) == pytest.approx(losses_of_keras(), rel=1e-3)
    assert best_loss_without_average() > 1.1 * best


def validation(frequency: int | None) -> dict[str, Any]:
    return {"validation_freq": frequency} if frequency else {"validation_data": None}


@functools.cache
def without_callback(frequency: int | None) -> tuple[Any, Any, Any]:
    """Return averages at the ends of epochs, weights at each event, and all values at the end."""
    averages: list[list[np.ndarray]] = []
    plain, moving = net()
    sees = Sees(lambda model: averages.append([a for _, a in moving.averages()]), "epoch ends")
    fit(plain, [sees], **validation(frequency))
    return averages, sees.seen, values(plain)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("frequency", [1, 2, None])
def test_callbacks_see_averages_only_as_epochs_end(order: str, frequency: int | None) -> None:
    averages, own, plain = without_callback(frequency)
    model, _ = net()
    first, last = Sees(), Sees()
    fit(model, ordered(kt.UseAverage(), [first, last], order), **validation(frequency))
    assert_same(values(model), plain)
    for sees in (first, last):
        for event, seen in sees.seen.items():
            if event == "epoch ends":
                expected = averages
            elif event.startswith("test"):
                expected = averages if frequency == 1 else averages[1::2]
            else:
                expected = own[event]
            assert len(seen) == len(expected), event
            for mine, its in zip(seen, expected, strict=True):
                assert_same(mine, its)
    assert differ(averages[-1], own["epoch ends"][-1]) > 1e-3


def test_only_validation_uses_the_averages() -> None:
    _, own, _ = without_callback(1)
    model, _ = net()
    sees = Sees()
    fit(model, [kt.UseAverage(only_validation=True), sees])
    for event in ("epoch ends", "batch begins", "train ends"):
        for mine, its in zip(sees.seen[event], own[event], strict=True):
            assert_same(mine, its)
    assert differ(sees.seen["test ends"][-1], own["test ends"][-1]) > 1e-3


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        ("float32", "statistics"),
        ("float32", "recalibrated"),
        ("mixed_bfloat16", "recalibrated"),
        ("mixed_float16", "statistics"),
    ],
)
def test_training_is_the_same_bit_for_bit(policy: str, kind: str) -> None:
    def run(use: bool) -> tuple[Any, dict[str, list[float]]]:
        model, _ = net(norm=True, policy=policy, statistics=kind == "statistics")
        recalibrate = X if kind == "recalibrated" else None
        seeing = [kt.UseAverage(recalibrate=recalibrate)] if use else []
        slower = C.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=0.1)
        return model, fit(model, [slower, *seeing], validation_freq=2)

    with_average, history = run(True)
    plain, plain_history = run(False)
    assert_same(values(with_average), values(plain))
    for name in ("loss", "gradient_norm", "learning_rate"):
        assert history[name] == plain_history[name]
    assert history["val_loss"] != plain_history["val_loss"]


def test_steps_per_epoch_and_blocks_of_steps() -> None:
    def run(use: bool) -> Any:
        model, _ = net()
        model.steps_per_execution = 1 if keras.backend.backend() == "torch" else 3
        fit(model, [kt.UseAverage()] if use else [], batch_size=4, steps_per_epoch=5, epochs=3)
        return model

    assert_same(values(run(True)), values(run(False)))


@pytest.mark.parametrize("event", ["batch ends", "epoch begins", "epoch ends"])
def test_evaluations_by_callbacks_use_the_averages(event: str) -> None:
    expected: list[float] = []
    found: list[float] = []
    plain, moving = net()

    def with_averages(model: Any) -> None:
        if not keras.ops.convert_to_numpy(moving.scalars["count"].value):
            expected.append(loss(model))
            return
        with moving.swapped():
            expected.append(loss(model))

    fit(plain, [Sees(with_averages, event)], epochs=2)
    model, _ = net()
    fit(model, [kt.UseAverage(), Sees(lambda model: found.append(loss(model)), event)], epochs=2)
    assert found == pytest.approx(expected, rel=1e-6)
    assert_same(values(model), values(plain))


def test_keeps_weights_that_a_callback_assigns() -> None:
    def halve(model: Any) -> None:
        kernel = model.get_layer("head").kernel
        kernel.assign(value(kernel) * 0 + 0.5)

    model, _ = net()
    sees = Sees()
    fit(model, [kt.UseAverage(), Sees(halve, "epoch ends"), sees], epochs=2)
    names = [v.path for v in model.weights]
    head = names.index("head/kernel")
    np.testing.assert_array_equal(sees.seen["epoch begins"][1][head], 0.5)
    plain, _ = net()
    fit(plain, [kt.UseAverage(), Sees(halve, "epoch ends")], epochs=1)
    other, _ = net()
    fit(other, [], epochs=1)
    for i, (mine, its) in enumerate(zip(weights(plain), weights(other), strict=True)):
        np.testing.assert_array_equal(mine, np.full_like(its, 0.5) if i == head else its)


@pytest.mark.parametrize(
    ("event", "order"), [("epoch ends", "first"), ("test ends", "last"), ("test begins", "middle")]
)
@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt("mine")])
def test_restores_the_model_s_weights_after_errors(
    order: str, event: str, error: BaseException
) -> None:
    model, _ = net(norm=True)
    sees = Sees(raises(error), event)
    use = kt.UseAverage(recalibrate=X)
    with pytest.raises(type(error), match="mine"):
        fit(model, ordered(use, [sees, Sees()], order), validation_data=VALID)
    plain, _ = net(norm=True)
    fit(plain, [], epochs=1)
    assert_same(weights(model), weights(plain))
    assert loss(model) == loss(plain)


@pytest.mark.parametrize("way", ["in", "out"])
def test_restores_weights_after_an_interrupted_swap(way: str) -> None:
    """Interrupt the swap at an assignment, in one direction or the other."""
    model, _ = net()
    variable = model.get_layer("head").kernel
    assign, calls = variable.assign, []

    def interrupted(new: Any) -> Any:
        calls.append(new)
        if len(calls) == (1 if way == "in" else 2):
            raise KeyboardInterrupt("in the swap")
        return assign(new)

    def lie_in_wait(model: Any) -> None:
        if not calls:
            variable.__dict__["assign"] = interrupted

    with pytest.raises(KeyboardInterrupt, match="in the swap"):
        # Without validation only the swap assigns between two epochs.
        fit(model, [Waits(lie_in_wait), kt.UseAverage()], validation_data=None)
    del variable.__dict__["assign"]
    plain, _ = net()
    fit(plain, [], epochs=1, validation_data=None)
    assert_same(weights(model), weights(plain))


class Waits(keras.callbacks.Callback):
    """Act after the last training step of an epoch."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self._act = act

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 7:
            self._act(self.model)


@pytest.mark.parametrize("order", ORDERS)
def test_finalize_ends_with_averages_or_best_weights(order: str) -> None:
    model, moving = net()
    history = fit(model, ordered(kt.UseAverage(finalize=True), [], order))["val_loss"]
    assert_same(weights(model), [a for _, a in moving.averages()])
    model, moving = net()
    # The best epoch must be an early one; initial weights differ between backends.
    mode, best = ("max", max) if np.argmax(history) < len(history) - 1 else ("min", min)
    stop = C.EarlyStopping(mode=mode, patience=9, restore_best_weights=True)
    others = [
        stop,
        C.ModelCheckpoint("best.weights.h5", save_best_only=True, save_weights_only=True),
    ]
    history = fit(model, ordered(kt.UseAverage(finalize=True), others, order))["val_loss"]
    assert loss(model) == pytest.approx(best(history), rel=1e-6)
    assert differ(weights(model), [a for _, a in moving.averages()]) > 1e-4


@pytest.mark.parametrize("order", ORDERS)
def test_backup_and_restore_saves_the_own_weights(order: str) -> None:
    def run(*more: Any, order: str = order) -> Any:
        model, _ = net()
        stop = C.EarlyStopping(patience=9)
        fit(model, ordered(kt.UseAverage(), [stop, *more, Sees()], order))
        return model

    def interrupts(model: Any) -> None:
        if int(value(model.optimizer.iterations)) == 20:  # within the third epoch
            raise KeyError("power")

    whole = run()
    with pytest.raises(KeyError, match="power"):
        run(C.BackupAndRestore("backup"), Sees(interrupts, "batch begins"))
    resumed = run(C.BackupAndRestore("backup"))
    assert_same(values(resumed), values(whole))


@pytest.mark.parametrize(("order", "stop_at_step"), [("first", 12), ("middle", 16), ("last", 20)])
def test_a_session_saves_the_own_weights(order: str, stop_at_step: int) -> None:
    def run(logdir: str, **options: Any) -> Any:
        model, _ = net(norm=True, statistics=True)
        session = kt.TrainingSession(
            logdir, save_seconds=None, summary_steps=None, verbose=0, **options
        )
        stop = C.EarlyStopping(patience=9, restore_best_weights=True)
        history = fit(model, ordered(kt.UseAverage(), [session, stop, Sees()], order))
        return model, history

    whole, history = run("whole")
    run("run", stop_at_step=stop_at_step)
    resumed, rest = run("run")
    assert_same(values(resumed), values(whole))
    assert rest["val_loss"] == history["val_loss"]
    with kt.open_checkpoint(f"whole/checkpoints/step-{48:010}/state.safetensors") as kept:
        plain, _ = net(norm=True, statistics=True)
        fit(plain, [])
        for variable in plain.weights:
            np.testing.assert_array_equal(kept[variable.path], value(variable))


def test_accepts_a_callback_list() -> None:
    model, _ = net()
    stop = C.EarlyStopping(patience=3, restore_best_weights=True)
    given = [stop, kt.UseAverage()]
    listed = C.CallbackList(given, add_history=True, model=model, epochs=6, steps=8, verbose=0)
    before = list(listed.callbacks)
    history = fit(model, listed)
    assert loss(model) == pytest.approx(min(history["val_loss"]), rel=1e-6)
    assert listed.callbacks == before


def test_refuses_two_of_them(tmp_path: Path) -> None:
    model, _ = net()
    with pytest.raises(ValueError, match="only one of these: UseAverage and UseAverage"):
        fit(model, [kt.UseAverage(), kt.UseAverage()])


@pytest.mark.parametrize("steps", [0, True, 1.5])
def test_rejects_steps_that_are_no_positive_integer(steps: Any) -> None:
    message = rf"`steps` must be an integer >= 1, or None\. Received: steps={steps}"
    with pytest.raises(ValueError, match=message):
        kt.UseAverage(steps=steps)
