"""The command line: what it prints, its exit codes, and that it needs no Keras to list a file."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import keras_trainops
from keras_trainops.cli import main
from tests.helpers import assert_same, randomise, two_layers, value, weights

Captured = pytest.CaptureFixture[str]
THEIRS = {
    "net/l1/w": np.arange(12, dtype="float32").reshape(4, 3),
    "net/l1/b": np.full(3, 0.5, "float32"),
    "net/l2/w": -np.arange(6, dtype="float32").reshape(3, 2),
    "net/l2/b": np.zeros(2, "float32"),
    "global_step": np.array(7),
}
RULES = [
    *("--rename", r"net/l1/(.*) => trunk/\1", "--rename", r"net/l2/(.*) => head/\1"),
]


@pytest.fixture
def theirs() -> str:
    np.savez("theirs.npz", **THEIRS)
    return "theirs.npz"


@pytest.fixture
def fitting() -> str:
    """With the leaf names of Keras."""
    leaves = {"w": "kernel", "b": "bias"}
    np.savez(
        "fitting.npz",
        **{f"{k[:-1]}{leaves[k[-1]]}": v for k, v in THEIRS.items() if k.startswith("net")},
    )
    return "fitting.npz"


@pytest.fixture
def model() -> str:
    two_layers(seed=1, name="net").save("model.keras")
    keras.backend.clear_session()
    return "model.keras"


def document(capsys: Captured, code: int, *arguments: str) -> Any:
    """What `--json` prints, and nothing else, with this exit code."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def told(capsys: Captured, code: int, *arguments: str) -> str:
    """What is printed to stderr; nothing goes to stdout."""
    capsys.readouterr()
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    return err


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "keras_trainops", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


# inspect


def test_inspect_draws_a_tree_with_sums(theirs: str, capsys: Captured) -> None:
    assert main(["inspect", theirs]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "theirs.npz: NumPy .npz archive, 4 weights and 1 tensor of training state, 100 B",
        "                shape   dtype    size",
        "├─ net/                          92 B  4 tensors",
        "│  ├─ l1/                        60 B  2 tensors",
        "│  │  ├─ w      (4, 3)  float32  48 B",
        "│  │  └─ b      (3,)    float32  12 B",
        "│  └─ l2/                        32 B  2 tensors",
        "│     ├─ w      (3, 2)  float32  24 B",
        "│     └─ b      (2,)    float32   8 B",
        "└─ global_step  ()      int64     8 B  training state",
    ]


def test_inspect_to_a_depth(theirs: str, capsys: Captured) -> None:
    assert main(["inspect", theirs, "--depth", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[-4:-2] for line in lines[1:3]] == [["60", "B"], ["32", "B"]]
    assert len(lines) == 4


def test_inspect_joins_what_has_one_child_and_parts_dotted_names(capsys: Captured) -> None:
    safetensors.numpy.save_file({"a.0.w": np.ones(2), "a.0.v.x": np.ones(3)}, "w.safetensors")
    assert main(["inspect", "w.safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line[:9].rstrip() for line in lines] == ["└─ a.0.", "   ├─ v.x", "   └─ w"]


def test_inspect_statistics_are_those_of_numpy(capsys: Captured) -> None:
    rng = np.random.default_rng(0)
    large = rng.normal(3.0, 2.0, (700, 900)).astype("float32")  # more than two pieces
    large[5, 7], large[650, 1], large[650, 2] = np.nan, np.inf, -np.inf
    small = rng.normal(size=(3, 5)).astype(ml_dtypes.bfloat16)
    arrays = {"large": large, "small": small, "flags": np.array([True, False, True])}
    arrays |= {"empty": np.ones((0, 4), "float32"), "nan": np.full(2, np.nan, "float16")}
    safetensors.numpy.save_file(arrays, "w.safetensors")
    found = document(capsys, 0, "inspect", "w.safetensors", "--stats")
    by_key = {tensor["key"]: tensor["statistics"] for tensor in found["tensors"]}
    for key, array in arrays.items():
        values = array.astype("float64")
        finite = values[np.isfinite(values)]
        if not finite.size:
            expected = dict.fromkeys(("minimum", "maximum", "mean", "std"))
        else:
            numbers = (finite.min(), finite.max(), finite.mean(), finite.std())
            expected = dict(zip(("minimum", "maximum", "mean", "std"), numbers, strict=True))
        expected |= {"nan": int(np.isnan(values).sum()), "infinite": int(np.isinf(values).sum())}
        assert by_key[key].keys() == expected.keys()
        for what, number in expected.items():
            assert by_key[key][what] == (number and pytest.approx(number, rel=1e-12)), (key, what)
    assert main(["inspect", "w.safetensors", "--stats"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "large" in line)
    assert line.split()[-2:] == ["1", "2"]


def test_inspect_as_json(theirs: str, capsys: Captured) -> None:
    found = document(capsys, 0, "inspect", theirs)
    assert found["format"] == "NumPy .npz archive"
    assert found["location"] == theirs
    assert found["tensors"][0] == {
        "key": "net/l1/w",
        "shape": [4, 3],
        "dtype": "float32",
        "bytes": 48,
        "training_state": False,
    }
    assert [t["key"] for t in found["tensors"] if t["training_state"]] == ["global_step"]


@pytest.mark.parametrize("command", ["inspect --stats {0}", "diff {0} {0}", "convert {0} {1}"])
@pytest.mark.parametrize("script", [False, True], ids=["module", "script"])
def test_listing_comparing_and_converting_import_no_keras(
    theirs: str, command: str, script: bool
) -> None:
    arguments = command.format(theirs, "out.safetensors").split()
    program = ["-m", "keras_trainops"]
    if script:  # as pip writes it
        Path("keras-trainops").write_text(
            "import sys\nfrom keras_trainops.cli import main\nsys.exit(main())\n"
        )
        program = ["keras-trainops"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *program, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "keras_trainops.cli" in loaded
    assert not loaded & {"keras", "tensorflow", "jax", "torch"}


def test_a_reader_that_goes_away_is_no_traceback(theirs: str) -> None:
    command = [sys.executable, "-m", "keras_trainops", "inspect", theirs]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.stdout is not None
    done.stdout.close()
    _, err = done.communicate(timeout=60)
    assert err == ""
    assert done.returncode == 141


def test_statistics_of_the_largest_numbers_do_not_overflow(capsys: Captured) -> None:
    most = np.finfo("float64").max
    arrays = {
        "large": np.array([1e200, -1e200]),
        "all": np.array([most, -most]),
        "constant": np.full(3, most),
        "small": np.array([1e-300, 3e-300]),
        "pieces": np.repeat([1e-3, 3e300], 300_000),  # the second is larger by far
    }
    np.savez("w.npz", **arrays)
    found = document(capsys, 0, "inspect", "w.npz", "--stats")
    by_key = {tensor["key"]: tensor["statistics"] for tensor in found["tensors"]}
    spread = {"large": 1e200, "all": most, "constant": 0.0, "small": 1e-300, "pieces": 1.5e300}
    for key, std in spread.items():
        assert by_key[key]["std"] == pytest.approx(std, rel=1e-12)
    assert by_key["constant"]["mean"] == most
    assert by_key["small"]["mean"] == pytest.approx(2e-300, rel=1e-12)
    assert by_key["pieces"]["mean"] == pytest.approx(1.5e300, rel=1e-12)
    assert main(["inspect", "w.npz", "--stats"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert not re.search(r"\binf\b", out)


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_any_name_is_printed_in_any_encoding(options: list[str]) -> None:
    np.savez("größe.npz", **{"net/größe": np.ones(2)})
    done = run("inspect", "größe.npz", *options, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert ("gr\\u00f6" if options else r"net/gr\xf6\xdfe  (2,)") in done.stdout


def test_a_file_name_that_is_no_text_is_valid_json() -> None:
    name = os.fsdecode(b"w\xff.npz")
    try:
        np.savez(name, a=np.ones(2))
    except OSError:
        pytest.skip("this file system has no such names")
    command = [sys.executable, "-m", "keras_trainops", "inspect", name, "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert json.loads(done.stdout.decode("ascii"))["location"] == name


def test_an_error_that_nobody_reads_is_no_traceback() -> None:
    command = [sys.executable, "-m", "keras_trainops", "inspect", "nothing.npz", "--json"]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.stdout is not None
    done.stdout.close()
    _, err = done.communicate(timeout=60)
    assert len(err.splitlines()) == 1
    assert done.returncode == 141


@pytest.mark.parametrize("streams", [["stdout"], ["stdout", "stderr"]])
def test_closed_streams_are_no_error(
    theirs: str, streams: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in streams:
        monkeypatch.setattr(sys, stream, None)  # as Python does after `>&-`
    assert main(["inspect", theirs, "--stats"]) == 0
    assert main(["inspect", "nothing.npz", "--json"]) == 2


# plan and suggest


def test_plan_says_what_a_restore_would_do(model: str, theirs: str, capsys: Captured) -> None:
    rules = [*RULES[:1], r"net/l1/w => trunk/kernel", "--rename", "net/l1/b => trunk/bias"]
    rules += ["--rename", "net/l2/.* =>", "--exclude", "head"]
    assert main(["plan", model, theirs, *rules]) == 0
    assert "would restore 2 of 2 variables" in capsys.readouterr().out
    found = document(capsys, 0, "plan", model, theirs, *rules)
    assert found["restored"] == {"trunk/kernel": "net/l1/w", "trunk/bias": "net/l1/b"}
    assert found["ignored"] == ["net/l2/w", "net/l2/b"]
    assert found["applied"] is False


def test_plan_that_would_be_refused_is_exit_code_1(
    model: str, theirs: str, capsys: Captured
) -> None:
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


def test_plan_of_a_file_of_pytorch(model: str, capsys: Captured) -> None:
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


def test_suggest_that_leaves_a_question_is_exit_code_1(model: str, capsys: Captured) -> None:
    np.savez("two.npz", **{"a/w": np.ones((3, 2)), "b/w": np.ones((3, 2))})
    found = document(capsys, 1, "suggest", model, "two.npz")
    assert found["ambiguous"] == [{"keys": ["a/w", "b/w"], "paths": ["head/kernel", "head/bias"]}]
    np.savez("none.npz", x=np.ones(9))
    assert main(["suggest", model, "none.npz"]) == 1


def test_modules_that_register_layers_are_imported(
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
    assert "--import MODULE" in told(capsys, 2, "plan", "own.keras", theirs)
    found = document(capsys, 0, "suggest", "own.keras", theirs, "--import", "own_layers")
    assert len(found["pairs"]) == 4
    assert "Cannot import 'no_such'" in told(
        capsys, 2, "plan", "own.keras", theirs, "--import", "no_such"
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [("raise RuntimeError('boom')", "RuntimeError: boom"), ("1/", "SyntaxError: invalid syntax")],
)
def test_modules_that_fail_are_exit_code_2(
    model: str, theirs: str, capsys: Captured, code: str, reason: str
) -> None:
    name = f"failing_{reason[:7].lower()}"
    Path(f"{name}.py").write_text(code)
    error = told(capsys, 2, "plan", model, theirs, "--import", name)
    assert f"Cannot import {name!r} ({reason}" in error


def test_a_pattern_that_matches_nothing_is_exit_code_1(
    model: str, theirs: str, capsys: Captured
) -> None:
    assert "matches no variable" in told(capsys, 1, "suggest", model, theirs, "--include", "haed")
    for option in ("--include", "--exclude", "--reshape"):
        found = document(capsys, 1, "plan", model, theirs, option, "haed")
        assert "matches no variable" in found["problems"][0]


def test_an_arrow_within_an_expression(model: str, capsys: Captured) -> None:
    np.savez("arrows.npz", **{"a=>x": np.ones(2), "b": np.ones(3)})
    rules = ["--rename", "(.*)(?<==>)x => head/bias", "--rename", "b=>trunk/bias"]
    options = ["--include", "bias", "--on-missing", "error"]
    found = document(capsys, 0, "plan", model, "arrows.npz", *rules, *options)
    assert found["restored"] == {"trunk/bias": "b", "head/bias": "a=>x"}
    rules[1] = "(.*)(?<==>)x =>"
    found = document(capsys, 1, "plan", model, "arrows.npz", *rules, *options)
    assert found["ignored"] == ["a=>x"]


# diff


def test_diff_of_equal_files_of_other_formats(theirs: str, capsys: Captured) -> None:
    safetensors.numpy.save_file(THEIRS | {"global_step": np.array(9)}, "same.safetensors")
    assert main(["diff", theirs, "same.safetensors"]) == 0
    text = "4 tensors are equal; 1 of training state were left out\n"
    assert capsys.readouterr().out == text
    assert main(["diff", theirs, "same.safetensors", "--all"]) == 1
    assert "~ global_step" in capsys.readouterr().out


def test_diff_tells_names_shapes_dtypes_and_largest_differences(
    theirs: str, capsys: Captured
) -> None:
    other = dict(THEIRS)
    other["net/l1/w"] = THEIRS["net/l1/w"].copy()
    other["net/l1/w"][2, 1] += 0.5
    other["net/l1/b"] = THEIRS["net/l1/b"].astype("float64") + np.array([0, 0.25, -0.75])
    other["net/l2/w"] = THEIRS["net/l2/w"].T.copy()
    other["new"] = other.pop("net/l2/b")
    np.savez("other.npz", **other)
    found = document(capsys, 1, "diff", theirs, "other.npz")
    assert found["only_first"], found["only_second"] == (["net/l2/b"], ["new"])
    assert found["shapes"] == [{"key": "net/l2/w", "first": [3, 2], "second": [2, 3]}]
    assert found["dtypes"] == [{"key": "net/l1/b", "first": "float32", "second": "float64"}]
    assert [(v["key"], v["unequal"], v["size"], v["absolute"]) for v in found["values"]] == [
        ("net/l1/b", 2, 3, 0.75),
        ("net/l1/w", 1, 12, 0.5),
    ]
    # |-0.25 - 0.5| of the larger of both; 7 and 7.5
    assert [v["relative"] for v in found["values"]] == pytest.approx([1.5, 0.5 / 7.5])
    assert main(["diff", theirs, "other.npz"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "- net/l2/b: only in theirs.npz",
        "+ new: only in other.npz",
        "! net/l2/w: shape (3, 2) and (2, 3)",
        "! net/l1/b: dtype float32 and float64",
    ]
    assert lines[5].split() == ["~", "net/l1/b", "0.75", "1.5", "2", "of", "3"]
    assert lines[-1].startswith("0 tensors are equal")


def test_diff_within_a_tolerance_is_that_of_numpy(capsys: Captured) -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(600, 900)).astype("float32")
    b = (a + rng.normal(scale=1e-3, size=a.shape)).astype("float32")
    np.savez("a.npz", a=a)
    np.savez("b.npz", a=b)
    atol, rtol = 1e-3, 5e-4
    found = document(capsys, 1, "diff", "a.npz", "b.npz", "--atol", str(atol), "--rtol", str(rtol))
    wide = np.isclose(a.astype("float64"), b.astype("float64"), rtol, atol)
    assert found["values"][0]["unequal"] == int((~wide).sum()) > 0
    assert found["values"][0]["absolute"] == np.abs(a.astype("float64") - b).max()
    assert main(["diff", "a.npz", "b.npz", "--atol", "0.1"]) == 0


def test_diff_takes_nan_for_equal_to_nan_and_counts_what_is_not_finite(capsys: Captured) -> None:
    first = np.array([np.nan, np.inf, -np.inf, np.nan, 1.0], "float32")
    second = np.array([np.nan, np.inf, np.inf, 2.0, 1.0], "float32")
    for name, array in (("a", first), ("b", second)):
        np.savez(f"{name}.npz", x=array)
    assert main(["diff", "a.npz", "a.npz"]) == 0
    capsys.readouterr()
    found = document(capsys, 1, "diff", "a.npz", "b.npz", "--atol", "9")
    (values,) = found["values"]
    assert (values["unequal"], values["non_finite"], values["absolute"]) == (2, 2, 0.0)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_diff_of_integers_is_exact(capsys: Captured, dtype: str) -> None:
    for name, values in (("a", [2**53, 5]), ("b", [2**53 + 1, 5])):
        np.savez(f"{name}.npz", x=np.array(values, dtype))
    (values,) = document(capsys, 1, "diff", "a.npz", "b.npz")["values"]
    assert (values["unequal"], values["absolute"]) == (1, 1.0)
    assert main(["diff", "a.npz", "b.npz", "--atol", "1"]) == 0
    assert main(["diff", "a.npz", "b.npz", "--atol", "0.5"]) == 1


def test_diff_of_the_ends_of_a_range(capsys: Captured) -> None:
    most = np.finfo("float64").max
    ends = {"i": np.array([-(2**63), 2**63 - 1]), "f": np.array([most, 1.0])}
    np.savez("a.npz", **ends)
    np.savez("b.npz", i=ends["i"][::-1], f=np.array([-most, 1.0]))
    found = document(capsys, 1, "diff", "a.npz", "b.npz")["values"]
    assert [(v["key"], v["unequal"], v["absolute"]) for v in found] == [
        ("f", 1, None),  # JSON has no infinity
        ("i", 2, 2.0**64),
    ]
    assert main(["diff", "a.npz", "b.npz"]) == 1
    assert capsys.readouterr().err == ""


def test_diff_of_text_and_dates(capsys: Captured) -> None:
    first = {"s": np.array(["x", "y"]), "d": np.array(["2020-01-01"], "datetime64[D]")}
    np.savez("a.npz", **first)
    np.savez("b.npz", s=np.array(["x", "z"]), d=first["d"])
    assert main(["diff", "a.npz", "a.npz"]) == 0
    capsys.readouterr()
    found = document(capsys, 1, "diff", "a.npz", "b.npz")
    assert [(v["key"], v["unequal"], v["size"]) for v in found["values"]] == [("s", 1, 2)]
    assert found["equal"] == 1
    np.savez("b.npz", s=np.ones(2), d=first["d"])
    found = document(capsys, 1, "diff", "a.npz", "b.npz")
    assert found["dtypes"] == [{"key": "s", "first": "str32", "second": "float64"}]
    assert [v["unequal"] for v in found["values"]] == [2]


# convert


def test_convert_to_safetensors(capsys: Captured) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "odd": np.arange(3, dtype="int8"),
        "flag": np.array(True),
        "net/wide": rng.normal(size=(600, 700)),  # more than one piece
        "half": rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
        "none": np.ones((0, 2), "float32"),
        "größe": np.ones((2, 1), "float16"),
    }
    safetensors.numpy.save_file(arrays, "a.safetensors")
    assert main(["convert", "a.safetensors", "b.safetensors"]) == 0
    assert capsys.readouterr().out.startswith("b.safetensors: 6 tensors, 3.36 MB")
    found = safetensors.numpy.load_file("b.safetensors")
    assert found.keys() == arrays.keys()
    for key, array in arrays.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)
    assert main(["diff", "a.safetensors", "b.safetensors"]) == 0


def test_convert_to_npz_leaves_out_training_state(theirs: str, capsys: Captured) -> None:
    safetensors.numpy.save_file(THEIRS, "a.safetensors")
    assert document(capsys, 0, "convert", "a.safetensors", "b.npz")["tensors"] == 4
    assert set(np.load("b.npz")) == set(THEIRS) - {"global_step"}
    assert main(["convert", "a.safetensors", "all.npz", "--all"]) == 0
    found = dict(np.load("all.npz", allow_pickle=False))
    assert found.keys() == THEIRS.keys()
    for key, array in THEIRS.items():
        assert found[key].dtype == array.dtype
        np.testing.assert_array_equal(found[key], array)


def test_convert_keeps_the_byte_order_it_can_and_columns(capsys: Captured) -> None:
    np.savez("a.npz", big=np.arange(6, dtype=">f4").reshape(2, 3), f=np.ones((2, 3), order="F"))
    assert main(["convert", "a.npz", "b.safetensors"]) == 0
    found = safetensors.numpy.load_file("b.safetensors")
    np.testing.assert_array_equal(found["big"], np.arange(6).reshape(2, 3))
    assert found["big"].dtype == "float32"
    assert main(["diff", "a.npz", "b.safetensors"]) == 0  # the order of bytes is no difference


def test_convert_under_other_names(theirs: str, capsys: Captured) -> None:
    rules = ["--rename", r"net/l(\d)/(.*) => layer\g<1-1>.\2", "--rename", "layer.*=>"]
    assert "matches no key" in told(capsys, 1, "convert", theirs, "b.npz", *rules)
    rules[-1] = "net.*=>"
    assert "never applies" in told(capsys, 1, "convert", theirs, "b.npz", *rules)
    assert main(["convert", theirs, "b.npz", *rules[:2]]) == 0
    assert set(np.load("b.npz")) == {"layer0.w", "layer0.b", "layer1.w", "layer1.b"}
    np.testing.assert_array_equal(np.load("b.npz")["layer1.w"], THEIRS["net/l2/w"])
    crowded = ["--rename", "net/l./w => same"]
    assert "Several keys are to be called 'same'" in told(
        capsys, 1, "convert", theirs, "c.npz", *crowded
    )
    assert not Path("c.npz").exists()


@pytest.mark.parametrize("out", ["new.weights.h5", "new.npz", "new.safetensors"])
def test_convert_for_a_model(model: str, theirs: str, out: str, capsys: Captured) -> None:
    rules = [
        *("--rename", r"net/(l\d)/w => \1/kernel", "--rename", r"net/(l\d)/b => \1/bias"),
    ]
    assert "leads to no variable of the model" in told(
        capsys, 1, "convert", theirs, out, "--model", model, *rules
    )
    assert not Path(out).exists()
    rules = [
        option
        for i, layer in ((1, "trunk"), (2, "head"))
        for leaf, name in (("w", "kernel"), ("b", "bias"))
        for option in ("--rename", f"net/l{i}/{leaf} => {layer}/{name}")
    ]
    assert main(["convert", theirs, out, "--model", model, *rules]) == 0
    expected = [array for key, array in THEIRS.items() if key != "global_step"]
    if out.endswith(".h5"):
        target = two_layers(seed=5)
        target.load_weights(out)
        assert_same(weights(target), expected)
    else:
        load = np.load if out.endswith(".npz") else safetensors.numpy.load_file
        found = dict(load(out))
        assert list(map(str, sorted(found))) == [
            *("head/bias", "head/kernel", "trunk/bias", "trunk/kernel")
        ]
        names = ("trunk/kernel", "trunk/bias", "head/kernel", "head/bias")
        assert_same([found[name] for name in names], expected)


def test_convert_with_a_selection_keeps_the_models_own_values(
    model: str, theirs: str, capsys: Captured
) -> None:
    own = weights(keras.saving.load_model(model))
    rules = ["--rename", "net/l1/w => trunk/kernel", "--rename", "net/l1/b => trunk/bias"]
    options = ["--model", model, *rules, "--include", "trunk"]
    assert main(["convert", theirs, "new.weights.h5", *options]) == 0
    target = randomise(two_layers(), 9)
    target.load_weights("new.weights.h5")
    np.testing.assert_array_equal(value(target.weights[0]), THEIRS["net/l1/w"])
    assert_same(weights(target)[2:], own[2:])


def test_convert_overwrites_only_where_it_is_forced(theirs: str, capsys: Captured) -> None:
    Path("b.npz").write_text("precious")
    assert "'b.npz' exists. Overwrite it with --force." in told(
        capsys, 1, "convert", theirs, "b.npz"
    )
    assert Path("b.npz").read_text() == "precious"
    assert main(["convert", theirs, "b.npz", "--force"]) == 0
    assert len(np.load("b.npz")) == 4
    assert main(["convert", "b.npz", "b.npz", "--force"]) == 0  # even onto itself
    assert len(np.load("b.npz")) == 4


def test_convert_writes_to_what_a_link_points_to(theirs: str, capsys: Captured) -> None:
    Path("far").mkdir()
    Path("far/b.npz").write_text("precious")
    Path("link.npz").symlink_to("far/b.npz")
    Path("dangling.npz").symlink_to("far/new.npz")
    for link, target in (("link.npz", "far/b.npz"), ("dangling.npz", "far/new.npz")):
        assert "exists. Overwrite it" in told(capsys, 1, "convert", theirs, link)
        assert main(["convert", theirs, link, "--force"]) == 0
        assert Path(link).is_symlink()
        assert len(np.load(target)) == 4
    assert sorted(path.name for path in Path("far").iterdir()) == ["b.npz", "new.npz"]


def test_convert_refuses_a_directory(theirs: str, capsys: Captured) -> None:
    Path("b.npz").mkdir()
    for options in ([], ["--force"]):
        error = told(capsys, 1, "convert", theirs, "b.npz", *options)
        assert error == "'b.npz' is a directory.\n"
    assert sorted(path.name for path in Path().iterdir()) == ["b.npz", theirs]


@pytest.mark.parametrize("name", ["a/../b", "/abs", "..", "a\\\\..\\\\b"])
def test_convert_refuses_names_that_lead_elsewhere(
    theirs: str, capsys: Captured, name: str
) -> None:
    rules = ["--rename", f"net/l1/w => {name}"]
    for out in ("b.npz", "b.safetensors"):
        assert "No tensor may be called" in told(capsys, 1, "convert", theirs, out, *rules)
        assert not Path(out).exists()


def test_convert_refuses_the_name_of_the_metadata(capsys: Captured) -> None:
    np.savez("a.npz", __metadata__=np.ones(3), w=np.ones(2))
    message = told(capsys, 1, "convert", "a.npz", "b.safetensors")
    assert "no tensor called '__metadata__'" in message
    assert not Path("b.safetensors").exists()
    rules = ["--rename", "__metadata__ => metadata"]
    assert main(["convert", "a.npz", "b.safetensors", *rules]) == 0
    assert set(safetensors.numpy.load_file("b.safetensors")) == {"metadata", "w"}


def test_convert_with_values_that_do_not_fit_is_refused(capsys: Captured) -> None:
    layers = [keras.Input((300,)), keras.layers.Dense(300, name="d")]
    keras.Sequential(layers).save("m.keras")
    arrays = {"d/bias": np.full(300, np.nan), "d/kernel": np.ones((300, 300))}
    np.savez("nan.npz", **arrays)
    message = told(capsys, 1, "convert", "nan.npz", "o.npz", "--model", "m.keras")
    assert "has 300 values that are NaN or infinite" in message
    damaged = bytearray(Path("nan.npz").read_bytes())
    damaged[-1000] ^= 1  # in the values of the kernel
    Path("damaged.npz").write_bytes(damaged)
    options = ["--model", "m.keras", "--exclude", "bias"]
    message = told(capsys, 2, "convert", "damaged.npz", "o.npz", *options)
    assert "Cannot read 'd/kernel' from 'damaged.npz'" in message
    assert not Path("o.npz").exists()


def test_convert_that_fails_leaves_nothing_behind(capsys: Captured) -> None:
    arrays = {"a": np.ones(3, "float32"), "b": np.ones(3, ml_dtypes.bfloat16)}
    safetensors.numpy.save_file(arrays, "a.safetensors")
    message = told(capsys, 1, "convert", "a.safetensors", "b.npz")
    assert ".npz has no dtype for 'b', which is bfloat16" in message
    np.savez("a.npz", a=np.ones(3), b=np.ones(70_000))
    damaged = bytearray(Path("a.npz").read_bytes())
    damaged[-1000] ^= 1  # in the values of `b`
    Path("a.npz").write_bytes(damaged)
    Path("b.safetensors").write_text("precious")
    message = told(capsys, 2, "convert", "a.npz", "b.safetensors", "--force")
    assert "Cannot read 'b' from 'a.npz'" in message
    assert Path("b.safetensors").read_text() == "precious"
    assert sorted(p.name for p in Path().iterdir()) == ["a.npz", "a.safetensors", "b.safetensors"]


# errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nothing.npz"], "There is no checkpoint at 'nothing.npz'"),
        (["inspect", "text"], "'text' is no checkpoint of a supported format"),
        (["inspect", "cut.npz"], "'cut.npz' is no checkpoint .* cut short"),
        (["diff", "theirs.npz", "nothing.npz"], "There is no checkpoint at 'nothing.npz'"),
        (["plan", "nothing.keras", "theirs.npz"], "There is no model at 'nothing.keras'"),
        (["plan", "theirs.npz", "theirs.npz"], "Keras cannot load a model from 'theirs.npz'"),
        (["plan", "model.keras", "theirs.npz", "--rename", "a -> b"], "must be 'KEY => PATH'"),
        (["plan", "model.keras", "theirs.npz", "--rename", "(=> b"], "not a valid regular expr"),
        (["plan", "model.keras", "theirs.npz", *["--rename", "a=>b"] * 2], "two rules for 'a'"),
        (["convert", "theirs.npz", "out.txt"], "OUT must end in one of"),
        (["convert", "theirs.npz", "out.weights.h5"], "`--model` has to say"),
        (["convert", "theirs.npz", "o.npz", "--model", "model.keras", "--all"], "`--all` does not"),
        (["convert", "theirs.npz", "o.npz", "--exclude", "a"], "Without `--model`"),
        (["convert", "theirs.npz", "no/where.npz"], "There is no directory .*no' to write 'where"),
        (["convert", "theirs.npz", "o.npz", "--rename", "( => a"], "not a valid regular expr"),
    ],
)
def test_what_cannot_be_told_is_exit_code_2(
    theirs: str, model: str, capsys: Captured, arguments: list[str], message: str
) -> None:
    Path("text").write_text("no checkpoint")
    Path("cut.npz").write_bytes(Path(theirs).read_bytes()[:-30])
    before = sorted(Path().iterdir())
    error = told(capsys, 2, *arguments)
    assert len(error.splitlines()) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error)
    assert document(capsys, 2, *arguments) == {"error": error.rstrip("\n")}
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspct", "w.npz"],
        [],
        ["inspect"],
        ["inspect", "a", "--depth", "0"],
        ["diff", "a", "b", "--atol", "-1"],
        ["plan", "a", "b", "--on-missing", "explode"],
        ["plan", "a", "b", "--include", "("],
        ["suggest", "a", "b", "--exclude", "*"],
        ["convert", "a", "b.npz", "--reshape", "["],
    ],
)
def test_arguments_that_make_no_sense_are_exit_code_2(
    capsys: Captured, arguments: list[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: keras-trainops" in err


@pytest.mark.parametrize("command", ["inspect", "plan", "suggest", "diff", "convert"])
def test_each_command_has_help(capsys: Captured, command: str) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "--json" in capsys.readouterr().out


def test_module_runs_as_the_command_does() -> None:
    done = run("--version")
    assert done.stdout.strip() == f"keras-trainops {keras_trainops.__version__}"
    assert run("inspect", "nothing").returncode == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("-m keras_trainops inspect", True),
        ("-mkeras_trainops --version", True),
        ("-um keras_trainops", True),
        ("-W ignore -Xdev -Im keras_trainops", True),
        ("--check-hash-based-pycs always -m keras_trainops", True),
        ("-m package.run keras_trainops", False),
        ("-um package.run -m keras_trainops", False),
        ("-mpackage.run", False),
        ("-X m -um package.run", False),
        ("-cpass -m keras_trainops", False),
        ("", False),
        (None, False),
    ],
)
def test_the_command_line_is_told_from_other_modules(
    monkeypatch: pytest.MonkeyPatch, options: str | None, expected: bool
) -> None:
    monkeypatch.setattr(sys, "argv", ["-m"])
    words = None if options is None else ["python", *options.split()]
    monkeypatch.setattr(sys, "orig_argv", words)
    assert keras_trainops._is_command_line() is expected
    monkeypatch.delattr(sys, "orig_argv")
    assert keras_trainops._is_command_line() is False


@pytest.mark.parametrize("options", ["-um package.run", "-mpackage.run"])
def test_a_package_that_imports_the_library_can_be_run(options: str) -> None:
    Path("package").mkdir()
    Path("package/__init__.py").write_text("import keras_trainops\n")
    Path("package/run.py").write_text("import keras_trainops as kt\nprint(kt.restore.__name__)\n")
    done = subprocess.run(
        [sys.executable, *options.split()],
        env={**os.environ, "KERAS_BACKEND": "numpy"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "restore\n", done.stderr


# the package without the command line


def test_an_import_registers_the_classes_of_the_library() -> None:
    """So that Keras can load a model that was saved with them, whatever is imported first."""
    code = """
import keras_trainops as kt
import keras
assert keras.saving.get_registered_object("keras_trainops>TrainOpsModel") is kt.TrainOpsModel
assert callable(kt.restore) and all(hasattr(kt, name) for name in kt.__all__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "numpy"},  # the quickest
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
