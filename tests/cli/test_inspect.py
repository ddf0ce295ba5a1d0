from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from keras_trainops.cli import main
from tests.cli.command_line import Captured, document

pytestmark = pytest.mark.once


def test_draws_a_tree_with_totals(theirs: str, capsys: Captured) -> None:
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


def test_limits_the_depth(theirs: str, capsys: Captured) -> None:
    assert main(["inspect", theirs, "--depth", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[-4:-2] for line in lines[1:3]] == [["60", "B"], ["32", "B"]]
    assert len(lines) == 4


def test_joins_single_children_and_splits_dotted_names(capsys: Captured) -> None:
    safetensors.numpy.save_file({"a.0.w": np.ones(2), "a.0.v.x": np.ones(3)}, "w.safetensors")
    assert main(["inspect", "w.safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line[:9].rstrip() for line in lines] == ["└─ a.0.", "   ├─ v.x", "   └─ w"]


def test_statistics_match_numpy(capsys: Captured) -> None:
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


def test_statistics_of_large_numbers_do_not_overflow(capsys: Captured) -> None:
    most = np.finfo("float64").max
    arrays = {
        "large": np.array([1e200, -1e200]),
        "all": np.array([most, -most]),
        "constant": np.full(3, most),
        "small": np.array([1e-300, 3e-300]),
        "pieces": np.repeat([1e-3, 3e300], 300_000),  # much larger in the second piece
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


def test_prints_json(theirs: str, capsys: Captured) -> None:
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
