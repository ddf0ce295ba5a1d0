"""Files that name our classes load before any of our modules is imported."""

from __future__ import annotations

import pytest

import keras_trainops as kt
from tests.helpers import run, two_layers

pytestmark = pytest.mark.once

EVERY_CLASS = """
import importlib, pkgutil
import keras
import keras_trainops
from keras_trainops.registration import _Deferred
registered = keras.saving.get_custom_objects()
ours = {k: v for k, v in registered.items() if k.startswith("keras_trainops>")}
assert all(isinstance(v, _Deferred) for v in ours.values())
for module in pkgutil.walk_packages(keras_trainops.__path__, "keras_trainops."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
defined = {k for k in registered if k.startswith("keras_trainops>")}
assert defined == set(ours), defined ^ set(ours)
real = {k for k in ours if not isinstance(registered[k], _Deferred)}
assert all(registered[k].__name__ in k or k.endswith("Extended") for k in real)
assert {"keras_trainops>Scale", "keras_trainops>MovingAverage"} <= real, real
for key in set(ours) - real:  # abstract ones, which no file names
    assert not hasattr(ours[key], "from_config"), key
print("as it should be")
"""


def test_every_class_that_a_file_may_name_is_known() -> None:
    run(EVERY_CLASS)


LEGACY = """
import keras, keras_trainops
assert type(keras.models.load_model("model.h5")).__name__ == "TrainOpsModel"
print("as it should be")
"""


def test_a_legacy_file_names_a_class_without_its_package() -> None:
    plain = two_layers()
    kt.TrainOpsModel(plain.inputs, plain.outputs).save("model.h5")
    run(LEGACY)


CLONING = """
import keras
import keras_trainops as kt
class Mine(kt.TrainOpsMixin, keras.Sequential):
    pass
clone = keras.models.clone_model(Mine([keras.Input((3,)), keras.layers.Dense(2)]))
assert isinstance(clone, kt.TrainOpsMixin)
print("as it should be")
"""


def test_the_mixin_alone_is_kept_in_clones() -> None:
    run(CLONING)


LOADING = """
import sys
import {first}
import {second}
assert not [name for name in sys.modules if name.startswith("keras_trainops.training")]
model = keras.saving.load_model("model.keras")
assert type(model).__name__ == "TrainOpsModel"
assert type(model.optimizer.chain.transforms[0]).__name__ == "ClipByNorm"
print("as it should be")
"""


@pytest.mark.parametrize(
    ("first", "second"), [("keras", "keras_trainops"), ("keras_trainops", "keras")]
)
def test_a_file_imports_the_classes_that_it_names(first: str, second: str) -> None:
    plain = two_layers()
    model = kt.TrainOpsModel(plain.inputs, plain.outputs)
    model.compile("sgd", "mse", gradient_transforms=kt.transforms.ClipByNorm(1.0))
    model.save("model.keras")
    run(LOADING.format(first=first, second=second))
