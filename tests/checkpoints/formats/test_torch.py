"""PyTorch state dicts in both containers that `torch.save` has used."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import keras_trainops as kt
from tests.checkpoints.hostile_files import Bomb
from tests.helpers import refused, two_layers, value

torch = pytest.importorskip("torch", reason="torch is not installed (the extra `torch`)")

pytestmark = pytest.mark.once


def state_dict() -> dict[str, Any]:
    torch.manual_seed(0)
    net = torch.nn.Sequential()
    net.add_module("trunk", torch.nn.Linear(4, 3))
    net.add_module("norm", torch.nn.BatchNorm1d(3))
    net.add_module("head", torch.nn.Linear(3, 2))
    return net.state_dict()


@pytest.fixture(params=[True, False], ids=["zip", "before 1.6"])
def save(request: pytest.FixtureRequest) -> Any:
    def save(content: object, path: str = "w.anything") -> str:
        torch.save(content, path, _use_new_zipfile_serialization=request.param)
        return path

    return save


def test_state_dict_is_a_mapping_of_tensors(save: Any) -> None:
    expected = state_dict()
    with kt.open_checkpoint(save(expected)) as checkpoint:
        assert list(checkpoint) == list(expected)
        assert checkpoint.training_state == {"norm.num_batches_tracked"}
        arrays = dict(checkpoint)
        for key, tensor in expected.items():
            assert checkpoint.shape(key) == tuple(tensor.shape)
            assert checkpoint.dtype(key) == tensor.numpy().dtype
    for key, tensor in expected.items():  # still valid after closing
        np.testing.assert_array_equal(arrays[key], tensor.numpy())


def test_joins_names_of_nested_dicts(save: Any) -> None:
    net = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    with kt.open_checkpoint(save(content)) as checkpoint:
        weights = sorted(set(checkpoint) - checkpoint.training_state)
        assert weights == ["model/bias", "model/weight"]
        assert "optimizer/state/0/exp_avg" in checkpoint.training_state


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "bool"])
def test_dtypes_keep_their_bits(dtype: str) -> None:
    tensor = (torch.arange(6).reshape(2, 3) / 7).to(getattr(torch, dtype))
    torch.save({"x": tensor, "t": tensor.T}, "w.pt")
    with kt.open_checkpoint("w.pt") as checkpoint:
        array, transposed = checkpoint["x"], checkpoint["t"]
        wanted = getattr(ml_dtypes, dtype) if hasattr(ml_dtypes, dtype) else dtype
        assert array.dtype == checkpoint.dtype("x") == np.dtype(wanted)
    np.testing.assert_array_equal(array.astype("float32"), tensor.float().numpy())
    np.testing.assert_array_equal(array.T.astype("float32"), transposed.astype("float32"))


def test_restores_a_model_with_rename_rules(save: Any) -> None:
    expected, model = state_dict(), two_layers()
    arrays = {k: v for k, v in expected.items() if not k.startswith("norm") and "weight" not in k}
    arrays |= {k: v.T for k, v in expected.items() if k in ("trunk.weight", "head.weight")}
    rules = {r"(\w+)\.weight": r"\1/kernel", r"(\w+)\.bias": r"\1/bias"}
    kt.restore(model, save(arrays), rename=rules)
    np.testing.assert_array_equal(
        value(model.get_layer("head").kernel), expected["head.weight"].numpy().T
    )


def test_single_tensor_is_named_after_the_file(save: Any) -> None:
    with kt.open_checkpoint(save(torch.ones(2, 3), "kernel.pt")) as checkpoint:
        assert {key: checkpoint.shape(key) for key in checkpoint} == {"kernel": (2, 3)}


def test_never_runs_code(save: Any) -> None:
    model = two_layers()
    for content in ({"x": torch.ones(2), "bomb": Bomb()}, torch.nn.Linear(2, 2)):
        with refused(model, "PyTorch's safe loader refuses 'w.anything'", kt.RestoreError):
            kt.restore(model, save(content))
    assert not os.path.exists("exploded")


def test_refuses_a_bare_pickle() -> None:
    Path("w.pt").write_bytes(pickle.dumps({"x": Bomb()}))
    with pytest.raises(kt.RestoreError, match="is not a checkpoint of a supported format"):
        kt.open_checkpoint("w.pt")


def test_refuses_recursive_and_empty_containers(save: Any) -> None:
    cyclic: dict[str, Any] = {"x": torch.ones(2)}
    cyclic["inner"] = {"again": cyclic}
    with pytest.raises(kt.RestoreError, match=r"contains itself, under 'inner/again'"):
        kt.open_checkpoint(save(cyclic))
    with pytest.raises(kt.RestoreError, match="without any tensors"):
        kt.open_checkpoint(save({"epoch": 3}))


def test_refuses_a_view_that_claims_terabytes(save: Any) -> None:
    huge = torch.ones(1).expand(1 << 40)
    with (
        kt.open_checkpoint(save({"x": huge})) as checkpoint,
        pytest.raises(kt.RestoreError, match=r"'x' claims 4,398,046,511,104 bytes, but only 4"),
    ):
        checkpoint["x"]


def test_refuses_a_compressed_archive() -> None:
    torch.save(state_dict(), "w.pt")
    with (
        zipfile.ZipFile("w.pt") as stored,
        zipfile.ZipFile("bomb.pt", "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    with pytest.raises(kt.RestoreError, match=r"is compressed, which `torch.save` never does"):
        kt.open_checkpoint("bomb.pt")


def test_says_what_to_install_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(state_dict(), "w.pt")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(kt.RestoreError, match=r"pip install 'keras-trainops\[torch\]'"):
        kt.open_checkpoint("w.pt")


def swapped(path: str) -> str:
    """Rewrite a file as a big-endian machine would have written it."""
    with zipfile.ZipFile(path) as little, zipfile.ZipFile("big.pt", "w") as big:
        for name in little.namelist():
            data = little.read(name)
            if name.endswith("byteorder"):
                data = b"big"
            elif "/data/" in name:
                size = {"0": 4, "1": 8, "2": 2, "3": 4}[name.rpartition("/")[2]]
                data = np.frombuffer(data, f"V{size}")[...].tobytes()
                data = b"".join(data[i : i + size][::-1] for i in range(0, len(data), size))
            big.writestr(name, data)
    return "big.pt"


def test_reads_swapped_bytes() -> None:
    torch.manual_seed(0)
    expected = {
        "float": torch.randn(3, 2),
        "int": torch.arange(5),
        "half": torch.randn(4).bfloat16(),
        "complex": torch.randn(3, dtype=torch.complex64),
    }
    torch.save(expected, "w.pt")
    with kt.open_checkpoint(swapped("w.pt")) as checkpoint:
        for key, tensor in expected.items():
            array = checkpoint[key].astype("complex64")
            np.testing.assert_array_equal(array, tensor.to(torch.complex64).numpy())


def test_reads_views_of_one_storage(save: Any) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    views = {
        "whole": whole,
        "rows": whole[1:3],
        "columns": whole[:, 2:4],
        "turned": whole.T,
        "repeated": whole[0, 0].expand(3, 2),
        "empty": whole[4:],
        "scalar": whole[2, 3],
        "parameter": torch.nn.Parameter(whole[0]),
    }
    with kt.open_checkpoint(save(views)) as checkpoint:
        for key, tensor in views.items():
            assert checkpoint.shape(key) == tuple(tensor.shape)
            np.testing.assert_array_equal(checkpoint[key], tensor.detach().numpy())
            pieces = np.concatenate([*checkpoint.pieces(key), np.empty(0, "float32")])
            np.testing.assert_array_equal(pieces, tensor.detach().numpy().reshape(-1))


def test_reads_conjugated_and_negated_tensors() -> None:
    value = torch.tensor([1 + 2j, 3 - 4j])
    torch.save({"c": value.conj()}, "w.pt")
    torch.save({"n": value.conj().imag}, "n.pt")
    with kt.open_checkpoint("n.pt") as checkpoint:
        np.testing.assert_array_equal(checkpoint["n"], [-2, 4])
    with kt.open_checkpoint("w.pt") as checkpoint:
        np.testing.assert_array_equal(checkpoint["c"], [1 - 2j, 3 + 4j])


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"a/w": torch.ones(2), "a": {"w": torch.zeros(2)}}, "a/w"),
        ({1: torch.ones(2), "1": torch.zeros(2)}, "1"),
    ],
)
def test_refuses_colliding_names(save: Any, content: dict[Any, Any], name: str) -> None:
    with pytest.raises(kt.RestoreError, match=f"Two arrays of 'w.anything' have the name '{name}'"):
        kt.open_checkpoint(save(content))
    with pytest.raises(ValueError, match=f"Two arrays of the mapping have the name '{name}'"):
        kt.restore(two_layers(), content)


def test_refuses_exploding_lists(save: Any) -> None:
    full: Any = [torch.ones(1)]
    empty: Any = ["text"]
    for _ in range(40):
        full, empty = [full, full], [empty, empty]
    with pytest.raises(kt.RestoreError, match="contains the same containers repeatedly: 82"):
        kt.open_checkpoint(save({"full": full}))
    with kt.open_checkpoint(save({"empty": empty, "x": torch.ones(1)})) as checkpoint:
        assert list(checkpoint) == ["x"]


def test_refuses_tensors_without_plain_values() -> None:
    content = {"sparse": torch.eye(3).to_sparse(), "meta": torch.empty(2, device="meta")}
    torch.save({**content, "x": torch.ones(2)}, "w.pt")
    with kt.open_checkpoint("w.pt") as checkpoint:
        for key in content:
            with pytest.raises(kt.RestoreError, match=f"'{key}' is sparse, quantized or without"):
                checkpoint[key]
        np.testing.assert_array_equal(checkpoint["x"], [1, 1])


def test_safe_unpickler_of_pytorch_is_unchanged() -> None:
    """A private class of PyTorch, which `torch.load(weights_only=True)` uses itself."""
    from torch._weights_only_unpickler import Unpickler

    assert {"load", "persistent_load"} <= {*vars(Unpickler)}
    assert torch.serialization._weights_only_unpickler.Unpickler is Unpickler
