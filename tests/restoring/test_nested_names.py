"""Models within models: a variable is told by what it belongs to, whatever Keras calls it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.checkpoints.formats.arrays import VariablesCheckpoint
from keras_trainops.cli import main
from keras_trainops.weight_names import named_weights, unique
from tests.helpers import assert_same, refused, value, weights

Spec = tuple[Any, ...]  # (kind, name, parts) of a model, (name,) of a dense layer


@keras.saving.register_keras_serializable(package="nested_names")
class Parts(keras.Model):
    """A subclassed model that calls its parts one after the other."""

    def __init__(self, parts: list[Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = parts

    def call(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x

    def get_config(self) -> dict[str, Any]:
        parts = [keras.saving.serialize_keras_object(part) for part in self.parts]
        return {**super().get_config(), "parts": parts}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Parts:
        parts = [keras.saving.deserialize_keras_object(part) for part in config.pop("parts")]
        return cls(parts, **config)

    def build_from_config(self, config: dict[str, Any]) -> None:
        self(np.zeros((1, 2), "float32"))


def build(spec: Spec) -> Any:
    if len(spec) == 1:
        return keras.layers.Dense(2, name=spec[0])
    kind, name, parts = spec
    layers = [build(part) for part in parts]
    if kind == "sequential":
        return keras.Sequential([keras.Input((2,)), *layers], name=name)
    if kind == "subclassed":
        model = Parts(layers, name=name)
        model(np.zeros((1, 2), "float32"))
        return model
    inputs = x = keras.Input((2,))
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, name=name)


def made(spec: Spec, first: int = 0) -> keras.Model:
    """The model, with other values in each variable."""
    model = build(spec)
    for i, variable in enumerate(model.weights):
        variable.assign(np.full(variable.shape, first + i))
    return model


def places(model: Any, above: tuple[str, ...] = ()) -> dict[tuple[str, ...], keras.Variable]:
    """Each variable under the names of the layers that it lies in, read off the objects."""
    parts = getattr(model, "parts", None) or getattr(model, "layers", [])
    found = {}
    for layer in parts:
        if isinstance(layer, keras.layers.Dense):
            for leaf in ("kernel", "bias"):
                found[(*above, layer.name, leaf)] = getattr(layer, leaf)
        elif isinstance(layer, keras.Model):
            found |= places(layer, (*above, layer.name))
    return found


def paths(variable: keras.Variable, model: keras.Model) -> tuple[str, str]:
    """With the model's name, and without."""
    return variable.path, variable.path.removeprefix(f"{model.name}/")


def holds(place: tuple[str, ...], theirs: tuple[str, ...], ours: Any, source: Any) -> bool:
    """Whether what is at `theirs` in the source may go to `place`.

    The same place; or, where neither side has the other's, the only one with the same path.
    """
    if place == theirs:
        return True
    alike = [[o for o, path in source.items() if path[i] == ours[place][i]] for i in (0, 1)]
    return place not in source and theirs not in ours and [theirs] in alike


def npz(model: keras.Model) -> str:
    model.save("m.keras")
    assert main(["convert", "m.keras", "m.npz", "--model", "m.keras", "--force"]) == 0
    return "m.npz"


def safetensors(model: keras.Model) -> str:
    model.save_weights("m.weights.h5")
    assert main(["convert", "m.weights.h5", "m.safetensors", "--force"]) == 0
    return "m.safetensors"


def saved(name: str) -> Callable[[keras.Model], str]:
    def save(model: keras.Model) -> str:
        model.save_weights(name) if name.endswith(".weights.h5") else model.save(name)
        return name

    return save


def legacy(model: keras.Model) -> str:
    paths = [v.path for v in model.weights]
    if len({*paths}) < len(paths):  # which Keras cannot write
        return own_paths(model)
    return saved("m.h5")(model)


def own_paths(model: keras.Model) -> str:
    arrays = {v.path: value(v) for v in model.weights}
    np.savez("paths.npz", **(arrays if len(arrays) == len(model.weights) else {"none": 0}))
    return "paths.npz"


def tensorflow(model: keras.Model) -> str:
    import tensorflow as tf

    return str(tf.train.Checkpoint(model=model).write("tf/ckpt"))


FORMATS: dict[str, Callable[[keras.Model], Any]] = {
    "model": lambda model: model,
    ".keras": saved("m.keras"),
    ".weights.h5": saved("m.weights.h5"),
    ".h5": legacy,
    ".npz": npz,
    ".safetensors": safetensors,
    "paths": own_paths,
    "tf": tensorflow,
}
WRITTEN = [
    pytest.param(name, marks=pytest.mark.backends("tensorflow")) if name == "tf" else name
    for name in FORMATS
]
NAMES = ["a", "b", "dense"]


def random_spec(rng: random.Random, depth: int, name: str | None = None) -> Spec:
    kind = rng.choice(
        ["sequential", "functional", "subclassed"] if depth == 2 else ["sequential", "functional"]
    )
    taken = rng.sample(NAMES, rng.randint(1, 3))
    parts = [
        random_spec(rng, depth - 1, part) if depth and rng.random() < 0.5 else (part,)
        for part in taken
    ]
    return (kind, name or rng.choice(["net", *NAMES]), tuple(parts))


def altered(rng: random.Random, spec: Spec) -> Spec:
    """Another model's name; a part renamed or left out, somewhere."""
    kind, name, parts = spec
    choice = rng.randrange(4)
    if choice == 0:
        return (kind, rng.choice(["net", "other", *NAMES]), parts)
    at = rng.randrange(len(parts))
    part = parts[at]
    if choice == 1 and len(part) == 3:
        part = altered(rng, part)
        if part[1] in {p[-2] if len(p) == 3 else p[0] for p in parts[:at] + parts[at + 1 :]}:
            return spec
    elif choice == 2 and len(parts) > 1:
        return (kind, name, parts[:at] + parts[at + 1 :])
    else:
        part = (part[0], "new", part[2]) if len(part) == 3 else ("new",)
    return (kind, name, (*parts[:at], part, *parts[at + 1 :]))


def check(spec: Spec, other: Spec, written: str, report_on: Counter[str]) -> None:
    source, target = made(spec), made(other, 1000)
    theirs, ours = places(source), places(target)
    before = weights(target)
    names = [
        {place: paths(v, model) for place, v in found.items()}
        for found, model in ((ours, target), (theirs, source))
    ]
    place_of = {float(value(v).flat[0]): place for place, v in theirs.items()}
    try:
        kt.restore(target, FORMATS[written](source), on_missing="ignore", on_unexpected="ignore")
    except kt.RestoreError:
        report_on["refused"] += 1
        assert_same(weights(target), before)
        return
    report_on["restored"] += 1
    for place, variable in ours.items():
        now = float(value(variable).flat[0])
        if now < 1000:
            assert holds(place, place_of[now], *names), (spec, other, place, place_of[now])


@pytest.mark.parametrize("written", WRITTEN)
def test_whatever_is_restored_is_right(written: str) -> None:
    rng = random.Random(11)
    report_on: Counter[str] = Counter()
    for _ in range(40):
        spec = random_spec(rng, 2)
        check(spec, altered(rng, spec), written, report_on)
    assert report_on["restored"] >= 10


def net(kind: str, inner: str, name: str = "net", head: str = "dense") -> Spec:
    backbone = (inner, "backbone", (("dense",),))
    return (kind, name, (backbone, (head,)))


KINDS = ["sequential", "functional", "subclassed"]
NAMED = ["model", ".keras", ".weights.h5", ".npz", ".safetensors"]


@pytest.mark.parametrize("written", NAMED)
@pytest.mark.parametrize("inner", ["sequential", "functional"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["net", "other", "dense", "backbone"])
def test_identically_built_models_restore(kind: str, inner: str, name: str, written: str) -> None:
    source, target = made(net(kind, inner)), made(net(kind, inner, name), 1000)
    if name == "backbone" and kind != "functional" and written in (".npz", ".safetensors"):
        with refused(target, "'backbone/dense/kernel' .* names 2 variables", kt.RestoreError):
            kt.restore(target, FORMATS[written](source))
        return
    report = kt.restore(target, FORMATS[written](source))
    assert_same(weights(target), weights(source))
    assert len(report.restored) == 4
    assert report.unexpected == ()


@pytest.mark.parametrize("rename", [None, "auto"])
@pytest.mark.parametrize("written", NAMED)
@pytest.mark.parametrize("inner", ["sequential", "functional"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_head_leaves_the_old_head_out(
    kind: str, inner: str, written: str, rename: str | None
) -> None:
    source, target = made(net(kind, inner)), made(net(kind, inner, head="new_head"), 1000)
    head = weights(target)[2:]
    file = FORMATS[written](source)
    unsure = inner == "functional" and written in (".npz", ".safetensors")
    if rename == "auto" and unsure:  # the heuristic leaves it to the user
        with refused(target, "dense/kernel could be", kt.RestoreError):
            kt.restore(target, file, exclude=["new_head"], rename=rename)
        return
    report = kt.restore(target, file, exclude=["new_head"], rename=rename)
    assert_same(weights(target)[:2], weights(source)[:2])
    assert_same(weights(target)[2:], head)
    assert len(report.restored) == 2


def test_a_file_that_fits_in_two_ways_is_refused_with_both() -> None:
    source = made(net("sequential", "functional"))
    trunk = ("functional", "trunk", (("dense",),))
    target = made(("sequential", "net", (trunk, ("new_head",))), 1000)
    source.save("m.keras")
    for hint in (
        "dense/kernel could be 'dense/kernel' or 'backbone/dense/kernel'",
        "Say which in a rename rule",
    ):
        with refused(target, hint, kt.RestoreError):
            kt.restore(target, "m.keras", exclude=["new_head"])
    rules = {r"backbone/(.*)": r"trunk/\1", r"dense/.*": None}
    kt.restore(target, "m.keras", exclude=["new_head"], rename=rules)
    assert_same(weights(target)[:2], weights(source)[:2])


def test_names_that_are_swapped_on_the_way_are_told_apart_or_refused() -> None:
    """Within `a`, `dense` of the model `a` in it is called as the own `dense`, and vice versa."""
    spec = ("sequential", "a", (("functional", "a", (("dense",),)), ("dense",)))
    source, target = made(spec), made(spec, 1000)
    assert [v.path for v in source.weights[::2]] == ["dense/kernel", "a/dense/kernel"]
    for written in ("model", ".keras", ".weights.h5"):
        target = made(spec, 1000)
        kt.restore(target, FORMATS[written](source))
        assert_same(weights(target), weights(source))
    for written in (".npz", "paths"):
        target = made(spec, 1000)
        with refused(target, "names 2 variables", kt.RestoreError):
            kt.restore(target, FORMATS[written](source))


def test_a_backbone_is_restored_into_the_model_around_it_and_back() -> None:
    backbone = made(("functional", "backbone", (("dense",), ("a",))))
    model = made(
        ("sequential", "net", (("functional", "backbone", (("dense",), ("a",))), ("dense",))), 1000
    )
    head = weights(model)[4:]
    assert len(kt.restore(model, backbone, exclude=[model.layers[1]]).restored) == 4
    assert_same(weights(model)[:4], weights(backbone))
    assert_same(weights(model)[4:], head)
    again = made(("functional", "backbone", (("dense",), ("a",))), 1000)
    kt.restore(again, model)
    assert_same(weights(again), weights(backbone))


def test_layers_that_are_shared_between_models_restore() -> None:
    def shared(first: int) -> keras.Model:
        layer, i = keras.layers.Dense(2, name="dense"), keras.Input((2,))
        one, two = (keras.Model(i, layer(i), name=name) for name in ("one", "two"))
        model = keras.Sequential(
            [keras.Input((2,)), one, two, keras.layers.Dense(2, name="dense")], name="net"
        )
        for position, variable in enumerate(model.weights):
            variable.assign(np.full(variable.shape, first + position))
        return model

    for written in ("model", ".keras", ".weights.h5", ".safetensors"):
        source, target = shared(0), shared(1000)
        assert len(source.weights) == 4
        kt.restore(target, FORMATS[written](source))
        assert_same(weights(target), weights(source))


def test_every_weight_has_a_path_of_its_own() -> None:
    rng = random.Random(12)
    for _ in range(30):
        model = made(random_spec(rng, 2))
        named = named_weights(model)
        for names in ([w.path for w in named], [w.short for w in named]):
            assert len(set(names)) == len(model.weights)
        owners = ["/".join(place) for place in places(model)]
        assert sorted(w.owners[0] for w in named) == sorted(owners)


def test_two_variables_of_one_name_are_refused_not_overwritten() -> None:
    variables = [("a", np.zeros(2)), ("a", np.ones(2))]
    with pytest.raises(ValueError, match="have the name 'a'"):
        VariablesCheckpoint(variables, "somewhere", np.copy)
    with pytest.raises(ValueError, match="have the name 'a'"):
        unique(variables)


@pytest.mark.parametrize("written", ["model", ".keras"])
def test_slots_follow_their_own_variable(written: str) -> None:
    """Two models within a model, whose variables share their paths, and so do their slots."""
    two = [("functional", name, (("dense",),)) for name in ("left", "right")]
    source, target = [made(("functional", "net", tuple(two)), first) for first in (0, 1000)]
    for model in (source, target):
        model.compile(keras.optimizers.Adam(0.1), "mse")
        model.optimizer.build(model.trainable_variables)
    for i, variable in enumerate(source.optimizer.variables[2:]):
        variable.assign(np.full(variable.shape, 7 + i))
    kt.restore(target, FORMATS[written](source), include_optimizer=True)
    for theirs, ours in zip(source.optimizer.variables, target.optimizer.variables, strict=True):
        np.testing.assert_array_equal(value(ours), value(theirs))
