"""Flax parameters as .npz, their names joined with "/"."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tests.real.architectures.case import Case, Example, save_example
from tests.real.architectures.oracles import Values, mapped, same
from tests.real.architectures.sources import flatten, library, randomise
from tests.real.architectures.transformers_cases import pictures, tokens
from tests.real.architectures.transformers_encoders import BERT, GELU, HUB

FILE = "params.npz"
DEPTHS = (2, 3)


def random_tree(shapes: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Values for parameters with Flax's layouts: outputs are the last axis."""
    tree: dict[str, Any] = {}
    for name, value in shapes.items():
        if isinstance(value, Mapping):
            tree[name] = random_tree(value, rng)
        elif name in ("scale", "var"):
            tree[name] = rng.uniform(0.5, 1.5, value.shape).astype("float32")
        else:
            size = np.prod(value.shape[:-1]) if name == "kernel" else 10
            tree[name] = rng.normal(0, size**-0.5, value.shape).astype("float32")
    return tree


def network_source(make: Callable[[], Any], size: int, directory: Path) -> Path:
    network = make()
    import jax

    pixels = pictures(size)
    shapes = jax.eval_shape(network.init, jax.random.key(0), pixels)
    variables = random_tree(shapes, np.random.default_rng(0))
    save_example(directory, Example({"": pixels}, np.asarray(network.apply(variables, pixels))))
    if "batch_stats" not in variables:
        variables = variables["params"]
    np.savez(directory / FILE, **flatten(variables))
    return directory / FILE


def resnet() -> Any:
    """The ResNet of Flax's examples, but with the strides where Keras has them."""
    from flax import linen as nn

    norm = partial(nn.BatchNorm, use_running_average=True, epsilon=1.001e-5)
    conv = partial(nn.Conv, use_bias=False)

    class BottleneckResNetBlock(nn.Module):
        filters: int
        strides: tuple[int, int] = (1, 1)

        @nn.compact
        def __call__(self, x: Any) -> Any:
            y = nn.relu(norm()(conv(self.filters, (1, 1), self.strides)(x)))
            y = nn.relu(norm()(conv(self.filters, (3, 3))(y)))
            y = norm()(conv(4 * self.filters, (1, 1))(y))
            if x.shape != y.shape:
                x = conv(4 * self.filters, (1, 1), self.strides, name="conv_proj")(x)
                x = norm(name="norm_proj")(x)
            return nn.relu(x + y)

    class ResNet(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            pad = [(3, 3), (3, 3)]
            x = conv(64, (7, 7), (2, 2), padding=pad, name="conv_init")(x)
            x = nn.relu(norm(name="bn_init")(x))
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
            for stage, depth in enumerate(DEPTHS):
                for block in range(depth):
                    strides = (2, 2) if stage and not block else (1, 1)
                    x = BottleneckResNetBlock(24 * 2**stage, strides)(x)
            return nn.Dense(10)(x.mean((1, 2)))

    return ResNet()


def resnet_target(_: Path) -> keras.Model:
    from keras.src.applications import resnet

    def stack(x: keras.KerasTensor) -> keras.KerasTensor:
        for stage, depth in enumerate(DEPTHS):
            stride = 2 if stage else 1
            name = f"conv{stage + 2}"
            x = resnet.stack_residual_blocks_v1(x, 24 * 2**stage, depth, stride, name=name)
        return x

    return resnet.ResNet(
        stack,
        preact=False,
        use_bias=False,
        weights=None,
        input_shape=(64, 64, 3),
        classes=10,
        classifier_activation=None,
    )


def resnet_module(match: re.Match[str]) -> str:
    stage, block, number, kind = match["stage"], match["block"], match["number"], match["kind"]
    if not stage:
        return f"{kind}_init"
    flat = sum(DEPTHS[: int(stage) - 2]) + int(block) - 1
    if number == "0":
        name = "conv_proj" if kind == "conv" else "norm_proj"
    else:
        name = f"{'Conv' if kind == 'conv' else 'BatchNorm'}_{int(number) - 1}"
    return f"BottleneckResNetBlock_{flat}/{name}"


def resnet_value(arrays: Values, match: re.Match[str], shape: tuple[int, ...]) -> np.ndarray:
    leaf = {
        "kernel": "params/{}/kernel",
        "gamma": "params/{}/scale",
        "beta": "params/{}/bias",
        "moving_mean": "batch_stats/{}/mean",
        "moving_variance": "batch_stats/{}/var",
    }[match["leaf"]]
    return arrays[leaf.format(resnet_module(match))]


LEAF = r"(?P<leaf>kernel|gamma|beta|moving_\w+)"
RESNET = {
    r"predictions/(kernel|bias)": (r"params/Dense_0/\1", same),
    rf"conv1_(?P<kind>conv|bn)/{LEAF}(?P<stage>)(?P<block>)(?P<number>)": resnet_value,
    rf"conv(?P<stage>\d)_block(?P<block>\d)_(?P<number>\d)_(?P<kind>conv|bn)/{LEAF}": (
        resnet_value
    ),
}


def vit() -> Any:
    """The Vision Transformer of google-research, with the names of its published files."""
    from flax import linen as nn

    norm = partial(nn.LayerNorm, epsilon=1e-6)

    class MlpBlock(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.gelu(nn.Dense(36)(x), approximate=False)
            return nn.Dense(24)(x)

    class AddPositionEmbs(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            zeros = nn.initializers.zeros
            return x + self.param("pos_embedding", zeros, (1, *x.shape[1:]))

    class EncoderBlock(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            y = norm(name="LayerNorm_0")(x)
            name = "MultiHeadDotProductAttention_1"
            x = x + nn.MultiHeadDotProductAttention(num_heads=3, name=name)(y, y)
            return x + MlpBlock(name="MlpBlock_3")(norm(name="LayerNorm_2")(x))

    class Encoder(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = AddPositionEmbs(name="posembed_input")(x)
            for number in range(11):
                x = EncoderBlock(name=f"encoderblock_{number}")(x)
            return norm(name="encoder_norm")(x)

    class VisionTransformer(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Conv(24, (4, 4), (4, 4), name="embedding")(x)
            x = x.reshape(len(x), -1, 24)
            first = self.param("cls", nn.initializers.zeros, (1, 1, 24))
            first = first.repeat(len(x), 0)
            import jax.numpy as jnp

            x = Encoder(name="Transformer")(jnp.concatenate([first, x], 1))
            nn.Dense(10, name="head")(x[:, 0])
            return x

    return VisionTransformer()


def vit_target(_: Path) -> keras.Model:
    import keras_hub

    return keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=4,
        num_layers=11,
        num_heads=3,
        hidden_dim=24,
        mlp_dim=36,
    )


def vit_value(arrays: Values, match: re.Match[str], shape: tuple[int, ...]) -> np.ndarray:
    block = f"Transformer/encoderblock_{int(match[1]) - 1}"
    module = {
        "ln_1": "LayerNorm_0",
        "ln_2": "LayerNorm_2",
        "mha/attention_output": "MultiHeadDotProductAttention_1/out",
        "mlp/dense_1": "MlpBlock_3/Dense_0",
        "mlp/dense_2": "MlpBlock_3/Dense_1",
    }.get(match[2]) or match[2].replace("mha", "MultiHeadDotProductAttention_1")
    leaf = {"gamma": "scale", "beta": "bias"}.get(match[3], match[3])
    return arrays[f"{block}/{module}/{leaf}"]


VIT = {
    "class_token": ("cls", same),
    "patch_embedding/(kernel|bias)": (r"embedding/\1", same),
    "position_embedding/embeddings": ("Transformer/posembed_input/pos_embedding", same),
    "ln/gamma": "Transformer/encoder_norm/scale",
    "ln/beta": "Transformer/encoder_norm/bias",
    r"transformer_block_(\d+)/(.+)/(\w+)": vit_value,
}


def bert_source(directory: Path) -> Path:
    """BERT as transformers stored it from its Flax classes."""
    transformers = library("transformers")
    network = randomise(transformers.BertModel(transformers.BertConfig(**BERT, **GELU)))
    example = partial(tokens, segments=True, output="sequence_output")
    save_example(directory, example(network))
    arrays = {}
    for key, tensor in network.state_dict().items():
        value = tensor.numpy()
        *modules, leaf = key.split(".")
        if leaf == "weight" and "embeddings" in modules[-1]:
            leaf = "embedding"
        elif leaf == "weight":
            leaf = "scale" if modules[-1] == "LayerNorm" else "kernel"
        arrays["/".join((*modules, leaf))] = value.T if leaf == "kernel" else value
    np.savez(directory / FILE, **arrays)
    return directory / FILE


def bert_target(_: Path) -> keras.Model:
    import keras_hub

    return keras_hub.models.BertBackbone(**HUB, max_sequence_length=13)


def bert_rules() -> dict[str, Any]:
    layer = r"encoder/layer/\1"
    rules: dict[str, Any] = {
        "embeddings_layer_norm/gamma": "embeddings/LayerNorm/scale",
        "embeddings_layer_norm/beta": "embeddings/LayerNorm/bias",
        "pooled_dense/(kernel|bias)": (r"pooler/dense/\1", same),
    }
    for name, key in {"token": "word", "position": "position", "segment": "token_type"}.items():
        rules[f"{name}_embedding/embeddings"] = f"embeddings/{key}_embeddings/embedding"
    modules = {
        "self_attention_layer/(query|key|value)": r"attention/self/\2",
        "self_attention_layer/(attention_output)": "attention/output/dense",
        "(feedforward_intermediate_dense)": "intermediate/dense",
        "(feedforward_output_dense)": "output/dense",
    }
    for path, module in modules.items():
        rules[rf".*_(\d+)/{path}/(kernel|bias)"] = (rf"{layer}/{module}/\3", same)
    for name, module in {"self_attention": "attention/output", "feedforward": "output"}.items():
        for leaf, key in {"gamma": "scale", "beta": "bias"}.items():
            path = rf".*_(\d+)/{name}_layer_norm/{leaf}"
            rules[path] = rf"{layer}/{module}/LayerNorm/{key}"
    return rules


def flax_case(
    name: str,
    source: Callable[[Path], Path],
    target: Callable[[Path], keras.Model],
    rules: Mapping[str, Any],
    lacks: str = "nothing",
) -> Case:
    return Case(name, "flax", source, target, mapped(rules, FILE), lacks)


CASES: Sequence[Case] = (
    flax_case(
        "flax-resnet",
        partial(network_source, resnet, 64),
        resnet_target,
        RESNET,
        lacks="_conv/bias",  # before normalisations
    ),
    flax_case("flax-vit", partial(network_source, vit, 16), vit_target, VIT),
    flax_case("flax-bert", bert_source, bert_target, bert_rules()),
)
