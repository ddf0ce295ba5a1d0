"""Models that several optimizers train, in all that the library promises of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, differ, two_replicas, value, values
from tests.training.custom_steps import NOISE, REAL, Adversaries, adversaries, fit
from tests.training.small_models import TRACED


def updates_made(model: Any) -> dict[str, int]:
    return {name: int(value(o.iterations)) for name, o in model.optimizer.by_name.items()}


class Count(kt.updates.Update):
    """Counts how often it runs, and keeps the loss that it got."""

    def build(self, model: Any) -> None:
        self.runs = self.state_variable("runs", dtype="int32")
        self.loss = self.state_variable("loss")

    def __call__(self, model: Any, loss: Any) -> None:
        self.runs.assign(self.runs + 1)
        self.loss.assign(loss)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"run_eagerly": True}, id="eager"),
        pytest.param({"jit_compile": True}, id="xla", marks=TRACED),
        pytest.param({"steps_per_execution": 3}, id="steps", marks=TRACED),
        pytest.param({"check_numerics": True}, id="checked"),
        pytest.param({"updates": [kt.updates.LayerUpdates()]}, id="collected"),
    ],
)
def test_each_mode_gives_the_same_numbers(options: dict[str, Any]) -> None:
    usual, model = adversaries(), adversaries(**options)
    logs, same_logs = fit(usual), fit(model)
    assert differ(values(usual), values(model)) <= 1e-5
    assert logs.keys() == same_logs.keys() == {"critic", "generator"}
    assert updates_made(model) == {"critic": 6, "generator": 6}
    assert value(model.optimizer.iterations) == 12


def test_each_has_its_own_transforms_and_monitors() -> None:
    tiny = kt.transforms.ClipByGlobalNorm(1e-12)
    options = {"critic": [kt.transforms.Monitor(), tiny]}
    model = adversaries(
        {"critic": keras.optimizers.SGD(0.1), "generator": keras.optimizers.SGD(0.1)},
        gradient_transforms=options,
    )
    before = [value(v) for v in model.critic.trainable_variables]
    start = [value(v) for v in model.generator.trainable_variables]
    logs = fit(model)
    assert differ(before, [value(v) for v in model.critic.trainable_variables]) < 1e-10
    assert differ(start, [value(v) for v in model.generator.trainable_variables]) > 1e-4
    assert logs["gradient_norm"][0] > 1e-3


def test_updates_follow_all_optimizers_or_one() -> None:
    each, generator, batches = Count(every=3), Count(every=2), Count(every=2, on="batch")
    fit(adversaries(updates=[kt.updates.LayerUpdates(), each, batches]))
    model = adversaries(updates={"generator": [generator], "critic": kt.updates.LayerUpdates()})
    logs = fit(model, batch_size=24)
    assert (value(each.runs), value(batches.runs)) == (4, 3)  # of 12 weight updates, 6 batches
    assert value(generator.runs) == 0  # of 1
    logs = fit(model, batch_size=24)
    assert value(generator.runs) == 1
    np.testing.assert_allclose(value(generator.loss), logs["generator"][0], rtol=1e-5)


def test_a_policy_reaches_layers_called_outside_of_gradients() -> None:
    model = adversaries(updates=[])
    with pytest.warns(UserWarning, match="leaves out updates .*generator_norm/moving_mean"):
        fit(model)
    norm = model.generator.get_layer("generator_norm")
    np.testing.assert_array_equal(value(norm.moving_mean), np.zeros(5))


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}], ids=["default", "eager"])
def test_nothing_changes_from_a_bad_loss_on(options: dict[str, Any]) -> None:
    good, model = adversaries(check_numerics=True), adversaries(check_numerics=True, **options)
    good.fit(NOISE[:12], REAL[:12], batch_size=4, shuffle=False, verbose=0)
    bad = REAL.copy()
    bad[13] = np.nan
    with pytest.raises(kt.NonFiniteLossError, match="The loss became NaN or infinite at step 6 "):
        model.fit(NOISE, bad, batch_size=4, shuffle=False, verbose=0)
    assert differ(values(good), values(model)) <= 1e-6


def test_a_bad_second_loss_keeps_the_first_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """The critic has been updated when the generator's loss turns out to be NaN."""
    model = adversaries(check_numerics=True)

    def spoilt(self: Any, step: Any, data: Any) -> Any:
        noise, real, _ = step.unpack(data)
        variables = self.critic.trainable_variables
        first = step.minimize(lambda: self.critic_loss(self.generator(noise), real), variables)
        bad = noise / 0.0
        weights = self.generator.trainable_variables
        second = step.minimize(lambda: keras.ops.sum(self.generator(bad)), weights)
        return {"critic": first, "generator": second}

    monkeypatch.setattr(Adversaries, "training_step", spoilt)
    with pytest.raises(kt.NonFiniteLossError, match="at step 1 "):
        fit(model, steps_per_epoch=1)
    assert updates_made(model) == {"critic": 1, "generator": 0}


def test_each_has_its_own_loss_scale_in_mixed_precision() -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = adversaries()
        fit(model)
    finally:
        keras.config.set_dtype_policy(before)
    kinds = {type(optimizer).__name__ for optimizer in model.optimizer.optimizers}
    assert kinds == {"LossScaleOptimizer"}
    model.optimizer.by_name["critic"].dynamic_scale.assign(2.0**127)  # it overflows
    fit(model, steps_per_epoch=1)
    assert updates_made(model) == {"critic": 6, "generator": 7}
    assert value(model.optimizer.by_name["critic"].dynamic_scale) == 2.0**126


def test_each_accumulates_gradients_on_its_own() -> None:
    model = adversaries(
        {
            "critic": keras.optimizers.SGD(0.1, gradient_accumulation_steps=3),
            "generator": keras.optimizers.SGD(0.1),
        }
    )
    fit(model)
    assert updates_made(model) == {"critic": 2, "generator": 6}


def test_callbacks_of_learning_rates_reach_each() -> None:
    model = adversaries()
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    fit(model, callbacks=[halve])
    rates = [float(value(each.learning_rate)) for each in model.optimizer.optimizers]
    np.testing.assert_allclose(rates, [0.005, 0.01], rtol=1e-6)
    with pytest.raises(AttributeError, match=r"by_name\['critic'\].learning_rate"):
        model.optimizer.learning_rate = 0.1


def test_saved_model_goes_on_bit_equally(tmp_path: Path) -> None:
    model = adversaries(
        gradient_transforms={"critic": kt.transforms.Noise(0.01, seed=1)},
        updates=[kt.updates.LayerUpdates(), kt.updates.MovingAverage(0.9)],
        check_numerics=True,
    )
    fit(model)
    model.save(tmp_path / "model.keras")
    again: Any = keras.models.load_model(tmp_path / "model.keras")
    assert_same(values(again), values(model))
    fit(model), fit(again)
    assert_same(values(again), values(model))


def test_variables_of_equal_paths_are_saved_apart() -> None:
    """Two networks whose layers have the same names."""
    model: Any = Adversaries()
    for layer, twin in zip(model.generator.layers, model.critic.layers, strict=True):
        for mine, theirs in zip(layer.weights, twin.weights, strict=True):
            theirs._path = mine.path
    optimizers = {"critic": keras.optimizers.Adam(), "generator": keras.optimizers.SGD()}
    chosen = {"critic": model.critic, "generator": model.generator}
    model.compile(optimizers=optimizers, variables_to_train=chosen)
    fit(model)
    config = model.get_compile_config()["variables_to_train"]
    assert sorted([*config["critic"], *config["generator"]]) == list(range(8))


def test_a_killed_session_is_resumed_bit_equally(tmp_path: Path) -> None:
    whole = adversaries()
    fit(whole, epochs=3, callbacks=[kt.TrainingSession(tmp_path / "whole", verbose=False)])
    fit(adversaries(), epochs=1, callbacks=[kt.TrainingSession(tmp_path / "cut", verbose=False)])
    resumed = adversaries()
    fit(resumed, epochs=3, callbacks=[kt.TrainingSession(tmp_path / "cut", verbose=False)])
    assert_same(values(resumed), values(whole))


@pytest.mark.parametrize("kind", ["keras", "weights", "model", "session"])
def test_warm_starts_restore_the_state_of_each(kind: str, tmp_path: Path) -> None:
    trained, model = adversaries(), adversaries()
    session = kt.TrainingSession(tmp_path / "session", verbose=False)
    fit(trained, callbacks=[session] if kind == "session" else [])
    fit(model, epochs=2)
    sources: dict[str, Any] = {
        "keras": tmp_path / "a.keras",
        "weights": tmp_path / "a.weights.h5",
        "model": trained,
        "session": tmp_path / "session",
    }
    if kind == "keras":
        trained.save(sources[kind])
    if kind == "weights":
        trained.save_weights(sources[kind])
    report = kt.restore(model, sources[kind], include_optimizer=True)
    assert_same(values(model), values(trained))
    assert len(report.optimizer) == 2 * (1 + 2 * 4)


def test_recompiling_keeps_the_state() -> None:
    model, again = adversaries(), adversaries()
    fit(model), fit(again)
    again.compile(again.optimizer)
    fit(model), fit(again)
    assert_same([value(v) for v in model.variables], [value(v) for v in again.variables])


def test_evaluation_needs_a_step_or_a_loss() -> None:
    model = adversaries()
    fit(model)
    with pytest.raises(ValueError, match="Define `evaluation_step"):
        model.evaluate(NOISE, REAL, verbose=0)


def test_evaluation_step_is_used_by_validation() -> None:
    class Evaluated(Adversaries):
        def evaluation_step(self, step: kt.Step, data: Any) -> dict[str, Any]:
            noise, real, _ = step.unpack(data)
            _, slope = step.gradients(lambda x: keras.ops.sum(self.critic(x)), real)
            return {
                "gap": keras.ops.mean(self.critic(real) - self.critic(self.generator(noise))),
                "slope": keras.ops.mean(keras.ops.abs(slope)),
            }

    model: Any = Evaluated()
    optimizers = {"critic": keras.optimizers.Adam(), "generator": keras.optimizers.Adam()}
    chosen = {"critic": model.critic, "generator": model.generator}
    model.compile(optimizers=optimizers, variables_to_train=chosen)
    history = fit(model, validation_data=(NOISE, REAL))
    assert history.keys() == {"critic", "generator", "val_gap", "val_slope"}
    before = values(model)
    logs = model.evaluate(NOISE, REAL, batch_size=24, verbose=0, return_dict=True)
    assert_same([value(v) for v in model.variables], before[: len(model.variables)])
    np.testing.assert_allclose(logs["gap"], history["val_gap"][0], rtol=1e-4)
    gap = model.critic(REAL) - model.critic(model.generator(NOISE))
    np.testing.assert_allclose(logs["gap"], value(keras.ops.mean(gap)), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizers": []}, "`optimizers` must be a dictionary"),
        ({"optimizers": {"a b": "sgd"}}, "must be valid Python names. Received: 'a b'"),
        ({"optimizers": {"a": "sgd"}}, "must be a dictionary that says which variables"),
        (
            {"optimizers": {"a": "sgd"}, "variables_to_train": {"b": "generator_in"}},
            "which variables each of them trains: 'a'",
        ),
        (
            {"optimizer": "sgd", "optimizers": {"a": "sgd"}, "variables_to_train": {"a": ".*"}},
            "Pass either `optimizer` or `optimizers`",
        ),
        (
            {
                "optimizers": {"a": "sgd"},
                "variables_to_train": {"a": ".*"},
                "gradient_transforms": kt.transforms.ClipByNorm(1.0),
            },
            "`gradient_transforms` must be a dictionary from their names",
        ),
        (
            {
                "optimizers": {"a": "sgd"},
                "variables_to_train": {"a": ".*"},
                "updates": {"b": []},
            },
            "The names in `updates` must be those of several optimizers",
        ),
        ({"variables_to_train": {"a": ".*"}}, "only be a dictionary together with `optimizers`"),
    ],
)
def test_bad_arguments_change_nothing(options: dict[str, Any], message: str) -> None:
    model = adversaries()
    optimizer = model.optimizer
    with pytest.raises(ValueError, match=message):
        model.compile(**options)
    assert model.optimizer is optimizer
    fit(model)


def test_each_variable_has_one_optimizer() -> None:
    model: Any = Adversaries()
    both = {"a": ".*", "b": model.critic}
    model.compile(optimizers={"a": "sgd", "b": "sgd"}, variables_to_train=both)
    with pytest.raises(ValueError, match=r"'critic_in/kernel' is chosen by 'a' and 'b'"):
        fit(model)


@pytest.mark.once
def test_a_step_of_keras_cannot_use_several() -> None:
    class Old(kt.TrainOpsMixin, keras.Model):
        def train_step(self, data: Any) -> Any:
            return {}

    model: Any = Old()
    with pytest.raises(ValueError, match="`optimizers` cannot be used with the `train_step`"):
        model.compile(optimizers={"a": "sgd"}, variables_to_train={"a": ".*"})


def test_names_of_optimizers_may_look_like_those_of_saved_state(tmp_path: Path) -> None:
    model: Any = Adversaries()
    optimizers = {"update_0": keras.optimizers.Adam(), "seed_net": keras.optimizers.SGD()}
    chosen = {"update_0": model.critic, "seed_net": model.generator}
    model.compile(optimizers=optimizers, variables_to_train=chosen)
    fit(model)
    model.save(tmp_path / "model.keras")
    assert_same(values(keras.models.load_model(tmp_path / "model.keras")), values(model))


def test_one_loss_cannot_be_scaled_for_some_optimizers_only() -> None:
    inputs = keras.Input((6,))
    x = keras.layers.Dense(2, name="first")(inputs)
    model: Any = kt.TrainOpsModel(inputs, keras.layers.Dense(2, name="second")(x))
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    with pytest.raises(ValueError, match="with and without a `LossScaleOptimizer` at once"):
        model.compile(
            optimizers={"a": scaled, "b": keras.optimizers.SGD()},
            variables_to_train={"a": "first", "b": "second"},
            loss="mse",
        )
    assert not model.compiled


@pytest.mark.backends("tensorflow")
def test_each_loss_scale_is_the_same_on_all_replicas() -> None:
    """A replica's gradients overflow, and the others skip that optimizer's update, too."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        with two_replicas().scope():
            model = adversaries()
        fit(model, steps_per_epoch=1)
        bad = REAL.copy()
        bad[-1] = np.inf  # on the second replica alone
        updates = updates_made(model)
        model.fit(NOISE, bad, batch_size=24, shuffle=False, verbose=0)
    finally:
        keras.config.set_dtype_policy(before)
    assert updates_made(model) == {**updates, "generator": updates["generator"] + 1}
    assert all(np.isfinite(value(v)).all() for v in model.trainable_variables)


def test_a_second_fit_keeps_the_optimizers_and_their_monitors() -> None:
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4, name="x")(inputs)
    model = kt.TrainOpsModel(inputs, keras.layers.Dense(1, name="y")(x))
    model.compile(
        optimizers={"x": keras.optimizers.SGD(0.0), "y": keras.optimizers.SGD(0.0)},
        variables_to_train={"x": "x/*", "y": "y/*"},
        loss="mse",
        gradient_transforms={"x": kt.transforms.Monitor()},
    )
    group = model.optimizer
    x, y = np.ones((4, 3)), np.ones((4, 1))
    (first,), (second,) = (model.fit(x, y, verbose=0).history["gradient_norm"] for _ in range(2))
    assert model.optimizer is group
    assert first == second > 0
