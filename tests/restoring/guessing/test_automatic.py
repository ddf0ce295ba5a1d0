"""`rename="auto"` restores bit for bit what is certain, and changes nothing otherwise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import keras_trainops as kt
from tests.helpers import randomise, refused, value
from tests.restoring.guessing.layouts import (
    batch_norm,
    conv,
    linear,
    parallel,
    tensors_of,
    torch_batch_norm,
)

Sizes = dict[str, tuple[int, ...]]


def network(last: str = "fc") -> Any:
    layers = [conv("stem_conv", 3, 4), batch_norm("stem_bn", 4)]
    for i in range(2):
        layers += [conv(f"block{i}_conv", 4, 4), batch_norm(f"block{i}_bn", 4)]
    return randomise(parallel([*layers, linear(last, 4, 4, bias=True)]), 1)


def file_of_pytorch(head: str = "fc") -> dict[str, Any]:
    sizes: Sizes = {"stem.conv.weight": (4, 3, 3, 3)} | torch_batch_norm("stem.bn", 4)
    for i in range(2):
        sizes |= {f"blocks.{i}.conv.weight": (4, 4, 3, 3)} | torch_batch_norm(f"blocks.{i}.bn", 4)
    return tensors_of(sizes | {f"{head}.weight": (4, 4), f"{head}.bias": (4,)})


def test_a_file_of_pytorch_is_restored_bit_for_bit(tmp_path: Path) -> None:
    theirs, model = file_of_pytorch(), network()
    save_file(theirs, tmp_path / "model.safetensors")
    report = kt.restore(model, tmp_path / "model.safetensors", rename="auto")
    assert len(report.restored) == len(model.weights)
    expected = {
        "stem_conv/kernel": theirs["stem.conv.weight"].transpose(2, 3, 1, 0),
        "block1_conv/kernel": theirs["blocks.1.conv.weight"].transpose(2, 3, 1, 0),
        "block1_bn/gamma": theirs["blocks.1.bn.weight"],
        "block0_bn/moving_mean": theirs["blocks.0.bn.running_mean"],
        "block0_bn/moving_variance": theirs["blocks.0.bn.running_var"],
        "fc/kernel": theirs["fc.weight"].T,  # square, so only the other kernels tell
        "fc/bias": theirs["fc.bias"],
    }
    found = {v.path: value(v) for v in model.weights}
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array)
    suggestion = kt.suggest_rename(network(), theirs)
    assert {key: path for path, key in report.restored.items()} == dict(suggestion.pairs)


def test_what_rests_on_order_is_refused_with_the_suggestion() -> None:
    """Two layers of one shape, whose names say nothing."""
    model = randomise(parallel([linear("first", 4, 4), linear("second", 4, 4)]), 1)
    theirs = tensors_of({"q.2.weight": (4, 4), "q.10.weight": (4, 4)})
    suggestion = kt.suggest_rename(model, theirs)
    assert len(suggestion.pairs) == 2
    printed = "\n".join(f"    {line}" for line in str(suggestion).splitlines())
    message = rf"(?s)2 variables rest on order or likeness\..*\n{re.escape(printed)}\n"
    with refused(model, message, kt.RestoreError):
        kt.restore(model, theirs, rename="auto")
    kt.restore(model, theirs, rename=suggestion.rules, adapt=suggestion.adapt)


def test_one_doubt_refuses_all() -> None:
    theirs = file_of_pytorch() | tensors_of({"a.weight": (7, 7), "b.weight": (7, 7)})
    layers = [linear("x", 7, 7), linear("y", 7, 7), conv("stem_conv", 3, 4)]
    model = randomise(parallel(layers), 1)
    with refused(model, "2 variables are ambiguous", kt.RestoreError):
        kt.restore(model, dict(sorted(theirs.items())), rename="auto", on_unexpected="ignore")
    report = kt.restore(
        model, theirs, rename="auto", include="stem_conv", on_unexpected="ignore"
    )  # a selection leaves the doubt out
    assert list(report.restored.values()) == ["stem.conv.weight"]


def test_adapters_of_the_user_come_first() -> None:
    model = parallel([linear("fc", 3, 4)])
    theirs = tensors_of({"fc.weight": (4, 3)})
    double = lambda array: 2 * array.T  # noqa: E731
    kt.restore(model, theirs, rename="auto", adapt={"fc": double})
    np.testing.assert_array_equal(value(model.weights[0]), 2 * theirs["fc.weight"].T)


def test_another_shape_is_reported_not_skipped() -> None:
    model = randomise(parallel([linear("fc", 3, 4), linear("head", 4, 5)]), 1)
    theirs = tensors_of({"net/fc/kernel": (3, 4), "net/head/kernel": (4, 9)})
    with refused(model, r"head/kernel: \(4, 5\) in the model, \(4, 9\)", kt.RestoreError):
        kt.restore(model, theirs, rename="auto")
