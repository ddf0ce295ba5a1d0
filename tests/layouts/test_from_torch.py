"""`from_torch`: Keras layers give the same outputs as the modules they are restored from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers
from torch import nn

import keras_trainops as kt
from keras_trainops.layouts.fused import parts_of
from keras_trainops.layouts.layers import layouts_of
from keras_trainops.layouts.layout import Layout
from tests.helpers import numpy, refused, two_layers, value
from tests.layouts.torch_models import (
    PARTS,
    Separate,
    assert_close,
    assert_same_outputs,
    attention_model,
    attention_rules,
    fused_rules,
    outputs,
    random_state,
    randomised,
    recurrent_rules,
    state_of,
)

WEIGHT_AND_BIAS = {r"weight": "layer/kernel", r"bias": "layer/bias"}


class ByChannel(nn.Module):
    """A depthwise convolution, then a pointwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv2d(3, 6, (2, 4), groups=3, bias=False)
        self.point = nn.Conv2d(6, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.point(self.depth(x))


# Module, Keras layer, rename rules, and shape of a batch, channels last.
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, Any], Any]] = {
    "Linear": (lambda: nn.Linear(4, 3), lambda: layers.Dense(3), WEIGHT_AND_BIAS, (2, 4)),
    "Conv1d": (
        lambda: nn.Conv1d(3, 5, 4, stride=2),
        lambda: layers.Conv1D(5, 4, strides=2),
        WEIGHT_AND_BIAS,
        (2, 11, 3),
    ),
    "Conv2d": (
        lambda: nn.Conv2d(3, 5, (2, 4)),
        lambda: layers.Conv2D(5, (2, 4)),
        WEIGHT_AND_BIAS,
        (2, 7, 9, 3),
    ),
    "Conv2d with groups": (
        lambda: nn.Conv2d(4, 6, (2, 3), groups=2),
        lambda: layers.Conv2D(6, (2, 3), groups=2),
        WEIGHT_AND_BIAS,
        (2, 7, 9, 4),
    ),
    "Conv3d": (
        lambda: nn.Conv3d(2, 5, (2, 3, 4)),
        lambda: layers.Conv3D(5, (2, 3, 4)),
        WEIGHT_AND_BIAS,
        (1, 5, 6, 7, 2),
    ),
    "ConvTranspose1d": (
        lambda: nn.ConvTranspose1d(3, 5, 4, stride=2),
        lambda: layers.Conv1DTranspose(5, 4, strides=2),
        WEIGHT_AND_BIAS,
        (2, 6, 3),
    ),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(3, 5, (2, 4), stride=2),
        lambda: layers.Conv2DTranspose(5, (2, 4), strides=2),
        WEIGHT_AND_BIAS,
        (2, 6, 4, 3),
    ),
    "depthwise": (
        lambda: nn.Conv2d(3, 6, (2, 4), groups=3),
        lambda: layers.DepthwiseConv2D((2, 4), depth_multiplier=2),
        WEIGHT_AND_BIAS,
        (2, 7, 9, 3),
    ),
    "separable": (
        ByChannel,
        lambda: layers.SeparableConv2D(5, (2, 4), depth_multiplier=2),
        {
            r"depth\.weight": "layer/depthwise_kernel",
            r"point\.weight": "layer/pointwise_kernel",
            r"point\.bias": "layer/bias",
        },
        (2, 7, 9, 3),
    ),
    "LSTM": (
        lambda: nn.LSTM(4, 3, batch_first=True),
        lambda: layers.LSTM(3, return_sequences=True),
        recurrent_rules("lstm"),
        (2, 5, 4),
    ),
    "GRU": (
        lambda: nn.GRU(4, 3, batch_first=True),
        lambda: layers.GRU(3, return_sequences=True),
        recurrent_rules("gru"),
        (2, 5, 4),
    ),
    "RNN": (
        lambda: nn.RNN(3, 3, batch_first=True),
        lambda: layers.SimpleRNN(3, return_sequences=True),
        recurrent_rules("simple_rnn"),
        (2, 5, 3),
    ),
    "bidirectional LSTM": (
        lambda: nn.LSTM(4, 3, batch_first=True, bidirectional=True),
        lambda: layers.Bidirectional(layers.LSTM(3, return_sequences=True, name="lstm")),
        recurrent_rules("lstm", "layer/forward_lstm/")
        | recurrent_rules("lstm", "layer/backward_lstm/", "_l0_reverse"),
        (2, 5, 4),
    ),
    "Conv3d with groups": (
        lambda: nn.Conv3d(4, 6, (1, 2, 3), groups=2),
        lambda: layers.Conv3D(6, (1, 2, 3), groups=2),
        WEIGHT_AND_BIAS,
        (2, 3, 4, 5, 4),
    ),
    "ConvTranspose3d": (
        lambda: nn.ConvTranspose3d(4, 6, (1, 2, 3)),
        lambda: layers.Conv3DTranspose(6, (1, 2, 3)),
        WEIGHT_AND_BIAS,
        (2, 3, 4, 5, 4),
    ),
    "depthwise Conv1d": (
        lambda: nn.Conv1d(4, 8, 3, groups=4),
        lambda: layers.DepthwiseConv1D(3, depth_multiplier=2),
        WEIGHT_AND_BIAS,
        (2, 7, 4),
    ),
    "PReLU of Conv features": (
        lambda: nn.PReLU(6),
        lambda: layers.PReLU(shared_axes=[1, 2]),
        {"weight": "layer/alpha"},
        (2, 4, 5, 6),
    ),
    "LayerNorm of Conv features": (
        lambda: nn.LayerNorm([4, 5, 6], eps=1e-3),
        lambda: layers.LayerNormalization(axis=[1, 2, 3], epsilon=1e-3),
        {"weight": "layer/gamma", "bias": "layer/beta"},
        (2, 5, 6, 4),
    ),
    "GroupNorm of Conv features": (
        lambda: nn.GroupNorm(2, 6, eps=1e-3),
        lambda: layers.GroupNormalization(2, epsilon=1e-3),
        {"weight": "layer/gamma", "bias": "layer/beta"},
        (2, 4, 5, 6),
    ),
    "bidirectional GRU": (
        lambda: nn.GRU(4, 3, batch_first=True, bidirectional=True),
        lambda: layers.Bidirectional(layers.GRU(3, return_sequences=True, name="gru")),
        recurrent_rules("gru", "layer/forward_gru/")
        | recurrent_rules("gru", "layer/backward_gru/", "_l0_reverse"),
        (2, 5, 4),
    ),
    "BatchNorm2d": (
        lambda: nn.BatchNorm2d(3, eps=1e-3),
        lambda: layers.BatchNormalization(epsilon=1e-3),
        {
            "weight": "layer/gamma",
            "bias": "layer/beta",
            "running_(mean)": r"layer/moving_\1",
            "running_var": "layer/moving_variance",
        },
        (2, 7, 9, 3),
    ),
}


def assert_other_order_differs(model: keras.Model, x: np.ndarray) -> None:
    """Reversing the elements of a tensor changes the outputs, so that errors would show."""
    expected = numpy(model(x))
    for variable in model.weights:
        kept = value(variable)
        variable.assign(kept.reshape(-1)[::-1].reshape(kept.shape))
        assert np.abs(numpy(model(x)) - expected).max() > 1e-4, variable.path
        variable.assign(kept)


@pytest.mark.parametrize("name", LAYERS)
def test_restored_layer_gives_the_same_outputs(name: str) -> None:
    make_module, make_layer, rename, shape = LAYERS[name]
    module, layer = randomised(make_module()), make_layer()
    layer.name = "layer"
    x = np.random.default_rng(1).normal(size=shape).astype("f4")
    inputs = keras.Input(shape[1:])
    model = keras.Model(inputs, layer(inputs))
    report = kt.restore(model, state_of(module), rename=rename, adapt=kt.adapt.from_torch(model))
    assert not report.missing
    has_channels = "onv" in name or "wise" in name or x.ndim > 3
    assert_other_order_differs(model, x)
    expected = outputs(module, np.moveaxis(x, -1, 1) if has_channels else x)
    assert_close(model, x, np.moveaxis(expected, 1, -1) if has_channels else expected)


def cross_attention_model() -> keras.Model:
    query, other = keras.Input((5, 6)), keras.Input((7, 6))
    layer = layers.MultiHeadAttention(3, 2, name="attention")
    return keras.Model([query, other], layer(query, other))


FUSED = {
    r"in_proj_weight": [f"attention/{part}/kernel" for part in ("query", "key", "value")],
    r"in_proj_bias": [f"attention/{part}/bias" for part in ("query", "key", "value")],
    r"out_proj\.weight": "attention/attention_output/kernel",
    r"out_proj\.bias": "attention/attention_output/bias",
}


def test_fused_attention_is_split() -> None:
    module = randomised(nn.MultiheadAttention(6, 3, batch_first=True))
    model = cross_attention_model()
    kt.restore(model, state_of(module), rename=FUSED, adapt=kt.adapt.from_torch(model))
    rng = np.random.default_rng(1)
    query, other = (rng.normal(size=(2, n, 6)).astype("f4") for n in (5, 7))
    assert_close(model, [query, other], outputs(module, query, other, other))


def test_attention_may_have_other_widths() -> None:
    query, key, content = (keras.Input((n, width)) for n, width in ((5, 6), (7, 4), (7, 8)))
    layer = layers.MultiHeadAttention(3, 2, name="attention")
    model = keras.Model([query, key, content], layer(query, content, key))
    module = randomised(nn.MultiheadAttention(6, 3, kdim=4, vdim=8, batch_first=True))
    rename = FUSED | {
        f"{part[0]}_proj_weight": f"attention/{part}/kernel" for part in ("query", "key", "value")
    }
    del rename["in_proj_weight"]
    kt.restore(model, state_of(module), rename=rename, adapt=kt.adapt.from_torch(model))
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=(2, *x.shape[1:])).astype("f4") for x in (query, key, content)]
    assert_close(model, arrays, outputs(module, *arrays))


@pytest.mark.parametrize(("heads", "size", "width"), [(3, 2, 6), (2, 2, 6), (3, 4, 5), (1, 4, 4)])
def test_attention_with_one_linear_per_part(heads: int, size: int, width: int) -> None:
    module, model = Separate(heads, size, width), attention_model(heads, size, width)
    rename = attention_rules({**{part: part for part in PARTS}, "out": "attention_output"})
    state = random_state(module)
    report = kt.restore(model, state, rename=rename, adapt=kt.adapt.from_torch(model))
    assert len(report.restored) == 8
    x = np.random.default_rng(1).normal(size=(2, 5, width)).astype("f4")
    assert_close(model, x, outputs(module, x))


class Grouped(nn.Module):
    """Attention with fewer heads of key and value, fused into one `Linear` as in Phi-3."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv_proj = nn.Linear(7, (6 + 2 + 2) * 3)
        self.out = nn.Linear(18, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split = self.qkv_proj(x).split([18, 6, 6], -1)
        q, k, v = (part.unflatten(-1, (-1, 3)).transpose(1, 2) for part in split)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(attended.transpose(1, 2).flatten(2))


def test_fused_grouped_attention_is_split() -> None:
    module = Grouped()
    inputs = keras.Input((5, 7))
    attention = layers.GroupQueryAttention(3, 6, 2, name="attention")
    model = keras.Model(inputs, attention(inputs, inputs))
    state = {key.replace("qkv", "self_attn.qkv"): a for key, a in random_state(module).items()}
    rename = fused_rules(r"self_attn\.qkv_proj")
    x = np.random.default_rng(1).normal(size=(2, 5, 7)).astype("f4")
    kt.restore(model, state, rename=rename, adapt=kt.adapt.from_torch(model))
    assert_close(model, x, outputs(module, x))
    groups = parts_of("groups", kernels_of(attention), (30, 7), "torch")
    assert groups is not None
    own = {f"{part}/kernel": reading.adapter for part, reading in zip(PARTS, groups, strict=True)}
    kt.restore(model, state, rename=rename, adapt={**kt.adapt.from_torch(model), **own})
    assert np.abs(numpy(model(x)) - outputs(module, x)).max() > 1e-3


def kernels_of(attention: Any) -> list[Layout]:
    """The layouts of query, key and value."""
    found = layouts_of(attention)
    named = {v.path.split("/")[-2]: v for v in attention.weights if v.path.endswith("kernel")}
    return [found[id(named[part])] for part in PARTS]


def test_experts_are_stacked() -> None:
    class Experts(layers.Layer):
        def build(self, shape: Any) -> None:
            self.up = self.add_weight(shape=(11, 4, 6), name="up")

    layer = Experts(name="experts")
    layer.build(None)
    tensors = np.random.default_rng(0).normal(size=(11, 6, 4)).astype("f4")
    apart = {f"experts.{i}.up.weight": tensor for i, tensor in enumerate(tensors)}
    adapt = kt.adapt.from_torch(layer)
    kt.restore(layer, apart, rename={r".*": "experts/up"}, adapt=adapt)
    np.testing.assert_array_equal(value(layer.up), tensors.transpose(0, 2, 1))
    kt.restore(layer, {"experts.up": tensors[::-1]}, rename={r".*": "experts/up"}, adapt=adapt)
    np.testing.assert_array_equal(value(layer.up), tensors[::-1].transpose(0, 2, 1))


def test_a_convolution_may_become_a_dense_layer() -> None:
    """Squeeze and excitation; and a convolution whose window covers all features, as in VGG."""
    inputs = keras.Input((3, 4, 5))
    x = layers.Conv2D(6, (2, 2), name="stem")(inputs)
    x = layers.Dense(7, name="full")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(4, name="squeezed")(x))
    parts = (nn.Conv2d(5, 6, (2, 2)), nn.Conv2d(6, 7, (2, 3)), nn.Conv2d(7, 4, 1), nn.Flatten())
    module = nn.Sequential(*parts)
    state = random_state(module)
    names = ("stem", "full", "squeezed")
    rename = {rf"{i}\.weight": f"{name}/kernel" for i, name in enumerate(names)}
    rename |= {rf"{i}\.bias": f"{name}/bias" for i, name in enumerate(names)}
    kt.restore(model, state, rename=rename, adapt=kt.adapt.from_torch(model))
    x = np.random.default_rng(1).normal(size=(2, 3, 4, 5)).astype("f4")
    assert_close(model, x, outputs(module, np.moveaxis(x, -1, 1)))


def test_conv1d_modules_of_gpt2_are_recognised() -> None:
    """Their weights are (inputs, outputs), and the fused one has its parts along the last axis."""
    model = attention_model()
    rng = np.random.default_rng(0)
    fused, square = rng.normal(size=(6, 18)).astype("f4"), rng.normal(size=(6, 6)).astype("f4")
    state = {"c_attn.weight": fused, "c_attn.bias": np.arange(18.0, dtype="f4")}
    rename = {k: v for k, v in fused_rules("c_attn").items() if "c_attn" in k}
    adapt = kt.adapt.from_torch(model)
    report = kt.restore(model, state, rename=rename, adapt=adapt)
    assert report.adapted["attention/key/kernel"] == "Chain(Split(1, 3, axis=1), Reshape())"
    key = value(next(v for v in model.weights if v.path == "attention/key/kernel"))
    np.testing.assert_array_equal(key.reshape(6, 6), fused[:, 6:12])
    rename = {".*": "attention/attention_output/kernel"}
    with refused(model, "may belong to GPT-2's `Conv1D`", kt.RestoreError):
        kt.restore(model, {"c_proj.weight": square}, rename=rename, adapt=adapt)


def test_asks_where_axes_of_equal_length_leave_two_readings() -> None:
    layer = layers.LayerNormalization(axis=[1, 2], name="norm")
    layer.build((None, 4, 4))
    with refused(layer, "can be read in several ways", kt.RestoreError):
        kt.restore(layer, {"norm/gamma": np.ones((4, 4))}, adapt=kt.adapt.from_torch(layer))
    layer = layers.LayerNormalization(axis=[1, 2], name="norm")
    layer.build((None, 5, 4))
    adapt = kt.adapt.from_torch(layer)
    gamma = np.arange(20.0).reshape(5, 4)
    kt.restore(layer, {"norm/gamma": gamma}, adapt=adapt)
    np.testing.assert_array_equal(value(layer.gamma), gamma)
    kt.restore(layer, {"norm/gamma": gamma.T}, adapt=adapt)
    np.testing.assert_array_equal(value(layer.gamma), gamma)


@pytest.mark.parametrize("flatten", [layers.Flatten(), layers.Reshape((-1,))], ids=type)
def test_reorders_flattened_features(flatten: keras.layers.Layer) -> None:
    module = randomised(
        nn.Sequential(nn.Conv2d(2, 3, (2, 4)), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 6, 5))
    )
    inputs = keras.Input((5, 9, 2))
    features = layers.Conv2D(3, (2, 4), activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(5, name="head")(flatten(features)))
    adapt = kt.adapt.from_torch(model)
    rename = {
        r"0\.weight": "conv/kernel",
        r"0\.bias": "conv/bias",
        r"3\.weight": "head/kernel",
        r"3\.bias": "head/bias",
    }
    report = kt.restore(model, state_of(module), rename=rename, adapt=adapt)
    assert report.adapted["conv/kernel"] == "Transpose([2, 3, 1, 0])"
    assert report.adapted["head/kernel"].startswith("Chain(Transpose(), Reshape([3, 4, 6, -1])")
    x = np.random.default_rng(1).normal(size=(2, 5, 9, 2)).astype("f4")
    assert_close(model, x, outputs(module, np.moveaxis(x, -1, 1)))


def test_reorders_every_layer_after_flattened_features() -> None:
    """Look through layers in between and nested models, but stop at the next `Dense`."""
    module = randomised(
        nn.Sequential(
            *(nn.Conv2d(3, 6, (2, 3)), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.BatchNorm1d(36), nn.ReLU(), nn.Linear(36, 5), nn.Linear(5, 3)),
        )
    ).eval()
    norm, relu, dense = layers.BatchNormalization, layers.ReLU, layers.Dense
    backbone = keras.Sequential(
        [
            *(keras.Input((7, 6, 3)), layers.Conv2D(6, (2, 3), name="conv")),
            *(norm(epsilon=1e-5, name="bn"), relu(), layers.MaxPooling2D(2)),
        ]
    )
    inputs = keras.Input((7, 6, 3))
    x = layers.Dropout(0.5)(layers.Flatten()(backbone(inputs)))
    x = dense(5, name="hidden")(relu()(norm(epsilon=1e-5, name="norm")(x)))
    model = keras.Model(inputs, dense(3, name="head")(x))
    x = np.random.default_rng(1).normal(size=(2, 7, 6, 3)).astype("f4")
    report = assert_same_outputs(module, model, x, np.moveaxis(x, -1, 1))
    assert report.adapted["head/kernel"] == "Transpose()"


def test_reorders_nothing_without_a_convolution() -> None:
    rng = np.random.default_rng(1)
    flat, dense = nn.Flatten(), layers.Dense(2, name="head")
    model = keras.Sequential([keras.Input((4, 3)), layers.Flatten(), dense])
    x = rng.normal(size=(2, 4, 3)).astype("f4")
    assert_same_outputs(randomised(nn.Sequential(flat, nn.Linear(12, 2))), model, x, x)
    words = layers.Embedding(5, 3, name="words")
    model = keras.Sequential([keras.Input((4,), dtype="int32"), words, layers.Flatten(), dense])
    module = randomised(nn.Sequential(nn.Embedding(5, 3), flat, nn.Linear(12, 2)))
    i = rng.integers(0, 5, size=(2, 4)).astype("i4")
    assert_same_outputs(module, model, i, i)


@pytest.mark.backends("jax", "torch")  # TensorFlow's convolutions on CPUs are channels last
@pytest.mark.parametrize("flatten", ["channels_first", "channels_last"])
def test_channels_may_come_first_in_keras(flatten: str) -> None:
    first = layers.Conv2D(4, (2, 3), data_format="channels_first", name="conv")
    second = layers.Flatten(data_format=flatten)
    head = layers.Dense(2, name="head")
    model = keras.Sequential([keras.Input((3, 5, 4)), first, second, head])
    parts = (nn.Conv2d(3, 4, (2, 3)), nn.Flatten(), nn.Linear(4 * 4 * 2, 2))
    x = np.random.default_rng(1).normal(size=(2, 3, 5, 4)).astype("f4")
    assert_same_outputs(randomised(nn.Sequential(*parts)), model, x, x)


def test_rejects_tensors_with_another_axis_order() -> None:
    """Their number of elements fits, so that a plain reshape would mix their axes."""
    model = attention_model(2, 6, 4)
    arrays = {"q.weight": np.ones((4, 12)), "out.weight": np.ones((12, 4))}
    rename = {r"q\.weight": "attention/query/kernel", r"out.*": "attention/attention_output/kernel"}
    with refused(model, r"first axes are \(4, 12\), not \(12, 4\)", kt.RestoreError):
        kt.restore(model, arrays, rename=rename, adapt=kt.adapt.from_torch(model))
    depth = keras.Sequential(
        [keras.Input((7, 9, 3)), layers.DepthwiseConv2D((2, 4), depth_multiplier=2, name="depth")]
    )
    arrays = {"depth/kernel": np.ones((2, 4, 3, 2))}
    with refused(depth, r"first axes are \(6, 1, 2, 4\), not", kt.RestoreError):
        kt.restore(depth, arrays, adapt=kt.adapt.from_torch(depth))
    inputs = keras.Input((6, 8, 2))
    x = layers.Flatten()(layers.Conv2D(3, (2, 4), name="conv")(inputs))
    flat = keras.Model(inputs, layers.Dense(5, name="head")(x))
    arrays = {"head/kernel": np.ones((75, 5))}  # not the layout of PyTorch
    with refused(flat, r"first axes are \(75,\), not \(5, 75\)", kt.RestoreError):
        kt.restore(flat, arrays, adapt=kt.adapt.from_torch(flat))


EQUATIONS = {
    "ab,bc->ac": (4, None),
    "abc,cd->abd": ((5, 4), None),
    "abc,dc->abd": ((5, 4), None),
    "abc,cde->abde": ((5, 2, 3), "de"),
    "abc,dce->abde": ((5, 2, 3), "de"),
    "abcd,cde->abe": ((5, 4), "e"),
    "abcd,dce->abe": ((5, 4), "e"),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_dense_is_restored_from_a_linear(equation: str) -> None:
    shape, bias_axes = EQUATIONS[equation]
    given = equation.partition(",")[0]
    size = {"a": 2, "b": 4 if len(given) == 2 else 5, "c": 4, "d": 3}
    size["c"] = 4 if len(given) < 4 else 2
    x = np.random.default_rng(1).normal(size=[size[axis] for axis in given]).astype("f4")
    layer = layers.EinsumDense(equation, shape, bias_axes=bias_axes, name="layer")
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, layer(inputs))
    features = x.reshape(*x.shape[: len(given) - (2 if len(given) == 4 else 1)], -1)
    module = nn.Linear(features.shape[-1], int(np.prod(shape if len(given) == 2 else shape[1:])))
    state = random_state(module)
    if bias_axes is None:
        state["bias"][:] = 0
        del state["bias"]
    rename = {key: WEIGHT_AND_BIAS[key] for key in state}
    kt.restore(model, state, rename=rename, adapt=kt.adapt.from_torch(model))
    found = numpy(model(x))
    np.testing.assert_allclose(
        found, outputs(module, features).reshape(found.shape), rtol=1e-5, atol=1e-5
    )


def test_square_einsum_kernel_with_suggested_rules() -> None:
    inputs = keras.Input((5, 4))
    x = layers.EinsumDense("abc,cd->abd", (5, 4), bias_axes="d", name="proj")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    module = nn.Sequential()
    module.add_module("proj", nn.Linear(4, 4))
    module.add_module("head", nn.Linear(4, 2))
    state = random_state(module)
    suggestion = kt.suggest_rename(model, state)
    assert suggestion.from_torch
    kt.restore(model, state, rename=suggestion.rules, adapt=kt.adapt.from_torch(model))
    x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype("f4")
    assert_close(model, x, outputs(module, x))


def test_entries_of_the_user_win_in_any_order() -> None:
    inputs = keras.Input((4,))
    trunk, head = layers.Dense(3, name="trunk"), layers.Dense(2, name="head")
    model = keras.Model(inputs, head(trunk(inputs)))
    arrays = {"trunk/kernel": np.ones((3, 4)), "head/kernel": np.arange(6.0).reshape(3, 2)}
    layouts, own = kt.adapt.from_torch(model), {"head/kernel": kt.adapt.Reshape()}
    for adapt in ({**layouts, **own}, {**own, **layouts}):
        report = kt.restore(model, arrays, adapt=adapt)
        assert report.adapted == {"trunk/kernel": "Transpose()", "head/kernel": "Reshape()"}
        np.testing.assert_array_equal(value(head.kernel), arrays["head/kernel"])
    both = kt.restore(model, arrays, adapt={**layouts, "kernel": kt.adapt.Reshape()})
    assert set(both.adapted.values()) == {"Reshape()"}
    assert list(kt.adapt.from_torch([trunk])) == ["^trunk/kernel$"]
    assert layouts.keys() == kt.adapt.from_torch([trunk, head]).keys()


def test_patterns_match_one_of_two_equal_names() -> None:
    def inner(name: str) -> keras.Model:
        x = keras.Input((4,))
        return keras.Model(x, layers.Dense(3, name="dense")(x), name=name)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner("left")(inputs) + inner("right")(inputs))
    assert list(kt.adapt.from_torch(model)) == ["^left/dense/kernel$", "^right/dense/kernel$"]


def test_rejects_models_without_a_layout() -> None:
    with pytest.raises(ValueError, match=r"`model` must be a model or layers that have variables"):
        kt.adapt.from_torch(layers.Dense(3))
    with pytest.raises(ValueError, match=r"`model` must be a model or layers .* Received: 'dense'"):
        kt.adapt.from_torch(["dense"])
    gru = layers.GRU(3, reset_after=False, name="old")
    gru.build((None, 5, 4))
    with pytest.raises(ValueError, match="'gru_cell' has reset_after=False"):
        kt.adapt.from_torch(gru)


def test_finds_the_kernel_under_lora() -> None:
    model = two_layers()
    head = model.get_layer("head")
    head.enable_lora(1)
    assert f"^{head._kernel.path}$" in kt.adapt.from_torch(model)
