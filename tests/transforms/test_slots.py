"""What is put where it does not belong is refused with words that say so; all has a `repr`."""

from __future__ import annotations

import collections
import inspect
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
        (Pair(T.Centralize(), T.Centralize()), "'Pair' is a named tuple, and no list"),
        (
            U.MovingAverage(0.9),
            r"It belongs in `compile\(updates=\.\.\.\)`: MovingAverage\(decay=0\.9",
        ),
        (T.ClipByNorm, r"'ClipByNorm' is a class: make one, as in `ClipByNorm\(\.\.\.\)`"),
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
def test_what_is_no_transform(value: Any, message: str, wrap: str) -> None:
    given = {
        "alone": lambda: value,
        "in a list": lambda: [T.Centralize(), value],
        "nested": lambda: [[T.Centralize()], (value,)],
        "in Only": lambda: T.Only("head", [value]),
    }
    with pytest.raises(ValueError, match=f"A gradient transform must be a .*{message}"):
        compiled(gradient_transforms=given[wrap]())


def test_none_in_a_list_is_no_transform() -> None:
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
        (U.MovingAverage, "'MovingAverage' is a class: make one"),
        (kt.UseAverage(), "'UseAverage' is a callback: it belongs in"),
        (keras.metrics.Mean(), "'Mean' is a Keras `Metric`"),
        (keras.constraints.UnitNorm(), "'UnitNorm' is a Keras `Constraint`"),
    ],
)
def test_what_is_no_update(value: Any, message: str) -> None:
    for given in (value, [U.LayerUpdates(), value]):
        with pytest.raises(ValueError, match=f"An update must be an `Update` .*{message}"):
            compiled(updates=given)
    with pytest.raises(ValueError, match=f"An update must be an `Update` .*{message}"):
        compiled().add_update(value)
    for word in ("typo", 3, {"a": 1}):
        with pytest.raises(ValueError, match=r"`updates` must be None .*, an update or a list of"):
            compiled(updates=word)


def test_one_update_is_a_list_of_one() -> None:
    with pytest.warns(UserWarning, match="leaves out updates that layers make"):
        _train_with_norm(U.MovingAverage(0.9))
    model = compiled(updates=U.MovingAverage(0.9))
    model.fit(X, Y, verbose=0)
    model.save("one.keras")
    (average,) = keras.saving.load_model("one.keras").train_ops.policy.after_weights
    assert average.averages()[0][1].shape == (4, 3)
    counts: list[int] = []
    model = compiled(updates=lambda model, loss: counts.append(1))
    model.fit(X, Y, verbose=0)
    assert counts


def _train_with_norm(update: Any) -> None:
    inputs = keras.Input((4,))
    model = kt.TrainOpsModel(inputs, keras.layers.BatchNormalization()(inputs))
    model.compile("sgd", "mse", updates=update)
    model.fit(X, X, verbose=0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (T.Monitor(), r"It belongs in `compile\(gradient_transforms=\.\.\.\)`: Monitor\("),
        (U.MovingAverage(), r"It belongs in `compile\(updates=\.\.\.\)`: MovingAverage\("),
        (kt.UseAverage, "'UseAverage' is a class: make one"),
    ],
)
def test_what_is_no_callback(value: Any, message: str) -> None:
    for callbacks in (value, [value], [C.History(), [value]]):
        with pytest.raises(ValueError, match=f"`callbacks` must be Keras callbacks. {message}"):
            compiled().fit(X, Y, verbose=0, callbacks=callbacks)


@pytest.mark.parametrize("logdir", [None, 3, "", b"run", ["run"]])
def test_what_is_no_log_directory(logdir: Any) -> None:
    with pytest.raises(ValueError, match=r"`logdir` must be the path of a directory\. Received: "):
        kt.TrainingSession(logdir)
    kt.TrainingSession(Path("run"))


@pytest.mark.parametrize("name", ["include", "exclude"])
def test_rules_of_rename_are_no_patterns(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` does not fit. A pattern must be a regular"):
        kt.WarmStart("model.npz", **{name: {"conv0/(.*)": r"stem/\1"}})


def halve(pairs: list[Any]) -> list[Any]:
    return [(g * 0.5, v) for g, v in pairs]


def plain(*args: Any) -> Any:
    return args[0]


MAKE: dict[Any, tuple[Any, str]] = {
    T.AdaptiveClip: (lambda: T.AdaptiveClip(0.02), "AdaptiveClip(clipping=0.02, epsilon=0.001"),
    T.Chain: (
        lambda: T.Chain([T.ClipByNorm(2.0), plain]),
        "Chain(transforms=[ClipByNorm(max_norm=2.0), plain])",
    ),
    T.FromFunction: (lambda: T.FromFunction(plain), "FromFunction(function=plain)"),
    T.FromPairs: (lambda: T.FromPairs(halve), "FromPairs(function=halve)"),
    T.LayerwiseDecay: (
        lambda: T.LayerwiseDecay(0.5, ["trunk", "head"]),
        "LayerwiseDecay(decay=0.5, layers=['trunk', 'head'], min_scale=0)",
    ),
    T.Only: (
        lambda: T.Only("head", T.ZeroNonFinite()),
        "Only(patterns='head', transform=ZeroNonFinite())",
    ),
    T.Scale: (lambda: T.Scale({"head": SCHEDULE}), "Scale(factors={'head': ExponentialDecay("),
    T.ScaleStep: (lambda: T.ScaleStep({"head": 0.1}), "ScaleStep(factors={'head': 0.1})"),
    T.SkipLarge: (lambda: T.SkipLarge(9.0), "SkipLarge(max_norm=9.0)"),
    T.ClipByValue: (lambda: T.ClipByValue(0.5), "ClipByValue("),
    T.ClipByNorm: (lambda: T.ClipByNorm(0.5), "ClipByNorm(max_norm=0.5)"),
    T.ClipByGlobalNorm: (lambda: T.ClipByGlobalNorm(0.5), "ClipByGlobalNorm(max_norm=0.5"),
    U.Function: (lambda: U.Function(plain), "Function(function=plain, variables=(), every=1"),
    U.MovingAverage: (
        lambda: U.MovingAverage(U.WarmUp(0.9)),
        "MovingAverage(decay=WarmUp(decay=0.9, power=None, gamma=1.0), patterns=None",
    ),
    U.Project: (
        lambda: U.Project("head", U.SpectralNorm(1.0)),
        "Project(patterns='head', projection=SpectralNorm(limit=1.0, iterations=1)",
    ),
    U.TargetNetwork: (
        lambda: U.TargetNetwork("a", "b", tau=0.1),
        "TargetNetwork(source='a', target='b', tau=0.1, every=None, on='update')",
    ),
    kt.MonitorBoard: (lambda: kt.MonitorBoard("logs"), "MonitorBoard(log_dir='logs', update_freq"),
    kt.RecalibrateBatchNorm: (
        lambda: kt.RecalibrateBatchNorm(X, batch_size=4),
        "RecalibrateBatchNorm(data=<ndarray of shape (8, 4) and dtype float32>, steps=None",
    ),
    kt.TrainingSession: (
        lambda: kt.TrainingSession("run", keep=3),
        "TrainingSession(logdir='run', save_seconds=600, save_steps=None, summary_steps=100",
    ),
    kt.WarmStart: (
        lambda: kt.WarmStart("a.npz", exclude=["head"]),
        "WarmStart(source='a.npz', rename=None, include=None, exclude=['head'], adapt=None",
    ),
}


def exported() -> list[Any]:
    everything = [
        getattr(room, name) for room in (T, U, kt) for name in room.__all__ if name != "restore"
    ]
    kinds = (T.GradientTransform, U.Update, U.Projection, C.Callback, U.WarmUp)
    classes = [c for c in everything if isinstance(c, type) and issubclass(c, kinds)]
    return [c for c in classes if not inspect.isabstract(c) and c is not U.Projection]


@pytest.mark.parametrize("kind", exported(), ids=lambda kind: kind.__name__)
def test_a_repr_shows_the_settings(kind: Any) -> None:
    make, expected = MAKE.get(kind, (None, f"{kind.__name__}("))
    if make is None:
        needed = [
            p
            for p in inspect.signature(kind).parameters.values()
            if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        one = kind(*[0.5 for _ in needed])
    else:
        one = make()
    assert repr(one).startswith(expected)
    for name in inspect.signature(kind).parameters:
        assert f"{name}=" in repr(one)
    assert " object at 0x" not in repr(one)


def test_a_repr_of_what_a_file_held() -> None:
    chain = [T.Only("head", T.ClipByNorm(SCHEDULE)), T.Centralize()]
    model = compiled(gradient_transforms=chain)
    model.save("model.keras")
    loaded = keras.saving.load_model("model.keras").optimizer.chain
    assert repr(loaded.transforms[0]).startswith(
        "Only(patterns=['head'], transform=ClipByNorm(max_norm=ExponentialDecay(initial_learning_"
    )


def test_a_repr_of_a_user_s_own_and_of_long_things() -> None:
    class Mine(T.GradientTransform):
        def __init__(self, names: Any, *more: int, **options: Any) -> None:
            self.names = names

        def __call__(self, gradients: Any, variables: Any) -> Any:
            return gradients

    assert repr(Mine("a", 1, 2, b=3)) == "Mine(names='a', 1, 2, b=3)"
    assert len(repr(Mine(["x" * 50] * 50))) < 400
    with pytest.raises(TypeError, match=r"takes no arguments|takes 1 positional argument"):
        T.ZeroNonFinite(3)  # type: ignore[call-arg]
