"""Convolutional networks of timm in keras_hub, judged by keras_hub's own converters."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.real.architectures.case import Case, Example, save_example
from tests.real.architectures.oracles import preset_oracle, preset_target
from tests.real.architectures.sources import library, randomise, save_state

FILE = "model.safetensors"


def timm_case(
    architecture: str,
    backbone: str,
    *,
    name: str = "",
    target: dict[str, Any] | None = None,
    size: int = 64,
    output: str = "",
    file: str = FILE,
    **options: Any,
) -> Case:
    """One network of timm.

    Args:
        architecture: Its name in timm.
        backbone: Class of keras_hub.
        name: Of the case, if not the architecture.
        target: Arguments of the backbone that differ from the converter's, for smaller widths.
        size: Of an image of the example. Odd where PyTorch pads both sides and Keras the end.
        output: Which of the backbone's outputs the features are.
        file: Where the state is stored.
        **options: Of `timm.create_model`.
    """
    return Case(
        name or f"timm-{architecture}",
        "cnn",
        source=partial(_source, architecture, options, size, output, file),
        target=partial(preset_target, backbone, **(target or {})),
        oracle=preset_oracle,
    )


def _source(
    architecture: str, options: dict[str, Any], size: int, output: str, file: str, directory: Path
) -> Path:
    network = randomise(library("timm").create_model(architecture, **options))
    config = {"architecture": architecture, "num_classes": network.num_classes}
    config["pretrained_cfg"] = {"tag": ""}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_example(directory, features(network, size, output))
    save_state(network, directory / FILE)
    return save_state(network, directory / file)


def features(network: Any, size: int, output: str) -> Example:
    """What the network makes of an image before its head."""
    import torch

    pixels = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype("float32")
    with torch.no_grad():
        found = network.forward_features(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    return Example({"": pixels}, found.permute(0, 2, 3, 1).numpy(), output)


WIDTHS = [64, 24, 32, 40]

CASES = (
    timm_case(
        "resnet18",
        "ResNetBackbone",
        channels=WIDTHS,
        target={"stackwise_num_filters": WIDTHS},
    ),
    timm_case(
        "resnet18",
        "ResNetBackbone",
        name="timm-resnet18-pt",
        file="resnet18.pth",
        channels=WIDTHS,
        target={"stackwise_num_filters": WIDTHS},
    ),
    timm_case(
        "resnet50",
        "ResNetBackbone",
        channels=WIDTHS,
        target={"stackwise_num_filters": WIDTHS},
    ),
    timm_case(
        "resnet101",
        "ResNetBackbone",
        channels=WIDTHS,
        target={"stackwise_num_filters": WIDTHS},
    ),
    timm_case("resnetv2_50", "ResNetBackbone"),
    timm_case("densenet121", "DenseNetBackbone", size=65),
    timm_case("vgg11", "VGGBackbone", mlp_ratio=0.01, size=224),
    timm_case("vgg16", "VGGBackbone", mlp_ratio=0.01, size=224),
    timm_case("efficientnet_b0", "EfficientNetBackbone"),
    timm_case("efficientnet_lite0", "EfficientNetBackbone"),
    timm_case("mobilenetv3_small_050", "MobileNetBackbone"),
    timm_case("mobilenetv3_large_100", "MobileNetBackbone"),
    timm_case("cspdarknet53", "CSPNetBackbone"),
    timm_case("cspresnet50", "CSPNetBackbone"),
    timm_case("darknet53", "CSPNetBackbone"),
    timm_case("hgnetv2_b0", "HGNetV2Backbone", output="stage4"),
)
