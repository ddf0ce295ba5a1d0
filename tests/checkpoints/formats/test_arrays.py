"""Arrays in memory: of text files, MATLAB, pandas and other frameworks."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import jax.numpy as jnp
import keras
import ml_dtypes
import numpy as np
import pytest
import scipy.io
import scipy.sparse
import tensorflow as tf

import keras_trainops as kt
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from tests.helpers import assert_same, refused, two_layers, value, weights

torch = pytest.importorskip("torch", reason="torch is not installed (the extra `torch`)")


pandas = pytest.importorskip("pandas", reason="pandas is not installed (mlxtend needs it)")


KERNEL = np.arange(12, dtype="float32").reshape(4, 3)


BIAS = np.array([0.5, 1.5, 2.5], "float32")


def kernel_and_bias(model: keras.Model) -> list[np.ndarray]:
    return weights(model)[:2]


def test_joins_names_of_nested_mappings() -> None:
    arrays = {"a": {"b": 1.0, "c/d": {"e": [2.0, 3.0]}}, "f": np.ones((2, 3)), "empty": {}}
    checkpoint = ArraysCheckpoint(arrays)
    assert {key: checkpoint.shape(key) for key in checkpoint} == {
        "a/b": (),
        "a/c/d/e": (2,),
        "f": (2, 3),
    }


def test_lists_of_arrays_are_numbered() -> None:
    arrays = {
        "numbers": [[1, 2, 3], [4, 5, 6]],
        "scalars": (np.float32(1), np.float32(2)),
        "layers": [{"w": np.ones((2, 3))}, {"w": np.ones((3, 4))}],
        "pair": (np.ones((2, 3)), [1.0, 2.0]),
        "by_position": {0: 1.0, 1: 2.0},
    }
    checkpoint = ArraysCheckpoint(arrays)
    assert {key: checkpoint.shape(key) for key in checkpoint} == {
        "numbers": (2, 3),
        "scalars": (2,),
        "layers/0/w": (2, 3),
        "layers/1/w": (3, 4),
        "pair/0": (2, 3),
        "pair/1": (2,),
        "by_position/0": (),
        "by_position/1": (),
    }


def holds_itself() -> dict[str, Any]:
    inner: dict[str, Any] = {}
    inner["again"] = {"x": inner}
    return {"inner": inner}


def list_that_holds_itself() -> dict[str, Any]:
    endless: list[Any] = [np.ones(2)]
    endless.append(endless)
    return {"endless": endless}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a/b": 1.0, "a": {"b": 2.0}}, "Two arrays of the mapping have the name 'a/b'"),
        ({0: 1.0, "0": 2.0}, "Two arrays of the mapping have the name '0'"),
        (holds_itself(), "contains itself, under 'inner/again/x'"),
        (list_that_holds_itself(), "contains itself, under 'endless/1'"),
        ({("a", "b"): 1.0}, r"must have names \(strings\) as keys. Received: \('a', 'b'\)"),
        ({"a": {None: 1.0}}, r"must have names \(strings\) as keys. Received: None under 'a'"),
        ({"a": {True: 1.0}}, "Received: True under 'a'"),
        ({"a": [[1.0], [1.0, 2.0]]}, "The value under 'a' is not an array: .*inhomogeneous"),
        ({}, "contains no weights"),
        ({"params": {"dense": {}}}, "contains no weights"),
        ({"a": np.ma.masked_array([1.0, 2.0], [True, False])}, "'a' has masked elements"),
        ({"a": scipy.sparse.eye(3)}, r"'a' is sparse: pass its `toarray\(\)`"),
    ],
)  # fmt: skip
def test_refuses_invalid_mappings(arrays: Any, message: str) -> None:
    model = two_layers()
    with refused(model, message):
        kt.restore(model, arrays)


def test_accepts_an_empty_mask() -> None:
    model = two_layers()
    kt.restore(model, {"trunk/bias": np.ma.masked_array(BIAS, False)})
    np.testing.assert_array_equal(kernel_and_bias(model)[1], BIAS)


def test_accepts_shared_arrays() -> None:
    same = {"kernel": KERNEL}
    assert set(ArraysCheckpoint({"a": same, "b": [same]})) == {"a/kernel", "b/0/kernel"}


class FrozenMapping(Mapping[str, Any]):
    """A mapping that is not a dict, and wraps nested mappings, like Flax's `FrozenDict`."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = dict(content)

    def __getitem__(self, key: str) -> Any:
        found = self._content[key]
        return FrozenMapping(found) if isinstance(found, Mapping) else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


@pytest.mark.parametrize("kind", [dict, FrozenMapping])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_restores_parameters_of_flax(kind: Any, dtype: str) -> None:
    """The structure that `flax.linen.Module.init` returns; kernels have Keras's layout."""
    kernel, bias = jnp.asarray(KERNEL, dtype), jnp.asarray(BIAS, dtype)
    variables = kind({"params": {"Dense_0": {"kernel": kernel, "bias": bias}}, "batch_stats": {}})
    model = two_layers()
    report = kt.restore(model, variables, rename={r"params/Dense_0/(\w+)": r"trunk/\1"})
    assert report.restored["trunk/kernel"] == "params/Dense_0/kernel"
    assert_same(kernel_and_bias(model), [KERNEL, BIAS])  # small numbers: bfloat16 is exact


def torch_net() -> Any:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        collections.OrderedDict(
            trunk=torch.nn.Linear(4, 3), norm=torch.nn.BatchNorm1d(3), head=torch.nn.Linear(3, 2)
        )
    )
    net(torch.randn(5, 4))  # updates the statistics of `norm`
    return net.eval()


def keras_net() -> keras.Model:
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3, name="trunk")(inputs)
    x = keras.layers.BatchNormalization(epsilon=1e-5, name="norm")(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x))


FROM_TORCH: dict[str, Any] = {
    "rename": {
        r"norm\.weight": "norm/gamma",
        r"norm\.bias": "norm/beta",
        r"norm\.running_mean": "norm/moving_mean",
        r"norm\.running_var": "norm/moving_variance",
        r"(\w+)\.weight": r"\1/kernel",
        r"(\w+)\.bias": r"\1/bias",
    },
    "adapt": {"kernel": kt.adapt.Transpose()},
}


@pytest.mark.parametrize("keep_vars", [False, True], ids=["tensors", "parameters"])
def test_state_dict_in_memory_gives_the_same_outputs(keep_vars: bool) -> None:
    net, model = torch_net(), keras_net()
    report = kt.restore(model, net.state_dict(keep_vars=keep_vars), **FROM_TORCH)
    assert report.slots == ("norm.num_batches_tracked",)
    assert report.missing == report.unexpected == ()
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    expected = net(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_state_dict_in_memory_equals_its_file() -> None:
    content = {"model": torch_net().to(torch.bfloat16).state_dict(), "heads": [torch.ones(2, 3)]}
    torch.save(content, "w.pt")
    checkpoint = ArraysCheckpoint(content)
    with kt.open_checkpoint("w.pt") as file:
        assert list(checkpoint) == list(file)
        assert checkpoint.training_state == file.training_state
        for key in file:
            assert checkpoint.shape(key) == file.shape(key)
            assert checkpoint.dtype(key) == checkpoint[key].dtype == file.dtype(key)
            np.testing.assert_array_equal(checkpoint[key], file[key])
    assert checkpoint.dtype("model/trunk.weight") == ml_dtypes.bfloat16


def test_tied_tensors_keep_both_names() -> None:
    net = torch_net()
    net.tied = net.trunk
    model = two_layers()
    rename: Any = {
        r"trunk\.weight": "trunk/kernel",
        r"trunk\.bias": "trunk/bias",
        r"(norm|head)\..*": None,
    }
    adapt = {"trunk/kernel": kt.adapt.Transpose()}
    with refused(model, r"\+ unused: tied\.{bias,weight}"):
        kt.restore(model, net.state_dict(), rename=rename, adapt=adapt)
    kt.restore(model, net.state_dict(), rename={**rename, r"tied\..*": None}, adapt=adapt)
    np.testing.assert_array_equal(kernel_and_bias(model)[0], net.trunk.weight.detach().numpy().T)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.empty(3, device="meta"), "Cannot read 'trunk/bias'.*meta tensor"),
        (torch.ones(3).to_sparse(), "Cannot read 'trunk/bias'.*to_dense"),
        (torch.ones(3, dtype=torch.complex64), "float32 in the model, complex64 under key"),
        (torch.full((3,), torch.nan), "has 3 values that are NaN"),
    ],
    ids=["meta", "sparse", "complex", "nan"],
)
def test_refuses_tensors_without_usable_values(tensor: Any, message: str) -> None:
    model = two_layers()
    with refused(model, message):
        kt.restore(model, {"trunk/bias": tensor, "head/bias": np.ones(2)})


@pytest.mark.parametrize(
    "source", [torch.nn.Linear(4, 3), pandas.DataFrame({"a": [1.0]}), KERNEL], ids=type
)
def test_refuses_sources_without_names(source: Any) -> None:
    model = two_layers()
    with refused(model, r"pass its `state_dict\(\)`; a single array needs a name. Received: "):
        kt.restore(model, source)


@pytest.mark.parametrize(
    "wrap",
    [tf.constant, tf.Variable, keras.Variable, jnp.asarray, torch.from_numpy],
    ids=["tf.Tensor", "tf.Variable", "keras.Variable", "jax.Array", "torch.Tensor"],
)
def test_accepts_tensors_of_any_framework(wrap: Any) -> None:
    model = two_layers()
    kt.restore(model, {"trunk": {"kernel": wrap(KERNEL), "bias": wrap(BIAS)}})
    assert_same(kernel_and_bias(model), [KERNEL, BIAS])


@pytest.mark.parametrize("of", [lambda v: v, lambda v: v.value], ids=["variable", "value"])
def test_swaps_variables_of_the_model(of: Any) -> None:
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(3, name="b")]
    )
    a, b = (model.get_layer(name).kernel for name in "ab")
    before = value(a), value(b)
    kt.restore(model, {"a/kernel": of(b), "b/kernel": of(a)})
    assert_same([value(b), value(a)], list(before))


def test_accepts_an_open_hdf5_file() -> None:
    with h5py.File("any.h5", "w") as file:
        file["net/trunk/kernel"], file["net/trunk/bias"] = KERNEL, BIAS
    model = two_layers()
    with h5py.File("any.h5") as file:
        kt.restore(model, file, rename={"net/(.*)": r"\1"})
    assert_same(kernel_and_bias(model), [KERNEL, BIAS])


def test_restores_tables_of_text() -> None:
    np.savetxt("kernel.csv", KERNEL, delimiter=",")
    np.savetxt("bias.txt", BIAS)
    arrays = {
        "trunk/kernel": np.loadtxt("kernel.csv", delimiter=","),
        "trunk/bias": np.loadtxt("bias.txt"),
    }
    model = two_layers()
    kt.restore(model, arrays)
    assert_same(kernel_and_bias(model), [KERNEL, BIAS])
    with refused(model, "not a checkpoint of a supported format.*: text.*`numpy.loadtxt`"):
        kt.restore(model, "kernel.csv")


def test_refuses_missing_numbers_of_a_table() -> None:
    Path("bias.txt").write_text("0.5,,2.5")
    model = two_layers()
    with refused(model, "trunk/bias: .* has 1 values that are NaN"):
        kt.restore(model, {"trunk/bias": np.genfromtxt("bias.txt", delimiter=",")})


def test_ignores_the_header_of_matlab_files() -> None:
    scipy.io.savemat("w.mat", {"w": KERNEL, "b": BIAS})
    model = two_layers()
    rename = {"w": "trunk/kernel", "b": "trunk/bias"}
    with refused(
        model,
        r"! trunk/bias: \(3,\) in the model, \(1, 3\) under key 'b'; "
        r'adapt={"trunk/bias": kt.adapt.Reshape\(\)} would fit',
    ):
        kt.restore(model, scipy.io.loadmat("w.mat"), rename=rename)
    adapt = {"trunk/bias": kt.adapt.Reshape()}
    report = kt.restore(model, scipy.io.loadmat("w.mat"), rename=rename, adapt=adapt)
    assert report.unexpected == report.slots == report.ignored == ()
    assert_same(kernel_and_bias(model), [KERNEL, BIAS])


def test_matlab_structures_are_nested_mappings() -> None:
    scipy.io.savemat("w.mat", {"trunk": {"kernel": KERNEL, "bias": BIAS}})
    model = two_layers()
    kt.restore(model, scipy.io.loadmat("w.mat", simplify_cells=True))
    assert_same(kernel_and_bias(model), [KERNEL, BIAS])
    structures = {"head/bias": np.ones(2), **scipy.io.loadmat("w.mat")}
    with refused(model, r"! trunk/bias: float32 in the model, \[\('kernel', 'O'\)"):
        kt.restore(model, structures, rename={"trunk": "trunk/bias"})


def test_ignores_only_a_header_of_matlab() -> None:
    assert set(ArraysCheckpoint({"__header__": 1.0, "__version__": 2.0})) == {
        "__header__",
        "__version__",
    }


@pytest.mark.parametrize(
    ("head", "message"),
    [(b"MATLAB 7.3 MAT-file", "`h5py.File` is a mapping"), (b"", "`scipy.io.loadmat` makes")],
    ids=["7.3", "5"],
)
def test_explains_how_to_load_a_matlab_file(head: bytes, message: str) -> None:
    scipy.io.savemat("w.mat", {"w": KERNEL})
    Path("w.mat").write_bytes(head + Path("w.mat").read_bytes()[len(head) :])
    model = two_layers()
    with refused(model, message, kt.RestoreError):
        kt.restore(model, "w.mat")


def test_accepts_tables_and_series_of_pandas() -> None:
    frame = pandas.DataFrame(KERNEL, columns=list("xyz"), index=list("abcd"))
    series = pandas.Series([0.5, 1.5, 2.5], dtype="Float64")
    model = two_layers()
    kt.restore(model, {"trunk/kernel": frame, "trunk/bias": series})
    assert_same(kernel_and_bias(model), [KERNEL, BIAS])
    table = pandas.DataFrame({"name": ["trunk/bias"], "values": [BIAS]})
    kt.restore(model, dict(zip(table["name"], 2 * table["values"], strict=True)))
    np.testing.assert_array_equal(kernel_and_bias(model)[1], 2 * BIAS)
    with refused(model, "trunk/bias: .* has 1 values that are NaN"):
        missing = pandas.Series([0.5, None, 2.5], dtype="Float64")
        kt.restore(model, {"head/bias": np.ones(2), "trunk/bias": missing})
    with refused(model, "! trunk/bias: float32 in the model, object under key"):
        kt.restore(model, {"trunk/bias": pandas.Series(["a", "b", "c"], dtype=object)})


def test_copies_arrays_once() -> None:
    array = np.ones((1000, 1001), "float32")
    array.flags.writeable = False
    checkpoint = ArraysCheckpoint({"x": array, "t": torch.from_numpy(array.copy())})
    for key, pointer in (("x", array.ctypes.data), ("t", checkpoint._arrays["t"].data_ptr())):
        first = next(checkpoint.pieces(key))
        assert first.ctypes.data == pointer
        made = np.zeros((1000, 1001), "float32")
        assert checkpoint.again(key, lambda shape, dtype, made=made: made) is made
        np.testing.assert_array_equal(made, array)
        assert not np.shares_memory(checkpoint[key], first)


def test_accepts_any_memory_layout() -> None:
    model = two_layers()
    kt.restore(model, {"trunk/kernel": np.asfortranarray(KERNEL), "trunk/bias": BIAS[::-1]})
    assert_same(kernel_and_bias(model), [KERNEL, BIAS[::-1]])
    kt.restore(model, {"trunk/kernel": KERNEL.astype(">f4"), "trunk/bias": torch.tensor(BIAS)})
    assert_same(kernel_and_bias(model), [KERNEL, BIAS])


@pytest.mark.parametrize(("memory", "reads"), [("once", 1), ("bounded", 2)])
def test_reads_values_on_demand(memory: Any, reads: int) -> None:
    class Lazy:
        shape, dtype, read = (3,), np.dtype("float32"), 0

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            type(self).read += 1
            return BIAS

    model = two_layers()
    kt.plan_restore(model, {"trunk/bias": Lazy(), "head/bias": Lazy()}, exclude=["head"])
    assert Lazy.read == 0
    arrays = {"trunk/bias": Lazy(), "head/bias": Lazy()}
    kt.restore(model, arrays, exclude=["head"], memory=memory)
    assert Lazy.read == reads
    np.testing.assert_array_equal(kernel_and_bias(model)[1], BIAS)


@pytest.mark.parametrize("kind", ["variable", "value", "detached", "numpy", "slice", "state"])
def test_swaps_values_of_the_model(kind: str) -> None:
    """On PyTorch, an assignment overwrites the memory of the arrays in the mapping."""
    if kind not in ("variable", "value") and keras.backend.backend() != "torch":
        kind = "value"
    inputs = keras.Input((3,))
    a, b = (keras.layers.Dense(3, name=name, use_bias=False) for name in "ab")
    model = keras.Model(inputs, b(a(inputs)))
    before = [value(v) for v in model.weights]

    def own(layer: Any) -> Any:
        kernel = layer.kernel
        if kind in ("variable", "value"):
            return kernel if kind == "variable" else kernel.value
        if kind == "state":
            return kernel.value.detach().t().t()
        detached = kernel.value.detach()
        return {"detached": detached, "numpy": detached.numpy(), "slice": detached[:]}[kind]

    kt.restore(model, {"a/kernel": own(b), "b/kernel": own(a)})
    np.testing.assert_array_equal(value(a.kernel), before[1])
    np.testing.assert_array_equal(value(b.kernel), before[0])
