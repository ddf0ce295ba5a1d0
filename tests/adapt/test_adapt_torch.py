"""Layouts of PyTorch: a Keras layer gives the same outputs as the module it is restored from."""

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
from tests.helpers import refused, value

WEIGHT_AND_BIAS = {r"weight": "layer/kernel", r"bias": "layer/bias"}
CELL = {
    "weight_ih": "{}cell/kernel",
    "weight_hh": "{}cell/recurrent_kernel",
    "bias_ih": "{}cell/bias",
    "bias_hh": "{}cell/bias",
}


def recurrent(cell: str, owner: str = "layer/", suffix: str = "_l0") -> dict[str, str]:
    return {f"{key}{suffix}": path.format(f"{owner}{cell}_") for key, path in CELL.items()}


class ByChannel(nn.Module):
    """A convolution for each channel, then one for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv2d(3, 6, (2, 4), groups=3, bias=False)
        self.point = nn.Conv2d(6, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.point(self.depth(x))


# The module, the Keras layer, rename rules, and the shape of a batch, channels last.
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
        recurrent("lstm"),
        (2, 5, 4),
    ),
    "GRU": (
        lambda: nn.GRU(4, 3, batch_first=True),
        lambda: layers.GRU(3, return_sequences=True),
        recurrent("gru"),
        (2, 5, 4),
    ),
    "RNN": (
        lambda: nn.RNN(3, 3, batch_first=True),
        lambda: layers.SimpleRNN(3, return_sequences=True),
        recurrent("simple_rnn"),
        (2, 5, 3),
    ),
    "bidirectional LSTM": (
        lambda: nn.LSTM(4, 3, batch_first=True, bidirectional=True),
        lambda: layers.Bidirectional(layers.LSTM(3, return_sequences=True, name="lstm")),
        recurrent("lstm", "layer/forward_lstm/")
        | recurrent("lstm", "layer/backward_lstm/", "_l0_reverse"),
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


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """All tensors random, also biases and statistics, which start as constants."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.tensor(rng.uniform(0.1, 0.5, tensor.shape)))
    return module.eval()


def state_of(module: nn.Module) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in module.state_dict().items() if tensor.ndim}


def outputs(module: nn.Module, x: np.ndarray, channels_last: bool) -> np.ndarray:
    with torch.no_grad():
        result = module(torch.tensor(np.moveaxis(x, -1, 1) if channels_last else x))
    result = (result[0] if isinstance(result, tuple) else result).numpy()
    return np.moveaxis(result, 1, -1) if channels_last else result


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_pytorch_gives_the_same_outputs_in_keras(name: str) -> None:
    make_module, make_layer, rename, shape = LAYERS[name]
    module, layer = randomised(make_module()), make_layer()
    layer.name = "layer"
    x = np.random.default_rng(1).normal(size=shape).astype("f4")
    inputs = keras.Input(shape[1:])
    model = keras.Model(inputs, layer(inputs))
    report = kt.restore(model, state_of(module), rename=rename, adapt=kt.adapt.from_torch(model))
    assert not report.missing
    expected = outputs(module, x, channels_last="onv" in name or "wise" in name or x.ndim > 3)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(x)), expected, rtol=1e-5, atol=1e-5)


def attention_model() -> keras.Model:
    query, other = keras.Input((5, 6)), keras.Input((7, 6))
    layer = layers.MultiHeadAttention(3, 2, name="attention")
    return keras.Model([query, other], layer(query, other))


FUSED = {
    r"in_proj_weight": [f"attention/{part}/kernel" for part in ("query", "key", "value")],
    r"in_proj_bias": [f"attention/{part}/bias" for part in ("query", "key", "value")],
    r"out_proj\.weight": "attention/attention_output/kernel",
    r"out_proj\.bias": "attention/attention_output/bias",
}


def test_fused_attention_is_split_and_gives_the_same_outputs() -> None:
    module, model = randomised(nn.MultiheadAttention(6, 3, batch_first=True)), attention_model()
    kt.restore(model, state_of(module), rename=FUSED, adapt=kt.adapt.from_torch(model))
    rng = np.random.default_rng(1)
    query, other = (rng.normal(size=(2, n, 6)).astype("f4") for n in (5, 7))
    with torch.no_grad():
        expected, _ = module(*map(torch.tensor, (query, other, other)))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(model([query, other])), expected, rtol=1e-5, atol=1e-5
    )


def test_attention_over_other_widths_has_its_weights_apart() -> None:
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
    with torch.no_grad():
        expected, _ = module(*map(torch.tensor, arrays))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(model(arrays)), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("flatten", [layers.Flatten(), layers.Reshape((-1,))], ids=type)
def test_a_network_with_flatten_gives_the_same_outputs(flatten: keras.layers.Layer) -> None:
    module = randomised(
        nn.Sequential(nn.Conv2d(2, 3, (2, 4)), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 6, 5))
    )
    inputs = keras.Input((5, 9, 2))
    features = layers.Conv2D(3, (2, 4), activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(5, name="head")(flatten(features)))
    adapt = kt.adapt.from_torch(model)
    names = {"0": "conv", "3": "head"}
    rename = {
        rf"{number}\.{theirs}": f"{layer}/{ours}"
        for number, layer in names.items()
        for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
    }
    report = kt.restore(model, state_of(module), rename=rename, adapt=adapt)
    assert report.adapted["conv/kernel"] == "Transpose([2, 3, 1, 0])"
    assert report.adapted["head/kernel"].startswith("Chain(Transpose(), Reshape([3, 4, 6, -1])")
    x = np.random.default_rng(1).normal(size=(2, 5, 9, 2)).astype("f4")
    with torch.no_grad():
        expected = module(torch.tensor(np.moveaxis(x, -1, 1)))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(x)), expected, rtol=1e-5, atol=1e-5)


def same_outputs(module: nn.Module, model: keras.Model, x: np.ndarray, theirs: np.ndarray) -> Any:
    """The report of a restore, if the outputs for `x`, here and there, are the same."""
    state = state_of(module)
    rename = kt.suggest_rename(model, state).rules
    report = kt.restore(model, state, rename=rename, adapt=kt.adapt.from_torch(model))
    assert set(report.restored) == {variable.path for variable in model.weights}
    with torch.no_grad():
        expected = module(torch.tensor(theirs))
    found = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    return report


def test_behind_a_convolution_and_flatten_all_inputs_are_reordered() -> None:
    """Through what stands between, a model in the model too; not what follows another layer."""
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
    report = same_outputs(module, model, x, np.moveaxis(x, -1, 1))
    assert report.adapted["head/kernel"] == "Transpose()"


def test_what_is_flattened_without_a_convolution_is_not_reordered() -> None:
    rng = np.random.default_rng(1)
    flat, dense = nn.Flatten(), layers.Dense(2, name="head")
    model = keras.Sequential([keras.Input((4, 3)), layers.Flatten(), dense])
    x = rng.normal(size=(2, 4, 3)).astype("f4")
    same_outputs(randomised(nn.Sequential(flat, nn.Linear(12, 2))), model, x, x)
    words = layers.Embedding(5, 3, name="words")
    model = keras.Sequential([keras.Input((4,), dtype="int32"), words, layers.Flatten(), dense])
    module = randomised(nn.Sequential(nn.Embedding(5, 3), flat, nn.Linear(12, 2)))
    i = rng.integers(0, 5, size=(2, 4)).astype("i4")
    same_outputs(module, model, i, i)


@pytest.mark.backends("jax", "torch")  # TensorFlow's convolutions on CPUs are channels last
@pytest.mark.parametrize("flatten", ["channels_first", "channels_last"])
def test_channels_that_are_first_here_too(flatten: str) -> None:
    first = layers.Conv2D(4, (2, 3), data_format="channels_first", name="conv")
    behind = layers.Flatten(data_format=flatten)
    head = layers.Dense(2, name="head")
    model = keras.Sequential([keras.Input((3, 5, 4)), first, behind, head])
    parts = (nn.Conv2d(3, 4, (2, 3)), nn.Flatten(), nn.Linear(4 * 4 * 2, 2))
    x = np.random.default_rng(1).normal(size=(2, 3, 5, 4)).astype("f4")
    same_outputs(randomised(nn.Sequential(*parts)), model, x, x)


def test_own_entries_win_wherever_they_stand_and_layers_may_be_named_alone() -> None:
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


def test_layers_of_one_name_are_told_apart() -> None:
    def inner(name: str) -> keras.Model:
        x = keras.Input((4,))
        return keras.Model(x, layers.Dense(3, name="dense")(x), name=name)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, inner("left")(inputs) + inner("right")(inputs))
    assert list(kt.adapt.from_torch(model)) == ["^left/dense/kernel$", "^right/dense/kernel$"]


def test_what_has_no_layout() -> None:
    with pytest.raises(ValueError, match=r"`model` must be a model or layers that have variables"):
        kt.adapt.from_torch(layers.Dense(3))
    with pytest.raises(ValueError, match=r"`model` must be a model or layers .* Received: 'dense'"):
        kt.adapt.from_torch(["dense"])
    gru = layers.GRU(3, reset_after=False, name="old")
    gru.build((None, 5, 4))
    with pytest.raises(ValueError, match="'gru_cell' has reset_after=False"):
        kt.adapt.from_torch(gru)


def test_one_of_two_biases_is_not_taken_for_their_sum() -> None:
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, layers.LSTM(3, name="layer")(inputs))
    state = state_of(randomised(nn.LSTM(4, 3)))
    rename = {**recurrent("lstm"), "bias_hh_l0": None}
    with refused(model, r"\(12,\) under key 'bias_ih_l0'; Sum\(\): it combines several tensors"):
        kt.restore(model, state, rename=rename, adapt=kt.adapt.from_torch(model))
