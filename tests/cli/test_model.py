from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_trainops.cli import main
from tests.cli.command_line import RULES, Captured, document, stderr_of

pytestmark = pytest.mark.once


def test_plan_shows_what_a_restore_would_do(model: str, theirs: str, capsys: Captured) -> None:
    rules = [*RULES[:1], r"net/l1/w => trunk/kernel", "--rename", "net/l1/b => trunk/bias"]
    rules += ["--rename", "net/l2/.* =>", "--exclude", "head"]
    assert main(["plan", model, theirs, *rules]) == 0
    assert "would restore 2 of 2 variables" in capsys.readouterr().out
    found = document(capsys, 0, "plan", model, theirs, *rules)
    assert found["restored"] == {"trunk/kernel": "net/l1/w", "trunk/bias": "net/l1/b"}
    assert found["ignored"] == ["net/l2/w", "net/l2/b"]
    assert found["applied"] is False


def test_refused_plan_exits_with_1(model: str, theirs: str, capsys: Captured) -> None:
    assert main(["plan", model, theirs]) == 1
    assert "No key of 'theirs.npz' leads to a selected variable" in capsys.readouterr().out
    rules = ["--rename", "net/l1/w => trunk/kernel"]
    found = document(capsys, 1, "plan", model, theirs, *rules)
    assert found["problems"] == ["- missing: trunk/bias, head/{bias,kernel}"]
    for reaction, code in (("ignore", 0), ("error", 1)):
        assert main(["plan", model, theirs, *rules, "--on-missing", reaction]) == code
    unexpected = ["--on-missing", "ignore", "--on-unexpected", "error"]
    assert main(["plan", model, theirs, *rules, *unexpected]) == 1


def test_plan_by_the_heuristic(model: str, fitting: str, capsys: Captured) -> None:
    found = document(capsys, 0, "plan", model, fitting, "--rename", "auto")
    assert found["restored"]["head/bias"] == "net/l2/bias"


def test_plan_of_a_pytorch_file(model: str, capsys: Captured) -> None:
    arrays = {"a.weight": np.ones((3, 4)), "a.bias": np.ones(3), "b.weight": np.ones((1, 1, 3, 2))}
    np.savez("torch.npz", **arrays)
    rules = ["--rename", "a.weight => trunk/kernel", "--rename", "a.bias => trunk/bias"]
    rules += ["--rename", "b.weight => head/kernel", "--exclude", "head/bias"]
    assert main(["plan", model, "torch.npz", *rules]) == 1
    adapt = ["--from-torch", "--reshape", "head/kernel"]
    found = document(capsys, 0, "plan", model, "torch.npz", *rules, *adapt)
    assert found["adapted"] == {"trunk/kernel": "Transpose()", "head/kernel": "Reshape()"}


def test_suggest_prints_python_to_paste(model: str, theirs: str, capsys: Captured) -> None:
    assert main(["suggest", model, theirs]) == 0
    scope: dict[str, Any] = {}
    exec(capsys.readouterr().out, scope)
    found = document(capsys, 0, "suggest", model, theirs)
    assert found["rules"] == scope["rename"]
    assert found["pairs"]["net/l2/w"] == "head/kernel"
    only = document(capsys, 0, "suggest", model, theirs, "--include", "head")
    assert set(only["pairs"].values()) == {"head/kernel", "head/bias"}


def test_ambiguous_suggestion_exits_with_1(model: str, capsys: Captured) -> None:
    np.savez("two.npz", **{"a/w": np.ones((3, 2)), "b/w": np.ones((3, 2))})
    found = document(capsys, 1, "suggest", model, "two.npz")
    assert found["ambiguous"] == [{"keys": ["a/w", "b/w"], "paths": ["head/kernel", "head/bias"]}]
    np.savez("none.npz", x=np.ones(9))
    assert main(["suggest", model, "none.npz"]) == 1


def test_imports_modules_that_register_layers(
    theirs: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, "."])
    Path("own_layers.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable(package='own')\n"
        "class Mine(keras.layers.Dense): pass\n"
    )
    own = importlib.import_module("own_layers")
    layers = [own.Mine(3, name="trunk"), own.Mine(2, name="head")]
    keras.Sequential([keras.Input((4,)), *layers]).save("own.keras")
    monkeypatch.delitem(keras.saving.get_custom_objects(), "own>Mine")
    monkeypatch.delitem(sys.modules, "own_layers")
    monkeypatch.setattr(sys, "path", sys.path[:-1])
    assert "--import MODULE" in stderr_of(capsys, 2, "plan", "own.keras", theirs)
    found = document(capsys, 0, "suggest", "own.keras", theirs, "--import", "own_layers")
    assert len(found["pairs"]) == 4
    assert "Cannot import 'no_such'" in stderr_of(
        capsys, 2, "plan", "own.keras", theirs, "--import", "no_such"
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [("raise RuntimeError('boom')", "RuntimeError: boom"), ("1/", "SyntaxError: invalid syntax")],
)
def test_failing_module_exits_with_2(
    model: str, theirs: str, capsys: Captured, code: str, reason: str
) -> None:
    name = f"failing_{reason[:7].lower()}"
    Path(f"{name}.py").write_text(code)
    error = stderr_of(capsys, 2, "plan", model, theirs, "--import", name)
    assert f"Cannot import {name!r} ({reason}" in error


def test_pattern_without_match_exits_with_1(model: str, theirs: str, capsys: Captured) -> None:
    assert "matches no variable" in stderr_of(
        capsys, 1, "suggest", model, theirs, "--include", "haed"
    )
    for option in ("--include", "--exclude", "--reshape"):
        found = document(capsys, 1, "plan", model, theirs, option, "haed")
        assert "matches no variable" in found["problems"][0]


def test_accepts_an_arrow_inside_a_pattern(model: str, capsys: Captured) -> None:
    np.savez("arrows.npz", **{"a=>x": np.ones(2), "b": np.ones(3)})
    rules = ["--rename", "(.*)(?<==>)x => head/bias", "--rename", "b=>trunk/bias"]
    options = ["--include", "bias", "--on-missing", "error"]
    found = document(capsys, 0, "plan", model, "arrows.npz", *rules, *options)
    assert found["restored"] == {"trunk/bias": "b", "head/bias": "a=>x"}
    rules[1] = "(.*)(?<==>)x =>"
    found = document(capsys, 1, "plan", model, "arrows.npz", *rules, *options)
    assert found["ignored"] == ["a=>x"]
