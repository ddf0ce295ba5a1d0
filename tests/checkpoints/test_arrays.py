"""Arrays in memory: from text, MATLAB and pandas, and the parameters of other frameworks."""

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


# Nested mappings


def test_names_in_names_are_joined() -> None:
    arrays = {"a": {"b": 1.0, "c/d": {"e": [2.0, 3.0]}}, "f": np.ones((2, 3)), "empty": {}}
    checkpoint = ArraysCheckpoint(arrays)
    assert {key: checkpoint.shape(key) for key in checkpoint} == {
        "a/b": (),
        "a/c/d/e": (2,),
        "f": (2, 3),
    }


def test_lists_of_numbers_are_arrays_and_lists_of_arrays_are_places() -> None:
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
        (holds_itself(), "holds itself, under 'inner/again/x'"),
        (list_that_holds_itself(), "holds itself, under 'endless/1'"),
        ({("a", "b"): 1.0}, r"must have names \(strings\) as keys. Received: \('a', 'b'\)"),
        ({"a": {None: 1.0}}, r"must have names \(strings\) as keys. Received: None under 'a'"),
        ({"a": {True: 1.0}}, "Received: True under 'a'"),
        ({"a": [[1.0], [1.0, 2.0]]}, "The value under 'a' is no array: .*inhomogeneous"),
        ({}, "holds no weights"),
        ({"params": {"dense": {}}}, "holds no weights"),
        ({"a": np.ma.masked_array([1.0, 2.0], [True, False])}, "'a' has masked elements"),
        ({"a": scipy.sparse.eye(3)}, r"'a' is sparse: pass its `toarray\(\)`"),
    ],
)  # fmt: skip
def test_mappings_that_are_refused(arrays: Any, message: str) -> None:
    model = two_layers()
    with refused(model, message):
        kt.restore(model, arrays)


def test_a_mask_that_hides_nothing_is_no_mask() -> None:
    model = two_layers()
    kt.restore(model, {"trunk/bias": np.ma.masked_array(BIAS, False)})
    np.testing.assert_array_equal(kernel_and_bias(model)[1], BIAS)


def test_shared_arrays_are_no_circle() -> None:
    same = {"kernel": KERNEL}
    assert set(ArraysCheckpoint({"a": same, "b": [same]})) == {"a/kernel", "b/0/kernel"}


# Other frameworks


class FrozenMapping(Mapping[str, Any]):
    """As Flax's `FrozenDict`: a mapping that is no dict, and gives its inner ones as its kind."""

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
def test_parameters_of_flax(kind: Any, dtype: str) -> None:
    """As `flax.linen.Module.init` returns them: kernels lie as in Keras."""
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
    net(torch.randn(5, 4))  # the statistics of `norm` move
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
def test_a_state_dict_in_memory_gives_the_same_outputs(keep_vars: bool) -> None:
    net, model = torch_net(), keras_net()
    report = kt.restore(model, net.state_dict(keep_vars=keep_vars), **FROM_TORCH)
    assert report.slots == ("norm.num_batches_tracked",)
    assert report.missing == report.unexpected == ()
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    expected = net(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_a_state_dict_in_memory_is_what_it_is_in_a_file() -> None:
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


def test_tied_tensors_have_both_their_names() -> None:
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
def test_tensors_that_are_no_weights(tensor: Any, message: str) -> None:
    model = two_layers()
    with refused(model, message):
        kt.restore(model, {"trunk/bias": tensor, "head/bias": np.ones(2)})


@pytest.mark.parametrize(
    "source", [torch.nn.Linear(4, 3), pandas.DataFrame({"a": [1.0]}), KERNEL], ids=type
)
def test_what_has_no_names_is_refused(source: Any) -> None:
    model = two_layers()
    with refused(model, r"pass its `state_dict\(\)`; a single array needs a name. Received: "):
        kt.restore(model, source)


@pytest.mark.parametrize(
    "wrap",
    [tf.constant, tf.Variable, keras.Variable, jnp.asarray, torch.from_numpy],
    ids=["tf.Tensor", "tf.Variable", "keras.Variable", "jax.Array", "torch.Tensor"],
)
def test_tensors_of_any_framework(wrap: Any) -> None:
    model = two_layers()
    kt.restore(model, {"trunk": {"kernel": wrap(KERNEL), "bias": wrap(BIAS)}})
    assert_same(kernel_and_bias(model), [KERNEL, BIAS])


@pytest.mark.parametrize("of", [lambda v: v, lambda v: v.value], ids=["variable", "value"])
def test_a_models_own_variables_can_change_places(of: Any) -> None:
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(3, name="b")]
    )
    a, b = (model.get_layer(name).kernel for name in "ab")
    before = value(a), value(b)
    kt.restore(model, {"a/kernel": of(b), "b/kernel": of(a)})
    assert_same([value(b), value(a)], list(before))


def test_an_open_hdf5_file_is_a_mapping() -> None:
    with h5py.File("any.h5", "w") as file:
        file["net/trunk/kernel"], file["net/trunk/bias"] = KERNEL, BIAS
    model = two_layers()
    with h5py.File("any.h5") as file:
        kt.restore(model, file, rename={"net/(.*)": r"\1"})
    assert_same(kernel_and_bias(model), [KERNEL, BIAS])


# Text, MATLAB, pandas


def test_tables_of_text() -> None:
    np.savetxt("kernel.csv", KERNEL, delimiter=",")
    np.savetxt("bias.txt", BIAS)
    arrays = {
        "trunk/kernel": np.loadtxt("kernel.csv", delimiter=","),
        "trunk/bias": np.loadtxt("bias.txt"),
    }
    model = two_layers()
    kt.restore(model, arrays)
    assert_same(kernel_and_bias(model), [KERNEL, BIAS])
    with refused(model, "no checkpoint of a supported format.*: text.*`numpy.loadtxt`"):
        kt.restore(model, "kernel.csv")


def test_missing_numbers_of_a_table_are_refused() -> None:
    Path("bias.txt").write_text("0.5,,2.5")
    model = two_layers()
    with refused(model, "trunk/bias: .* has 1 values that are NaN"):
        kt.restore(model, {"trunk/bias": np.genfromtxt("bias.txt", delimiter=",")})


def test_matlab_files_without_their_header() -> None:
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


def test_matlab_structures_as_nested_mappings() -> None:
    scipy.io.savemat("w.mat", {"trunk": {"kernel": KERNEL, "bias": BIAS}})
    model = two_layers()
    kt.restore(model, scipy.io.loadmat("w.mat", simplify_cells=True))
    assert_same(kernel_and_bias(model), [KERNEL, BIAS])
    structures = {"head/bias": np.ones(2), **scipy.io.loadmat("w.mat")}
    with refused(model, r"! trunk/bias: float32 in the model, \[\('kernel', 'O'\)"):
        kt.restore(model, structures, rename={"trunk": "trunk/bias"})


def test_only_a_header_of_matlab_is_left_out() -> None:
    assert set(ArraysCheckpoint({"__header__": 1.0, "__version__": 2.0})) == {
        "__header__",
        "__version__",
    }


@pytest.mark.parametrize(
    ("head", "message"),
    [(b"MATLAB 7.3 MAT-file", "`h5py.File` is a mapping"), (b"", "`scipy.io.loadmat` makes")],
    ids=["7.3", "5"],
)
def test_a_matlab_file_as_source_says_what_to_do(head: bytes, message: str) -> None:
    scipy.io.savemat("w.mat", {"w": KERNEL})
    Path("w.mat").write_bytes(head + Path("w.mat").read_bytes()[len(head) :])
    model = two_layers()
    with refused(model, message, kt.RestoreError):
        kt.restore(model, "w.mat")


def test_tables_and_series_of_pandas() -> None:
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


# Memory


def test_arrays_are_looked_at_where_they_are_and_copied_once() -> None:
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


def test_arrays_in_any_order_in_memory() -> None:
    model = two_layers()
    kt.restore(model, {"trunk/kernel": np.asfortranarray(KERNEL), "trunk/bias": BIAS[::-1]})
    assert_same(kernel_and_bias(model), [KERNEL, BIAS[::-1]])
    kt.restore(model, {"trunk/kernel": KERNEL.astype(">f4"), "trunk/bias": torch.tensor(BIAS)})
    assert_same(kernel_and_bias(model), [KERNEL, BIAS])


def test_values_are_read_when_they_are_needed() -> None:
    class Lazy:
        shape, dtype, read = (3,), np.dtype("float32"), 0

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            type(self).read += 1
            return BIAS

    model = two_layers()
    kt.plan_restore(model, {"trunk/bias": Lazy(), "head/bias": Lazy()}, exclude=["head"])
    assert Lazy.read == 0
    kt.restore(model, {"trunk/bias": Lazy(), "head/bias": Lazy()}, exclude=["head"])
    assert Lazy.read == 2  # looked at, and assigned
    np.testing.assert_array_equal(kernel_and_bias(model)[1], BIAS)


@pytest.mark.parametrize("kind", ["variable", "value", "detached", "numpy", "slice", "state"])
def test_a_model_s_own_values_may_be_swapped(kind: str) -> None:
    """On PyTorch an assignment writes into the memory that the arrays of the mapping lie in."""
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
