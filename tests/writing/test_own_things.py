"""What users bring of their own: adapters, callables, tied weights, modules, links."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch

import keras_trainops as kt
from tests.helpers import randomise, value
from tests.writing.helpers import arrays_in, assert_equal_files, network, rules, saved

pytestmark = pytest.mark.once

Shape = tuple[int, ...]
OPTIONS: dict[str, Any] = {"rename": {"w": "head/kernel"}, "include": "head/kernel"}


def dense(units: int = 3) -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, name="head")])
    return randomise(model, 0)


def test_a_callable_that_works_in_place_changes_no_byte() -> None:
    def twice(array: np.ndarray) -> np.ndarray:
        array *= 2
        return array

    theirs, model = saved("theirs.npz", {"w": np.full((4, 3), 5.0, "float32")}), dense()
    kt.restore(model, theirs, adapt={"head": twice}, **OPTIONS)
    kt.write_back(model, theirs, "ours.npz", adapt={"head": twice}, **OPTIONS)
    assert_equal_files("ours.npz", theirs)


class Turned(kt.adapt.Adapter):
    """Transposes; `inverse` is each test's."""

    def shape(self, shapes: Sequence[Shape], target: Shape) -> Shape:
        return shapes[0][::-1]

    def __call__(self, arrays: Sequence[np.ndarray], target: Shape) -> np.ndarray:
        return arrays[0].T


class Right(Turned):
    def inverse(self, array: np.ndarray, shapes: Any, target: Shape) -> Sequence[np.ndarray]:
        return [array.T]


class OtherShape(Turned):
    def inverse(self, array: np.ndarray, shapes: Any, target: Shape) -> Sequence[np.ndarray]:
        return [array]


class TooFew(Turned):
    def inverse(self, array: np.ndarray, shapes: Any, target: Shape) -> Sequence[np.ndarray]:
        return []


class OtherValues(Turned):
    def inverse(self, array: np.ndarray, shapes: Any, target: Shape) -> Sequence[np.ndarray]:
        return [array.T * 2]


class Halved(kt.adapt.Transpose):
    """Inherits an inverse that is not its own."""

    def _adapt(self, array: np.ndarray, target: Shape) -> np.ndarray:
        return super()._adapt(array, target) * 0.5


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (OtherShape(), r"returned shapes \[\(4, 3\)\] in place of \[\(3, 4\)\]"),
        (TooFew(), r"returned shapes \[\] in place of"),
        (OtherValues(), "returned tensors that are adapted to other values"),
        (Halved(), "returned tensors that are adapted to other values"),
        (Turned(), "its inverse is unknown"),
    ],
)
def test_an_inverse_of_ones_own_is_checked(adapter: kt.adapt.Adapter, message: str) -> None:
    theirs, model = saved("theirs.npz", {"w": np.ones((3, 4), "float32")}), dense()
    with pytest.raises(kt.RestoreError, match=message):
        kt.write_back(model, theirs, "ours.npz", adapt={"head": adapter}, **OPTIONS)
    assert not Path("ours.npz").exists()
    kt.restore(model, theirs, adapt={"head": adapter}, **OPTIONS)
    kt.write_back(model, theirs, "same.npz", adapt={"head": adapter}, **OPTIONS)
    assert_equal_files("same.npz", theirs)  # nothing has changed, so no inverse is needed


def test_a_right_inverse_is_used() -> None:
    theirs, model = saved("theirs.npz", {"w": np.ones((3, 4), "float32")}), dense()
    kt.write_back(model, theirs, "ours.npz", adapt={"head": Right()}, **OPTIONS)
    np.testing.assert_array_equal(arrays_in("ours.npz")["w"], value(model.weights[0]).T)


def test_tied_weights_stay_tied() -> None:
    table = torch.arange(12.0).reshape(4, 3)
    torch.save({"e.weight": table, "h.weight": table, "norm": torch.ones(3)}, "theirs.pt")
    words = keras.layers.Embedding(4, 3, name="words")
    model = randomise(keras.Sequential([keras.Input((2,)), words]), 0)
    report = kt.write_back(model, "theirs.pt", "ours.pt", rename={"e.weight": "words/embeddings"})
    found = torch.load("ours.pt", weights_only=True)
    assert torch.equal(found["e.weight"], found["h.weight"])
    assert torch.equal(found["e.weight"], torch.tensor(value(model.weights[0])))
    assert report.notes == ("h.weight equals e.weight in the source, so it gets the same values",)
    assert report.copied == ("norm",)


def test_only_a_part_of_a_narrower_variable_has_changed() -> None:
    """Of a fused tensor, q and v are the source's, and k is new."""
    inputs = keras.Input((4,))
    parts = [keras.layers.Dense(2, name=name, dtype="bfloat16")(inputs) for name in "qkv"]
    model = keras.Model(inputs, parts)
    paths = [f"{name}/kernel" for name in "qkv"]
    theirs = saved("theirs.npz", {"qkv": np.random.default_rng(0).random((6, 4)).astype("f4")})
    options: dict[str, Any] = {
        "rename": {"qkv": paths},
        "include": paths,
        "adapt": {
            path: [kt.adapt.Split(place, 3), kt.adapt.Transpose()]
            for place, path in enumerate(paths)
        },
    }
    for layer in model.layers[1:]:
        layer.kernel.assign(layer.kernel)
    variables = {v.path: v for v in model.weights}
    for variable in variables.values():
        assert variable.dtype in ("bfloat16", "float32")
    kt.restore(model, theirs, **options)
    before = arrays_in(theirs)["qkv"]
    key = next(v for path, v in variables.items() if path.endswith("k/kernel"))
    key.assign(np.zeros((4, 2)))
    kt.write_back(model, theirs, "ours.npz", **options)
    found = arrays_in("ours.npz")["qkv"]
    np.testing.assert_array_equal(found[2:4], 0)
    np.testing.assert_array_equal(found[[0, 1, 4, 5]], before[[0, 1, 4, 5]])


def test_what_a_plan_leaves_out_is_said() -> None:
    theirs, model = saved("theirs.npz"), network()
    report = kt.restore(model, theirs, **rules(model), exclude="head")
    written = kt.write_back(model, theirs, "ours.npz", report=report)
    assert written.excluded == ("head/kernel", "head/bias")
    assert "head/{bias,kernel}" in str(written)


def test_a_report_outlives_its_source() -> None:
    theirs, model = saved("theirs.npz"), network()
    report = kt.restore(model, theirs, **rules(model))
    os.rename(theirs, "moved.npz")
    kt.write_back(model, "moved.npz", "ours.npz", report=report)
    assert_equal_files("ours.npz", "moved.npz", without=("global_step",))


def test_layers_that_are_not_built_are_said() -> None:
    class Lazy(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first = keras.layers.Dense(3, name="first")
            self.later = keras.layers.Dense(2, name="later")

        def build(self, shape: Any) -> None:
            self.first.build(shape)

        def call(self, x: Any) -> Any:
            return self.first(x)

    model = Lazy()
    model(np.ones((1, 4)))
    np.savez("theirs.npz", **{v.path: value(v) for v in model.weights}, later=np.ones(3))
    with pytest.warns(UserWarning, match=r"these layers of .* are not built yet.*: later"):
        kt.write_back(model, "theirs.npz", "ours.npz")


def test_a_link_is_replaced_and_not_what_it_leads_to() -> None:
    """The caches of Hugging Face are links to files named by their content."""
    theirs, model = saved("theirs.npz"), network()
    Path("blobs").mkdir()
    os.rename(theirs, "blobs/0")
    os.symlink("blobs/0", "theirs.npz")
    before = Path("blobs/0").read_bytes()
    kt.write_back(model, "theirs.npz", "theirs.npz", overwrite=True, **rules(model))
    assert Path("blobs/0").read_bytes() == before
    assert not Path("theirs.npz").is_symlink()
    np.testing.assert_array_equal(arrays_in("theirs.npz")["head.bias"], value(model.weights[-1]))


def test_texts_in_an_archive_are_copied() -> None:
    model = dense()
    np.savez("theirs.npz", w=np.ones((4, 3), "float32"), classes=np.array(["cat", "emu"]))
    kt.write_back(model, "theirs.npz", "ours.npz", **OPTIONS)
    with np.load("ours.npz") as found:
        assert found["classes"].tolist() == ["cat", "emu"]


def test_an_update_of_a_shared_kernel_is_refused() -> None:
    class Tied(keras.layers.Layer):
        def __init__(self, kernel: keras.Variable) -> None:
            super().__init__()
            self.kernel = kernel

        def call(self, x: Any) -> Any:
            return keras.ops.matmul(x, self.kernel)

    inputs = keras.Input((4,))
    one = keras.layers.Dense(4, name="one")
    hidden = one(inputs)
    model = keras.Model(inputs, Tied(one.weights[0])(hidden))
    one.enable_lora(2)
    np.savez("theirs.npz", kernel=np.ones((4, 4)))
    with pytest.raises(kt.RestoreError, match="shares its kernel with another layer"):
        kt.write_back(model, "theirs.npz", "ours.npz", rename={"kernel": "one/kernel"})


def test_modules_that_hide_their_memory_are_refused() -> None:
    class Copies(torch.nn.Linear):
        def state_dict(self, *args: Any, **options: Any) -> Any:
            found = super().state_dict(*args, **options)
            return {key: tensor.clone() for key, tensor in found.items()}

    expanded = torch.nn.Linear(4, 3)
    expanded.register_buffer("table", torch.ones(1, 3).expand(4, 3))
    model = dense()
    options = {"rename": {"weight": "head/kernel", "bias": "head/bias"}}
    for module in (Copies(4, 3), torch.nn.Linear(4, 3, device="meta"), expanded):
        with pytest.raises(ValueError, match="cannot be changed in place"):
            kt.to_torch(model, module, adapt=kt.adapt.from_torch(model), **options)


def test_parameters_that_overlap_get_one_value() -> None:
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    module["b"].weight = torch.nn.Parameter(module["a"].weight.data.t())
    inputs = keras.Input((3,))
    outputs = [keras.layers.Dense(3, name=name)(inputs) for name in "ab"]
    model = randomise(keras.Model(inputs, outputs), 0)
    before = module["a"].weight.detach().clone()
    with pytest.raises(kt.RestoreError, match=r"a\.weight and b\.weight share memory"):
        kt.to_torch(
            model,
            module,
            rename={r"(a|b)\.(weight|bias)": r"\1/*"},
            adapt=kt.adapt.from_torch(model),
        )
    assert torch.equal(module["a"].weight, before)
