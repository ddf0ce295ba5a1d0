from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
import optax
import pytest

import keras_trainops as kt
from tests.helpers import two_layers

C, T, U = keras.callbacks, kt.transforms, kt.updates
X = np.ones((8, 4), "float32")
SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)


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
    T.FromOptax: (lambda: T.FromOptax(optax.identity), "FromOptax(transformation=identity)"),
    T.When: (
        lambda: T.When(plain, T.Scale(2.0)),
        "When(condition=plain, transform=Scale(factors=2.0))",
    ),
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
    kinds = (
        *(T.GradientTransform, U.Update, U.LayerUpdates, U.Projection),
        *(C.Callback, U.WarmUp),
    )
    classes = [c for c in everything if isinstance(c, type) and issubclass(c, kinds)]
    if keras.backend.backend() != "jax":
        classes.remove(T.FromOptax)
    return [c for c in classes if not inspect.isabstract(c) and c is not U.Projection]


@pytest.mark.parametrize("kind", exported(), ids=lambda kind: kind.__name__)
def test_repr_shows_the_settings(kind: Any) -> None:
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


def test_repr_of_objects_from_a_file() -> None:
    chain = [T.Only("head", T.ClipByNorm(SCHEDULE)), T.Centralize()]
    model = kt.with_train_ops(two_layers())
    model.compile("sgd", "mse", gradient_transforms=chain)
    model.save("model.keras")
    loaded = keras.saving.load_model("model.keras").optimizer.chain
    assert repr(loaded.transforms[0]).startswith(
        "Only(patterns=['head'], transform=ClipByNorm(max_norm=ExponentialDecay(initial_learning_"
    )


def test_repr_of_user_classes_and_long_arguments() -> None:
    class Mine(T.GradientTransform):
        def __init__(self, names: Any, *more: int, **options: Any) -> None:
            self.names = names

        def __call__(self, gradients: Any, variables: Any) -> Any:
            return gradients

    assert repr(Mine("a", 1, 2, b=3)) == "Mine(names='a', 1, 2, b=3)"
    assert len(repr(Mine(["x" * 50] * 50))) < 400
    with pytest.raises(TypeError, match=r"takes no arguments|takes 1 positional argument"):
        T.ZeroNonFinite(3)  # type: ignore[call-arg]
