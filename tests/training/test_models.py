"""Classes that `with_train_ops` extends: saved, loaded elsewhere, cloned, copied and pickled."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, differ, numpy, two_layers, value, weights
from tests.training import small_models
from tests.training.small_models import Subclassed, functional, lazy

T = kt.transforms
X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")


CLASSES = '''
import keras

@keras.saving.register_keras_serializable(package="mine", name="Named")
class Own(keras.Model):
    """Without `get_config`: Keras fills in the defaults."""

    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.head = keras.layers.Dense(units, name="head")

    def build(self, input_shape):
        self.head.build(input_shape)

    def call(self, x):
        return self.head(x)


@keras.saving.register_keras_serializable(package="mine")
class Configured(Own):
    """Has a configuration that only its own `from_config` understands."""

    def __init__(self, units, **kwargs):
        super().__init__(units=units, **kwargs)
        self.units = units

    def get_config(self):
        return {"secret": self.units, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(units=config["secret"], name=config["name"])


@keras.saving.register_keras_serializable(package="mine")
class OfInputs(keras.Model):
    """Functional inside."""


@keras.saving.register_keras_serializable(package="mine")
class Stack(keras.Sequential):
    pass
'''


exec(CLASSES)


def made(name: str) -> Any:
    if name == "OfInputs":
        inputs = keras.Input((4,))
        return globals()[name](inputs, keras.layers.Dense(3, name="head")(inputs))
    if name == "Stack":
        return globals()[name]([keras.Input((4,)), keras.layers.Dense(3, name="head")])
    model = globals()[name](units=3)
    model(X)
    return model


def trained(name: str) -> Any:
    model = kt.with_train_ops(made(name))
    model.compile(
        "sgd", "mse", gradient_transforms=T.ClipByNorm(1.0), variables_to_train=["head/kernel"]
    )
    model.fit(X, np.ones((8, 3)), verbose=0)
    return model


def assert_is_one(model: Any, name: str) -> None:
    assert isinstance(model, globals()[name])
    assert isinstance(model, kt.TrainOpsMixin)
    assert [v.path.split("/")[-1] for v in model.trainable_variables] == ["kernel"]
    assert isinstance(model.optimizer.chain.transforms[0], T.ClipByNorm)


NAMES = ["Own", "Configured", "OfInputs", "Stack"]


def stack() -> keras.Model:
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(5, name="trunk"), keras.layers.Dense(2, name="head")]
    )


@pytest.mark.parametrize("make", [functional, stack, lambda: lazy(Subclassed)])
def test_with_train_ops_keeps_variables_names_and_outputs(make: Any) -> None:
    model, x = make(), small_models.X
    before = numpy(model(x))
    variables, paths = model.weights, [v.path for v in model.weights]
    assert kt.with_train_ops(model) is model
    assert isinstance(model, kt.TrainOpsMixin)
    assert all(a is b for a, b in zip(model.weights, variables, strict=True))
    assert [v.path for v in model.weights] == paths
    np.testing.assert_array_equal(numpy(model(x)), before)
    assert kt.with_train_ops(model) is model
    model.compile(
        "sgd", "mse", gradient_transforms=T.ClipByNorm(1e-9), updates=[kt.updates.LayerUpdates()]
    )
    trained = [v for v in model.weights if v.trainable]
    start = [value(v) for v in trained]
    model.fit(x, small_models.Y, verbose=0)
    assert differ([value(v) for v in trained], start) < 1e-8


def test_refuses_what_is_not_a_model() -> None:
    with pytest.raises(ValueError, match=r"`model` must be a Keras model. Received: 3"):
        kt.with_train_ops(3)


@pytest.mark.parametrize("make", [functional, stack])
def test_saves_and_loads_an_extended_model(make: Any) -> None:
    model = kt.with_train_ops(make())
    model.compile("sgd", "mse", gradient_transforms=T.ClipByNorm(1.0))
    model.save("m.keras")
    loaded = keras.saving.load_model("m.keras")
    assert isinstance(loaded, kt.TrainOpsMixin)
    make().save("stock.keras")
    stock = keras.saving.load_model("stock.keras")
    assert [v.path for v in loaded.weights] == [v.path for v in stock.weights]
    x = small_models.X
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(model(x)))


def test_extends_a_network_of_keras_applications() -> None:
    model = kt.with_train_ops(
        keras.applications.MobileNet((32, 32, 3), alpha=0.25, weights=None, classes=2)
    )
    model.compile(
        "sgd", "mse", gradient_transforms=[T.Scale({"conv_preds": 2.0}), T.ClipByNorm(1.0)]
    )
    model.fit(np.ones((4, 32, 32, 3)), small_models.Y[:4], verbose=0)
    assert model.optimizer.iterations == 1


def test_saves_a_model_extended_after_compile() -> None:
    model = two_layers()
    model.compile("sgd", "mse")
    kt.with_train_ops(model).save("model.keras")
    assert_same(weights(keras.saving.load_model("model.keras")), weights(model))


@pytest.mark.parametrize("name", NAMES)
def test_loads_files_of_extended_classes_with_the_mixin(name: str) -> None:
    model = trained(name)
    for i in range(2):  # what was loaded is saved and loaded again
        model.save(f"{i}.keras")
        loaded = keras.saving.load_model(f"{i}.keras")
        assert_is_one(loaded, name)
        assert_same(weights(loaded), weights(model))
        model = loaded


@pytest.mark.parametrize("name", NAMES)
def test_a_file_names_the_users_class_and_configuration(name: str) -> None:
    model = trained(name)
    model.save("m.keras")
    with zipfile.ZipFile("m.keras") as archive:
        config = json.loads(archive.read("config.json"))["config"]
    registered = keras.saving.get_registered_name(globals()[name])
    assert config.pop("extended_class")["registered_name"] == registered
    made(name).save("plain.keras")
    with zipfile.ZipFile("plain.keras") as archive:
        plain = json.loads(archive.read("config.json"))["config"]
    assert set(config) == set(plain)
    assert keras.saving.get_registered_object(registered) is globals()[name]


def test_another_process_loads_files_of_registered_classes() -> None:
    models = {name: trained(name) for name in NAMES}
    for name, model in models.items():
        model.save(f"{name}.keras")
    np.savez("expected.npz", **{n: keras.ops.convert_to_numpy(m(X)) for n, m in models.items()})
    np.save("x.npy", X)
    program = CLASSES + (
        "import keras_trainops as kt, numpy as np\n"
        "expected = np.load('expected.npz')\n"
        "for name in expected.files:\n"
        "    model = keras.saving.load_model(f'{name}.keras')\n"
        "    assert isinstance(model, kt.TrainOpsMixin) and isinstance(model, globals()[name])\n"
        "    found = keras.ops.convert_to_numpy(model(np.load('x.npy')))\n"
        "    np.testing.assert_allclose(found, expected[name], rtol=1e-5)\n"
        "    model.fit(np.load('x.npy'), np.ones((8, 3)), verbose=0)\n"
        "print('loaded', len(expected.files))\n"
    )
    Path("program.py").write_text(program, encoding="utf-8")
    path = os.pathsep.join([str(Path(kt.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "program.py"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert run.stdout.strip().endswith("loaded 4"), run.stderr[-2000:]


class NotRegistered(globals()["Own"]):  # type: ignore[misc]
    pass


def test_loads_unregistered_classes_through_custom_objects() -> None:
    model = kt.with_train_ops(NotRegistered())
    model(X)
    model.save("m.keras")
    with pytest.raises(TypeError, match="Could not locate class 'NotRegistered'"):
        keras.saving.load_model("m.keras")
    loaded = keras.saving.load_model("m.keras", custom_objects={"NotRegistered": NotRegistered})
    assert type(loaded) is type(model)
    assert_same(weights(loaded), weights(model))
    assert type(keras.models.clone_model(model)) is type(model)


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles_are_whole(name: str) -> None:
    model = trained(name)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_is_one(other, name)
        assert_same(weights(other), weights(model))


def sequential() -> Any:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])


@pytest.mark.parametrize("make", [sequential, two_layers], ids=["sequential", "functional"])
def test_loads_legacy_files_with_the_mixin(make: Any) -> None:
    model = kt.with_train_ops(make())
    model.compile(
        "sgd", keras.losses.MeanSquaredError(), gradient_transforms=T.ClipByNorm(1.0), updates=[]
    )
    model.save("m.h5")
    loaded = keras.saving.load_model("m.h5")
    assert type(loaded) is type(model)
    assert loaded.compiled
    assert_same(weights(loaded), weights(model))


class OwnConstructor(keras.Model):
    """Functional, with a constructor that Keras cannot call for a clone."""

    def __init__(self, units: int) -> None:
        inputs = keras.Input((4,))
        super().__init__(inputs, keras.layers.Dense(units, name="head")(inputs))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "make",
    [sequential, two_layers, lambda: OwnConstructor(3), *(lambda n=n: made(n) for n in NAMES)],
    ids=["sequential", "functional", "own constructor", *NAMES],
)
def test_a_clone_keeps_the_mixin(make: Any, compiled: bool) -> None:
    model = kt.with_train_ops(make())
    if compiled:
        model.compile("sgd", "mse", updates=[], gradient_transforms=T.ClipByNorm(2.0))
    clone = keras.models.clone_model(model)
    assert clone is not model
    assert isinstance(clone, kt.TrainOpsMixin)
    assert model.compiled is clone.compiled is compiled
    assert [v.shape for v in clone.weights] == [v.shape for v in model.weights]
    if compiled:
        assert clone.train_ops.arguments["updates"] == []
        assert clone.optimizer is not model.optimizer
        assert clone.optimizer.chain.transforms[0].max_norm == 2.0
    clone.compile("sgd", "mse", gradient_transforms=T.Scale(0.0))
    before = weights(clone)
    clone.fit(X, np.ones((8, clone.output_shape[-1] if make is two_layers else 3)), verbose=0)
    assert_same(weights(clone), before)


@pytest.mark.parametrize("make", [sequential, two_layers])
def test_clones_without_the_mixin_are_as_in_keras(make: Any) -> None:
    model = make()
    clone = keras.models.clone_model(model)
    assert type(clone) is type(model)


def test_clones_models_inside_models_with_the_mixin() -> None:
    inner = kt.with_train_ops(sequential())
    inputs = keras.Input((4,))
    outer = kt.with_train_ops(keras.Model(inputs, inner(inputs)))
    for recursive in (False, True):
        clone = keras.models.clone_model(outer, recursive=recursive)
        found = [layer for layer in clone.layers if isinstance(layer, keras.Sequential)]
        assert [isinstance(layer, kt.TrainOpsMixin) for layer in found] == [True]
