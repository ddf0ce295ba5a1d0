"""Convolutional networks of torchvision and timm in keras.applications."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np

from tests.real.architectures import applications_names as names
from tests.real.architectures.applications_names import Names, Values
from tests.real.architectures.case import Case, Example, save_example
from tests.real.architectures.oracles import conv, depthwise, linear, same
from tests.real.architectures.sources import library, randomise, read, save_state

CLASSES = 10
NORM = {
    "gamma": (".weight", same),
    "beta": (".bias", same),
    "moving_mean": (".running_mean", same),
    "moving_variance": (".running_var", same),
}
LEAVES: dict[str, dict[str, tuple[str, Any]]] = {
    "Conv2D": {"kernel": (".weight", conv), "bias": (".bias", same)},
    "DepthwiseConv2D": {"kernel": (".weight", depthwise)},
    "SeparableConv2D": {
        "depthwise_kernel": (".conv1.weight", depthwise),
        "pointwise_kernel": (".pointwise.weight", conv),
    },
    "Dense": {"kernel": (".weight", linear), "bias": (".bias", same)},
    "BatchNormalization": NORM,
    "LayerNormalization": NORM,
}


def application_case(
    name: str,
    architecture: str,
    application: str,
    table: Names,
    *,
    size: int = 64,
    lacks: str = "nothing",
    epsilon: float | None = None,
    change: Callable[[Any], None] = lambda network: None,
    scale: float | None = 1.0,
    target: dict[str, Any] | None = None,
    **options: Any,
) -> Case:
    """One network of torchvision (`tv-...`) or timm (`timm-...`).

    Args:
        name: Of the case.
        architecture: Its name in torchvision or timm.
        application: Its name in keras.applications.
        table: Names of layers and modules.
        size: Of images. At 2 ** n + 1 the paddings of PyTorch and of Keras are the same.
        lacks: Pattern of the variables that the file does not have.
        epsilon: Of the normalisations, as in Keras: no file has it.
        change: Changes the network before it computes the example, in what no file has.
        scale: Factor of the Keras model's pixels; None for no example.
        target: More arguments of the Keras model.
        **options: Of the function that makes the network.
    """
    from_timm = name.startswith("timm")
    file = "model.safetensors" if from_timm else f"{architecture}.pth"
    return Case(
        name,
        "cnn",
        source=partial(
            _source, from_timm, architecture, options, file, size, scale, epsilon, change
        ),
        target=partial(_target, application, size, target or {}),
        oracle=partial(_oracle, table, file),
        lacks=lacks,
    )


def _source(
    from_timm: bool,
    architecture: str,
    options: dict[str, Any],
    file: str,
    size: int,
    scale: float | None,
    epsilon: float | None,
    change: Callable[[Any], None],
    directory: Path,
) -> Path:
    if from_timm:
        network = library("timm").create_model(architecture, num_classes=CLASSES, **options)
    else:
        make = getattr(library("torchvision").models, architecture)
        network = make(num_classes=CLASSES, **options)
    change(randomise(network))
    for module in network.modules():
        if epsilon and hasattr(module, "eps"):
            module.eps = epsilon
    if scale:
        save_example(directory, logits(network, size, scale))
    return save_state(network, directory / file)


def logits(network: Any, size: int, scale: float) -> Example:
    """What the network makes of two images; averages of pixels leave out the padding."""
    import torch
    from torch.nn import functional

    pixels = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype("float32")
    average_pool = functional.avg_pool2d

    def average(*arguments: Any, **options: Any) -> Any:
        inner = {} if len(arguments) > 5 else {"count_include_pad": False}
        return average_pool(*arguments, **options, **inner)

    with torch.no_grad(), mock.patch.object(functional, "avg_pool2d", average):
        found = network(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    return Example({"": pixels * np.float32(scale)}, found.numpy())


def _target(application: str, size: int, options: dict[str, Any], directory: Path) -> keras.Model:
    return getattr(keras.applications, application)(
        weights=None,
        input_shape=(size, size, 3),
        classes=CLASSES,
        **{"classifier_activation": None, **options},
    )


def _oracle(table: Names, file: str, directory: Path, model: keras.Model) -> None:
    arrays = read(directory / file)
    for layer in model._flatten_layers(include_self=False):
        if layer.weights and not isinstance(layer, keras.Sequential):
            _assign(layer, table, arrays)


def _assign(layer: keras.Layer, table: Names, arrays: Values) -> None:
    module = _module(layer.name, table, arrays)
    leaves = LEAVES.get(type(layer).__name__)
    if layer.name == "fc1":
        leaves = {**LEAVES["Dense"], "kernel": (".weight", behind_flatten)}
    for variable in layer.weights:
        suffix, change = leaves[variable.name] if leaves else ("", same)
        if module and module + suffix in arrays:
            variable.assign(change(arrays[module + suffix], tuple(variable.shape)))


def behind_flatten(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(out, channels * 2 * 2) of PyTorch as (2 * 2 * channels, out)."""
    return value.reshape(len(value), -1, 2, 2).transpose(2, 3, 1, 0).reshape(shape)


def _module(name: str, table: Names, arrays: Values) -> str:
    for pattern, module in table.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(module) if isinstance(module, str) else module(match, arrays)
    return ""


def first_strides(network: Any) -> None:
    """Let a ResNet's blocks have their stride in the first convolution, as Keras has it."""
    for module in network.modules():
        if hasattr(module, "conv3"):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride


def narrow_features(network: Any) -> None:
    """Give a VGG images of 64 pixels: 4 features a channel."""
    from torch import nn

    network.avgpool = nn.Identity()
    network.classifier[0] = randomise(nn.Linear(512 * 2 * 2, 4096), seed=1)
    network.eval()


def narrow_head(network: Any) -> None:
    """Make a VGG's head small: it is not restored."""
    from torch import nn

    for index in (0, 3):
        network.classifier[index] = nn.Linear(2, 2)


def unit_factors(network: Any) -> None:
    """Set the factors of normalisations to one, as files do that come from TensorFlow."""
    from torch import nn

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)


BIASES = r"_conv/bias"  # Keras's ResNet has biases before normalisations
STATISTICS = "normalization/"  # of images
PLAIN = {"include_preprocessing": False}
ODD = {"size": 65, "epsilon": 1e-3}
INCEPTION_OPTIONS = {"init_weights": False, "aux_logits": True}

CASES = (
    application_case(
        *("tv-resnet50", "resnet50", "ResNet50", names.RESNET),
        lacks=BIASES,
        epsilon=1.001e-5,
        change=first_strides,
    ),
    application_case(
        *("tv-resnet101", "resnet101", "ResNet101", names.RESNET),
        lacks=BIASES,
        epsilon=1.001e-5,
        change=first_strides,
    ),
    application_case(
        *("timm-resnet50-applications", "resnet50", "ResNet50", names.RESNET),
        lacks=BIASES,
        epsilon=1.001e-5,
        change=first_strides,
    ),
    application_case(
        *("tv-densenet121", "densenet121", "DenseNet121", names.DENSENET), epsilon=1.001e-5
    ),
    application_case(
        *("timm-densenet121-applications", "densenet121", "DenseNet121", names.DENSENET),
        epsilon=1.001e-5,
    ),
    application_case("tv-vgg16", "vgg16", "VGG16", names.VGG16, change=narrow_features),
    application_case(
        *("tv-vgg19", "vgg19", "VGG19", names.VGG19),
        change=narrow_head,
        scale=None,
        target={"include_top": False},
    ),
    application_case(
        *("tv-mobilenet_v2", "mobilenet_v2", "MobileNetV2", names.MOBILENET_V2), **ODD
    ),
    application_case(
        *("timm-mobilenetv2_100", "mobilenetv2_100", "MobileNetV2", names.MOBILENET_V2_TIMM), **ODD
    ),
    application_case(
        *("timm-mobilenetv1_100", "mobilenetv1_100", "MobileNet", names.MOBILENET_TIMM),
        pad_type="same",
        epsilon=1e-3,
    ),
    application_case(
        *("tv-mobilenet_v3_small", "mobilenet_v3_small", "MobileNetV3Small"),
        names.mobilenet_v3(11),
        target=PLAIN,
        **ODD,
    ),
    application_case(
        *("tv-mobilenet_v3_large", "mobilenet_v3_large", "MobileNetV3Large"),
        names.mobilenet_v3(15),
        target=PLAIN,
        **ODD,
    ),
    application_case(
        *("timm-mobilenetv3-small-applications", "tf_mobilenetv3_small_100", "MobileNetV3Small"),
        names.MOBILENET_V3_SMALL_TIMM,
        target=PLAIN,
    ),
    application_case(
        *("timm-mobilenetv3-large-applications", "tf_mobilenetv3_large_100", "MobileNetV3Large"),
        names.MOBILENET_V3_LARGE_TIMM,
        target=PLAIN,
    ),
    # Keras's Inception has no factors in its normalisations: those of the file are not used.
    application_case(
        *("tv-inception_v3", "inception_v3", "InceptionV3", names.INCEPTION),
        size=75,
        scale=None,
        **INCEPTION_OPTIONS,
    ),
    application_case(
        *("timm-inception_v3", "inception_v3", "InceptionV3", names.INCEPTION),
        size=75,
        change=unit_factors,
    ),
    application_case(
        *("timm-legacy_xception", "legacy_xception", "Xception", names.XCEPTION),
        size=71,
        epsilon=1e-3,
    ),
    application_case(
        *("tv-efficientnet_b0", "efficientnet_b0", "EfficientNetB0", names.efficientnet(8)),
        lacks=STATISTICS,
        scale=255,
        **ODD,
    ),
    application_case(
        *("timm-tf_efficientnet_b0", "tf_efficientnet_b0", "EfficientNetB0"),
        names.EFFICIENTNET_TIMM,
        lacks=STATISTICS,
        scale=255,
    ),
    application_case(
        *("tv-efficientnet_v2_s", "efficientnet_v2_s", "EfficientNetV2S", names.efficientnet(7)),
        target=PLAIN,
        **ODD,
    ),
    application_case(
        *("timm-tf_efficientnetv2_s", "tf_efficientnetv2_s", "EfficientNetV2S"),
        names.EFFICIENTNET_TIMM,
        target=PLAIN,
    ),
    application_case(
        *("tv-convnext_tiny", "convnext_tiny", "ConvNeXtTiny", names.CONVNEXT), target=PLAIN
    ),
    application_case(
        *("timm-convnext_tiny", "convnext_tiny", "ConvNeXtTiny", names.CONVNEXT_TIMM), target=PLAIN
    ),
)
