from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.cli import main
from tests.cli.command_line import Captured, document, stderr_of
from tests.helpers import value
from tests.writing.helpers import arrays_in, assert_equal_files, network, rules, saved

pytestmark = pytest.mark.once

RULES = [
    "--from-torch",
    "--rename",
    r"enc\.attn\.(query|key|value)\.(weight|bias) => attention/\1/*",
    "--rename",
    r"enc\.attn\.out\.(weight|bias) => attention/attention_output/*",
    "--rename",
    r"enc\.norm\.(weight|bias) => norm/*",
    "--rename",
    r"head\.(weight|bias) => head/*",
]


@pytest.fixture
def model() -> str:
    saved("theirs.safetensors")
    model = network()
    kt.restore(model, "theirs.safetensors", **rules(model))
    model.save("model.keras")
    return "model.keras"


def test_writes_a_model_back(model: str, capsys: Captured) -> None:
    assert main(["write-back", model, "theirs.safetensors", "ours.safetensors", *RULES]) == 0
    assert "wrote 12 of 13 tensors, copied 1" in capsys.readouterr().out
    assert_equal_files("ours.safetensors", "theirs.safetensors", without=("global_step",))
    arguments = ["write-back", model, "theirs.safetensors", "ours.safetensors", *RULES]
    found = document(capsys, 0, *arguments, "--exclude", "head", "--force")
    assert sorted(found["copied"]) == ["enc.rotary.table", "head.bias", "head.weight"]


def test_a_plan_stands_for_the_options(model: str, capsys: Captured) -> None:
    other = network()
    kt.restore(other, "theirs.safetensors", **rules(other)).save("plan.json")
    assert main(["write-back", model, "theirs.safetensors", "a.npz", "--plan", "plan.json"]) == 0
    Path("theirs.safetensors").unlink()
    capsys.readouterr()
    arguments = ["write-back", model, "plan.json", "b.npz"]
    assert "the plan has no values: enc.rotary.table" in stderr_of(capsys, 1, *arguments)
    assert main([*arguments, "--on-unexpected", "ignore"]) == 0
    assert arrays_in("b.npz").keys() == arrays_in("a.npz").keys() - {"enc.rotary.table"}


def test_shapes_of_the_model(model: str, capsys: Captured) -> None:
    other = network(classes=3)
    other.save("other.keras")
    arguments = ["write-back", "other.keras", "theirs.safetensors", "ours.npz", *RULES]
    assert '`shape="model"`' in stderr_of(capsys, 1, *arguments)
    assert main([*arguments, "--shape", "model"]) == 0
    np.testing.assert_array_equal(arrays_in("ours.npz")["head.bias"], value(other.weights[-1]))


def test_refusals_and_errors(model: str, capsys: Captured) -> None:
    start = ["write-back", model]
    assert "is `like` itself" in stderr_of(
        capsys, 1, *start, "theirs.safetensors", "theirs.safetensors", *RULES
    )
    assert "There is no checkpoint" in stderr_of(capsys, 2, *start, "none.npz", "x.npz", *RULES)
    assert "Cannot write" in stderr_of(capsys, 1, *start, "theirs.safetensors", "x.npz")
    assert "has no low-rank updates" in stderr_of(
        capsys, 1, *start, "theirs.safetensors", "x", *RULES, "--lora", "peft"
    )
    assert not Path("x.npz").exists()
