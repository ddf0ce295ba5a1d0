"""Values in the wrong place are refused with advice."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import two_layers

C, T, U = keras.callbacks, kt.transforms, kt.updates
X, Y = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")
OptaxLike = collections.namedtuple("GradientTransformation", ["init", "update"])
Pair = collections.namedtuple("Pair", ["first", "second"])
SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)


def compiled(**options: Any) -> Any:
    model = kt.with_train_ops(two_layers())
    model.compile("sgd", "mse", **options)
    return model


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (OptaxLike(lambda p: p, lambda g, s, p: g), "This is an optax transform, which keeps its"),
        (Pair(T.Centralize(), T.Centralize()), "'Pair' is a named tuple, not a list"),
        (
            U.MovingAverage(0.9),
            r"It belongs in `compile\(updates=\.\.\.\)`: MovingAverage\(decay=0\.9",
        ),
        (T.ClipByNorm, r"'ClipByNorm' is a class: pass an instance, as in `ClipByNorm\(\.\.\.\)`"),
        (kt.UseAverage(), r"'UseAverage' is a callback: it belongs in `fit\(callbacks=\.\.\.\)`"),
        (keras.optimizers.SGD(), "'SGD' is a Keras `Optimizer`"),
        (keras.layers.Dense(1), "'Dense' is a Keras `Layer`"),
        (keras.constraints.UnitNorm(), "'UnitNorm' is a Keras `Constraint`"),
        (SCHEDULE, "'ExponentialDecay' is a Keras `LearningRateSchedule`"),
        ("clip", "Received: 'clip'"),
        (3.0, r"Received: 3\.0"),
        ({"head": 10.0}, r"Received: \{'head': 10\.0\}"),
        ({T.Centralize()}, r"Received: \{Centralize\(axes="),
        (iter([]), "Received: <list_iterator"),
    ],
)
@pytest.mark.parametrize("wrap", ["alone", "in a list", "nested", "in Only"])
def test_rejects_other_objects_as_transforms(value: Any, message: str, wrap: str) -> None:
    given = {
        "alone": lambda: value,
        "in a list": lambda: [T.Centralize(), value],
        "nested": lambda: [[T.Centralize()], (value,)],
        "in Only": lambda: T.Only("head", [value]),
    }
    with pytest.raises(ValueError, match=f"A gradient transform must be a .*{message}"):
        compiled(gradient_transforms=given[wrap]())


def test_rejects_none_in_a_list() -> None:
    with pytest.raises(ValueError, match=r"A gradient transform must be .* Received: None"):
        compiled(gradient_transforms=[None])
    with pytest.raises(ValueError, match=r"An update must be .* Received: None"):
        compiled(updates=[None])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            T.ClipByNorm(1.0),
            r"It belongs in `compile\(gradient_transforms=\.\.\.\)`: ClipByNorm\(max_norm=1\.0\)",
        ),
        (U.MovingAverage, "'MovingAverage' is a class: pass an instance"),
        (kt.UseAverage(), "'UseAverage' is a callback: it belongs in"),
        (keras.metrics.Mean(), "'Mean' is a Keras `Metric`"),
        (keras.constraints.UnitNorm(), "'UnitNorm' is a Keras `Constraint`"),
    ],
)
def test_rejects_other_objects_as_updates(value: Any, message: str) -> None:
    for given in (value, [U.LayerUpdates(), value]):
        with pytest.raises(ValueError, match=f"An update must be an `Update` .*{message}"):
            compiled(updates=given)
    with pytest.raises(ValueError, match=f"An update must be an `Update` .*{message}"):
        compiled().add_update(value)
    for word in ("typo", 3, {"a": 1}):
        with pytest.raises(ValueError, match=r"`updates` must be None .*, an update or a list of"):
            compiled(updates=word)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (T.Monitor(), r"It belongs in `compile\(gradient_transforms=\.\.\.\)`: Monitor\("),
        (U.MovingAverage(), r"It belongs in `compile\(updates=\.\.\.\)`: MovingAverage\("),
        (kt.UseAverage, "'UseAverage' is a class: pass an instance"),
    ],
)
def test_rejects_other_objects_as_callbacks(value: Any, message: str) -> None:
    for callbacks in (value, [value], [C.History(), [value]]):
        with pytest.raises(ValueError, match=f"`callbacks` must be Keras callbacks. {message}"):
            compiled().fit(X, Y, verbose=0, callbacks=callbacks)


@pytest.mark.parametrize("logdir", [None, 3, "", b"run", ["run"]])
def test_rejects_other_objects_as_log_directory(logdir: Any) -> None:
    with pytest.raises(ValueError, match=r"`logdir` must be the path of a directory\. Received: "):
        kt.TrainingSession(logdir)
    kt.TrainingSession(Path("run"))


@pytest.mark.parametrize("name", ["include", "exclude"])
def test_rejects_rename_rules_as_patterns(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` is not valid. A pattern must be a regular"):
        kt.WarmStart("model.npz", **{name: {"conv0/(.*)": r"stem/\1"}})
