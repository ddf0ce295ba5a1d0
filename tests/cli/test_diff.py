from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

from keras_trainops.cli import main
from tests.cli.command_line import THEIRS, Captured, document

pytestmark = pytest.mark.once


def test_equal_files_of_different_formats(theirs: str, capsys: Captured) -> None:
    safetensors.numpy.save_file(THEIRS | {"global_step": np.array(9)}, "same.safetensors")
    assert main(["diff", theirs, "same.safetensors"]) == 0
    text = "4 tensors are equal; training state left out: 1\n"
    assert capsys.readouterr().out == text
    assert main(["diff", theirs, "same.safetensors", "--all"]) == 1
    assert "~ global_step" in capsys.readouterr().out


def test_reports_names_shapes_dtypes_and_values(theirs: str, capsys: Captured) -> None:
    other = dict(THEIRS)
    other["net/l1/w"] = THEIRS["net/l1/w"].copy()
    other["net/l1/w"][2, 1] += 0.5
    other["net/l1/b"] = THEIRS["net/l1/b"].astype("float64") + np.array([0, 0.25, -0.75])
    other["net/l2/w"] = THEIRS["net/l2/w"].T.copy()
    other["new"] = other.pop("net/l2/b")
    np.savez("other.npz", **other)
    found = document(capsys, 1, "diff", theirs, "other.npz")
    assert (found["only_first"], found["only_second"]) == (["net/l2/b"], ["new"])
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


def test_tolerance_matches_numpy(capsys: Captured) -> None:
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


def test_nan_equals_nan(capsys: Captured) -> None:
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
def test_integers_are_compared_exactly(capsys: Captured, dtype: str) -> None:
    for name, values in (("a", [2**53, 5]), ("b", [2**53 + 1, 5])):
        np.savez(f"{name}.npz", x=np.array(values, dtype))
    (values,) = document(capsys, 1, "diff", "a.npz", "b.npz")["values"]
    assert (values["unequal"], values["absolute"]) == (1, 1.0)
    assert main(["diff", "a.npz", "b.npz", "--atol", "1"]) == 0
    assert main(["diff", "a.npz", "b.npz", "--atol", "0.5"]) == 1


def test_differences_may_overflow(capsys: Captured) -> None:
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


def test_compares_text_and_dates(capsys: Captured) -> None:
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
