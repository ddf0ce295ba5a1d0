"""What the processes of `test_processes.py` do."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import safetensors.numpy

import keras_trainops as kt
from keras_trainops.backends import backend
from keras_trainops.restoring.spread import bytes_here, held_parts
from tests.processes.member import Place

UNITS = 512  # the kernels have 1 MB and 0.5 MB
SHAPES = {
    "trunk/kernel": (UNITS, UNITS),
    "trunk/bias": (UNITS,),
    "head/kernel": (UNITS, UNITS // 2),
    "head/bias": (UNITS // 2,),
}


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {key: rng.normal(size=shape).astype("float32") for key, shape in SHAPES.items()}


def write(
    path: Path, seed: int = 0, changed: Mapping[str, np.ndarray] = MappingProxyType({})
) -> str:
    safetensors.numpy.save_file({**arrays(seed), **changed}, path)
    return str(path)


def distribute(place: Place) -> None:
    """On JAX, cut kernels in rows or columns over the devices of all processes, or nothing."""
    layout = place.arguments.get("layout")
    if layout is None:
        return
    devices, distribution = keras.distribution.list_devices(), keras.distribution
    if layout == "data":
        distribution.set_distribution(distribution.DataParallel(devices=devices))
        return
    shape = place.arguments.get("mesh", [1, len(devices)])
    mesh = distribution.DeviceMesh(tuple(shape), ["batch", "model"], devices)
    layouts = distribution.LayoutMap(mesh)
    layouts["trunk.*kernel"] = ("model", None)
    layouts["head.*kernel"] = (None, "model")
    distribution.set_distribution(
        distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    )


def made(place: Place, units: int = UNITS, name: str = "net") -> keras.Model:
    keras.utils.set_random_seed(3)
    with place.scope():
        inputs = keras.Input((UNITS,))
        x = keras.layers.Dense(UNITS, name="trunk")(inputs)
        return keras.Model(inputs, keras.layers.Dense(units // 2, name="head")(x), name=name)


def parts(variables: list[keras.Variable]) -> dict[str, np.ndarray]:
    """Return what this process holds of variables, by path and begin of the part."""
    found = {}
    for number, variable in enumerate(variables):
        for index in held_parts(variable):
            name = f"{number}@{','.join(f'{each.start}:{each.stop}' for each in index)}"
            found[name] = np.array(backend().host_part(variable, index))
    return found


def layouts(model: keras.Model) -> list[str]:
    return [str(getattr(v.value, "sharding", "")) for v in model.weights]


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    equal = all(np.array_equal(first[name], second[name]) for name in first)
    return first.keys() == second.keys() and equal


def failure(function: Callable[[], Any], model: keras.Model) -> str:
    """Return the error of a restore, which must leave the model as it was."""
    before = parts([*model.variables, *model.optimizer.variables])
    try:
        function()
    except Exception as error:
        after = parts([*model.variables, *model.optimizer.variables])
        notes = " ".join(getattr(error, "__notes__", []))
        state = "unchanged" if same(before, after) else "CHANGED"
        return f"{state} {type(error).__name__}: {error} {notes}"
    return "no error"


def restoring(place: Place) -> dict[str, Any]:
    """Restore from everything, with every option, with failures on one process between."""
    distribute(place)
    here, second = place.directory, place.index == 1
    model = made(place)
    with place.scope():
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
    before = layouts(model)
    good = str(here / "good.safetensors")
    result: dict[str, Any] = {}

    def refuse(name: str, function: Callable[[], Any]) -> None:
        result[f"error {name}"] = failure(function, model)

    def check(name: str, *args: Any, **options: Any) -> None:
        kt.restore(model, str(here / "zeros.safetensors"))
        report = kt.restore(model, *args, **options)
        result.update({f"{name} {key}": part for key, part in parts(model.weights).items()})
        result[f"report {name}"] = str(report.to_dict() | {"seconds": 0, "source": ""})

    check("each", good)
    check("first", good if place.index == 0 else "nowhere", processes="first")
    check("arrays", arrays())
    check("keras", str(here / "good.weights.h5"))
    turned = {"trunk/kernel": kt.adapt.Transpose()}
    check("turned", str(here / "turned.safetensors"), adapt=turned)
    narrow = {"head/kernel": kt.adapt.Pad(1), "head/bias": kt.adapt.Pad(0)}
    check("padded", str(here / "narrow.safetensors"), adapt=narrow)
    check("padded_by_first", str(here / "narrow.safetensors"), adapt=narrow, processes="first")
    other = made(place, name="other")
    kt.restore(other, good)
    check("model", other)
    x = model.get_layer("trunk")(model.inputs[0])  # the source shares a layer with the model
    check("shared", keras.Model(model.inputs, other.get_layer("head")(x)))
    check("alone", good, processes="alone")
    result["layouts kept"] = layouts(model) == before

    refuse("missing", lambda: kt.restore(model, "nowhere.npz" if second else good))
    refuse("damaged", lambda: kt.restore(model, str(here / f"damaged-{place.index}.safetensors")))
    refuse("contents", lambda: kt.restore(model, str(here / f"other-{place.index}.safetensors")))
    refuse("kernel", lambda: kt.restore(model, str(here / f"kernel-{place.index}.safetensors")))
    refuse("nan", lambda: kt.restore(model, str(here / "nan.safetensors")))
    rename = {"(.*)/kernel": r"\1/kernel"} | ({"head/bias": None} if second else {})
    refuse("rename", lambda: kt.restore(model, good, rename=rename, on_missing="ignore"))
    small = made(place, units=UNITS // 2, name="small")  # all processes take part
    mine = small if second else model
    refuse("model", lambda: kt.restore(mine, good))
    refuse("model first", lambda: kt.restore(mine, good, processes="first"))
    who: Any = "first" if second else "each"
    refuse("options", lambda: kt.restore(model, good, processes=who))
    refuse("first", lambda: kt.restore(model, "nowhere.npz", processes="first"))
    refuse("argument", lambda: kt.restore(model, good, processes="last"))  # type: ignore[arg-type]
    with failing_assignment(model, on=second):
        refuse("memory", lambda: kt.restore(model, str(here / "zeros.safetensors")))

    result |= warm_start(place, model, good)
    result |= optimizer_state(place, model)
    result |= measured(place)
    if place.arguments.get("layout"):
        result |= replicated(place, good)
    return result


def spread(place: Place) -> dict[str, Any]:
    """Restore into parts, of which several processes hold the same."""
    distribute(place)
    model, result = made(place), dict[str, Any]()
    before = layouts(model)
    for name, options in {"each": {}, "first": {"processes": "first"}}.items():
        kt.restore(model, str(place.directory / "zeros.safetensors"))
        kt.restore(model, str(place.directory / "good.safetensors"), **options)
        result.update({f"{name} {key}": part for key, part in parts(model.weights).items()})
    return {**result, "layouts kept": layouts(model) == before}


def replicated(place: Place, good: str) -> dict[str, Any]:
    """Restore into a model that each process holds whole."""
    distribute(dataclasses.replace(place, arguments={"layout": "data"}))
    model = made(place)
    before = layouts(model)
    kt.restore(model, good)
    found = {f"data {key}": part for key, part in parts(model.weights).items()}
    return {**found, "data layouts kept": layouts(model) == before}


def wide() -> keras.Model:
    """Return a model of 67 MB; on JAX its kernels are cut in rows and in columns."""
    inputs = keras.Input((4096,))
    x = keras.layers.Dense(2048, name="trunk")(inputs)
    return keras.Model(inputs, keras.layers.Dense(4096, name="head")(x), name="wide")


def measured(place: Place) -> dict[str, Any]:
    """Return the bytes that are read of each format, and the memory that is needed meanwhile."""
    with place.scope():
        model = wide()
    found: dict[str, Any] = {"share": sum(map(bytes_here, model.weights))}
    expected = safetensors.numpy.load_file(place.directory / "wide.safetensors")
    for name in place.arguments["wide"]:
        for variable in model.weights:
            variable.assign(keras.ops.zeros_like(variable.value))
        with kt.open_checkpoint(place.directory / name) as checkpoint:
            checkpoint["head/bias"]  # imports the library
        read, memory = counted("io", "rchar"), counted("status", "VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        kt.restore(model, str(place.directory / name))
        found[f"read {name}"] = counted("io", "rchar") - read
        found[f"peak {name}"] = (counted("status", "VmHWM") - memory) * 1024
        found[f"right {name}"] = all(
            np.array_equal(backend().host_part(variable, index), expected[variable.path][index])
            for variable in model.weights
            for index in held_parts(variable)
        )
    return found


def counted(file: str, name: str) -> int:
    """Return a number that Linux keeps about this process."""
    lines = Path("/proc/self", file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


@contextlib.contextmanager
def failing_assignment(model: keras.Model, on: bool) -> Iterator[None]:
    """Let the last assignment of a restore fail, once."""
    last, original, calls = model.weights[-1], keras.Variable.assign, list[int]()

    def assign(self: keras.Variable, new: Any) -> Any:
        if on and self is last and not calls:
            calls.append(1)
            raise MemoryError("no room")
        return original(self, new)

    keras.Variable.assign = assign
    try:
        yield
    finally:
        keras.Variable.assign = original


def warm_start(place: Place, model: keras.Model, good: str) -> dict[str, Any]:
    """Start twice, with what is printed and warned about in each process."""
    output = io.StringIO()
    kt.restore(model, str(place.directory / "zeros.safetensors"))
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(output):
        warnings.simplefilter("always")
        rename = {"trunk/bias": None}
        start = kt.WarmStart(good, exclude="head/bias", rename=rename, on_missing="warn")
        start.set_model(model)
        start.on_train_begin()
        model.optimizer.iterations.assign(3)
        skipped = kt.WarmStart(good)
        skipped.set_model(model)
        skipped.on_train_begin()
        model.optimizer.iterations.assign(0)
    assert start.report is not None
    return {
        "warm printed": output.getvalue(),
        "warm warned": sum("trunk/bias" in str(each.message) for each in caught),
        "warm restored": len(start.report.restored),
        **{f"warm {key}": part for key, part in parts(model.weights).items()},
    }


def optimizer_state(place: Place, model: keras.Model) -> dict[str, Any]:
    """Restore slots, which are spread as their variables."""
    path = str(place.directory / "trained.weights.h5")
    model.optimizer.iterations.assign(1)
    report = kt.restore(model, path, include_optimizer=True)
    slots = parts(model.optimizer.variables)
    return {"slots": len(report.optimizer), **{f"optimizer {k}": v for k, v in slots.items()}}


def dying(place: Place) -> dict[str, Any]:
    """Process 1 dies while it reads."""
    distribute(place)
    model = made(place)
    with place.scope():
        model.compile("sgd", "mse")

    def slow(array: np.ndarray) -> np.ndarray:
        if place.index == 1:
            print("reading", flush=True)
            time.sleep(1000)
        return array

    good = str(place.directory / "good.safetensors")
    print(failure(lambda: kt.restore(model, good, adapt={"head/bias": slow}), model), flush=True)
    os._exit(0)  # a regular end would wait for the other process
