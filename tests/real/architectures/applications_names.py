"""Names of keras.applications' layers beside those of torchvision's and timm's modules.

A table has patterns of layers' names, and the module as a template for `re.Match.expand` or what
makes it from the match and the file's arrays.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Values = Mapping[str, np.ndarray]
Names = dict[str, str | Callable[[re.Match[str], Values], str]]


def place(number: int, depths: Sequence[int]) -> str:
    """Stage and block, as in `blocks.1.0`, of a running number."""
    for stage, depth in enumerate(depths):
        if number < depth:
            return f"{stage}.{number}"
        number -= depth
    raise ValueError(f"{number} more blocks than stages have")


def letter(text: str) -> int:
    """The number of a block "a", "b" ..."""
    return ord(text) - ord("a")


RESNET: Names = {
    "conv1_(conv|bn)": r"\g<1>1",
    r"conv(\d)_block(\d+)_0_(conv|bn)": lambda m, _: (
        f"layer{int(m[1]) - 1}.{int(m[2]) - 1}.downsample.{int(m[3] == 'bn')}"
    ),
    r"conv(\d)_block(\d+)_(\d)_(conv|bn)": lambda m, _: (
        f"layer{int(m[1]) - 1}.{int(m[2]) - 1}.{m[4]}{m[3]}"
    ),
    "predictions": "fc",
}

DENSENET: Names = {
    "conv1_conv": "features.conv0",
    "conv1_bn": "features.norm0",
    r"conv(\d)_block(\d+)_(\d)_(conv|bn)": lambda m, _: (
        f"features.denseblock{int(m[1]) - 1}.denselayer{m[2]}."
        + (f"conv{m[3]}" if m[4] == "conv" else f"norm{int(m[3]) + 1}")
    ),
    r"pool(\d)_(conv|bn)": lambda m, _: (
        f"features.transition{int(m[1]) - 1}.{'norm' if m[2] == 'bn' else 'conv'}"
    ),
    "bn": "features.norm5",
    "predictions": "classifier",
}


def vgg(depths: Sequence[int]) -> Names:
    """Two modules a convolution and one a pooling."""

    def feature(match: re.Match[str], arrays: Values) -> str:
        block, number = int(match[1]) - 1, int(match[2]) - 1
        return f"features.{2 * (sum(depths[:block]) + number) + block}"

    return {
        r"block(\d)_conv(\d)": feature,
        "fc1": "classifier.0",
        "fc2": "classifier.3",
        "predictions": "classifier.6",
    }


VGG16 = vgg((2, 2, 3, 3, 3))
VGG19 = vgg((2, 2, 4, 4, 4))


def _inception() -> list[str]:
    """Modules in the order that both sides define them in."""
    first = ("branch1x1", *(f"branch5x5_{i}" for i in (1, 2)))
    double = tuple(f"branch3x3dbl_{i}" for i in (1, 2, 3))
    sevens = tuple(f"branch7x7{d}_{i}" for d, n in (("", 3), ("dbl", 5)) for i in range(1, n + 1))
    threes = ("branch3x3_1", "branch3x3_2")
    blocks = {
        "5b 5c 5d": (*first, *double, "branch_pool"),
        "6a": ("branch3x3", *double),
        "6b 6c 6d 6e": ("branch1x1", *sevens, "branch_pool"),
        "7a": (*threes, *(f"branch7x7x3_{i}" for i in (1, 2, 3, 4))),
        "7b 7c": (
            *("branch1x1", "branch3x3_1", "branch3x3_2a", "branch3x3_2b"),
            *("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a", "branch3x3dbl_3b"),
            "branch_pool",
        ),
    }
    stem = [f"Conv2d_{name}" for name in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")]
    mixed = (itertools.product(names.split(), parts) for names, parts in blocks.items())
    return stem + [f"Mixed_{name}.{part}" for pairs in mixed for name, part in pairs]


INCEPTION_MODULES = _inception()
INCEPTION: Names = {
    r"conv2d(?:_(\d+))?": lambda m, _: f"{INCEPTION_MODULES[int(m[1] or 0)]}.conv",
    r"batch_normalization(?:_(\d+))?": lambda m, _: f"{INCEPTION_MODULES[int(m[1] or 0)]}.bn",
    "predictions": "fc",
}


def _separable(match: re.Match[str], _: Values) -> str:
    block, number, norm = int(match[1]), int(match[2]), bool(match[3])
    if block == 14:
        return f"bn{number + 2}" if norm else f"conv{number + 2}"
    active = block > 2  # an activation stands before it
    return f"block{block - 1}.rep.{3 * (number - 1) + active + norm}"


_SKIPS = ("block1", "block2", "block3", "block12")
XCEPTION: Names = {
    r"block1_conv(\d)": r"conv\1",
    r"block1_conv(\d)_bn": r"bn\1",
    r"block(\d+)_sepconv(\d)(_bn)?": _separable,
    r"conv2d(?:_(\d))?": lambda m, _: f"{_SKIPS[int(m[1] or 0)]}.skip",
    r"batch_normalization(?:_(\d))?": lambda m, _: f"{_SKIPS[int(m[1] or 0)]}.skipbn",
    "predictions": "fc",
}

_V1 = (1, 2, 2, 6, 2)
MOBILENET_TIMM: Names = {
    "conv1": "conv_stem",
    "conv1_bn": "bn1",
    r"conv_(dw|pw)_(\d+)": lambda m, _: f"blocks.{place(int(m[2]) - 1, _V1)}.conv_{m[1]}",
    r"conv_(dw|pw)_(\d+)_bn": lambda m, _: (
        f"blocks.{place(int(m[2]) - 1, _V1)}.bn{1 + (m[1] == 'pw')}"
    ),
    "conv_preds": "classifier",
}


def inverted(match: re.Match[str], depths: Sequence[int], arrays: Values) -> str:
    """A module of timm's inverted residuals: `part` of block `number`, or its `norm`."""
    found = match.groupdict()
    block = f"blocks.{place(int(found['number'] or 0), depths)}"
    part = found["part"]
    if part.startswith("squeeze_excite"):
        return f"{block}.se.conv_{'expand' if part.endswith('_1') else 'reduce'}"
    expands = f"{block}.conv_pwl.weight" in arrays
    order = ("expand", "depthwise", "project") if expands else ("depthwise", "project")
    if found["norm"]:
        return f"{block}.bn{order.index(part) + 1}"
    plain = "conv_pwl" if expands else "conv_pw"
    return f"{block}.{({'expand': 'conv_pw', 'depthwise': 'conv_dw'}).get(part, plain)}"


_PART = "(?P<part>expand|depthwise|project|squeeze_excite_conv(?:_1)?)(?P<norm>_bn|_BN)?"


def mobilenet_timm(depths: Sequence[int], block: str) -> Names:
    """MobileNetV2 and V3 of timm."""
    return {
        f"{block}_{_PART}": lambda m, arrays: inverted(m, depths, arrays),
        "Conv1|conv": "conv_stem",
        "bn_Conv1|conv_bn": "bn1",
        "Conv_1": "conv_head",
        "Conv_1_bn": "bn2",
        "conv_1": "blocks.5.0.conv" if len(depths) == 5 else "blocks.6.0.conv",
        "conv_1_bn": "blocks.5.0.bn1" if len(depths) == 5 else "blocks.6.0.bn1",
        "conv_2": "conv_head",
        "logits|predictions": "classifier",
    }


V2_BLOCK = r"(?:expanded_conv|block_(?P<number>\d+))"
V3_BLOCK = r"expanded_conv(?:_(?P<number>\d+))?"
MOBILENET_V2_TIMM = mobilenet_timm((1, 2, 3, 4, 3, 3, 1), V2_BLOCK)
MOBILENET_V3_SMALL_TIMM = mobilenet_timm((1, 2, 3, 2, 3), V3_BLOCK)
MOBILENET_V3_LARGE_TIMM = mobilenet_timm((1, 2, 3, 4, 2, 3), V3_BLOCK)


def _v2(match: re.Match[str], _: Values) -> str:
    number, norm = int(match["number"] or 0), bool(match["norm"])
    order = ("expand", "depthwise", "project") if number else ("depthwise", "project")
    at, last = order.index(match["part"]), len(order) - 1
    return f"features.{number + 1}.conv." + (f"{at + norm}" if at == last else f"{at}.{int(norm)}")


MOBILENET_V2: Names = {
    "Conv1": "features.0.0",
    "bn_Conv1": "features.0.1",
    f"{V2_BLOCK}_{_PART}": _v2,
    "Conv_1": "features.18.0",
    "Conv_1_bn": "features.18.1",
    "predictions": "classifier.1",
}


def sequential(block: str, part: str, norm: bool, arrays: Values) -> str:
    """A module of torchvision's inverted residuals: activations and squeezes are positions too."""
    numbers = {
        int(k.removeprefix(f"{block}.").split(".")[0]) for k in arrays if k.startswith(block)
    }
    last = max(numbers)
    squeeze = next((n for n in numbers if f"{block}.{n}.fc1.weight" in arrays), None)
    if part in ("reduce", "expand_again"):
        return f"{block}.{squeeze}.fc{1 + (part == 'expand_again')}"
    depthwise = last - 1 - (squeeze is not None)
    at = {"expand": 0, "depthwise": depthwise, "project": last}[part]
    return f"{block}.{at}.{int(norm)}"


_SQUEEZES = {"squeeze_excite_conv": "reduce", "squeeze_excite_conv_1": "expand_again"}


def mobilenet_v3(blocks: int) -> Names:
    """MobileNetV3 of torchvision."""
    return {
        "conv": "features.0.0",
        "conv_bn": "features.0.1",
        f"{V3_BLOCK}_{_PART}": lambda m, arrays: sequential(
            f"features.{int(m['number'] or 0) + 1}.block",
            _SQUEEZES.get(m["part"], m["part"]),
            bool(m["norm"]),
            arrays,
        ),
        "conv_1": f"features.{blocks + 1}.0",
        "conv_1_bn": f"features.{blocks + 1}.1",
        "conv_2": "classifier.0",
        "logits": "classifier.3",
    }


_EFFICIENT = {
    "expand_conv": ("expand", False),
    "expand_bn": ("expand", True),
    "dwconv": ("depthwise", False),
    "dwconv2": ("depthwise", False),
    "bn": ("depthwise", True),
    "se_reduce": ("reduce", False),
    "se_expand": ("expand_again", False),
    "project_conv": ("project", False),
    "project_bn": ("project", True),
}
_EFFICIENT_BLOCK = rf"block(\d)([a-z])_({'|'.join(_EFFICIENT)})"


def efficientnet(last: int) -> Names:
    """EfficientNet, V2 too, of torchvision."""
    return {
        "stem_conv": "features.0.0",
        "stem_bn": "features.0.1",
        _EFFICIENT_BLOCK: lambda m, arrays: sequential(
            f"features.{m[1]}.{letter(m[2])}.block", *_EFFICIENT[m[3]], arrays
        ),
        "top_conv": f"features.{last}.0",
        "top_bn": f"features.{last}.1",
        "predictions": "classifier.1",
    }


def _efficient_timm(match: re.Match[str], arrays: Values) -> str:
    block = f"blocks.{int(match[1]) - 1}.{letter(match[2])}"
    part, norm = _EFFICIENT[match[3]]
    if part in ("reduce", "expand_again"):
        return f"{block}.se.conv_{'reduce' if part == 'reduce' else 'expand'}"
    kinds = {
        "conv": ("project",),
        "conv_exp": ("expand", "project"),
        "conv_pwl": ("expand", "depthwise", "project"),
        "conv_dw": ("depthwise", "project"),
    }
    order = next(parts for kind, parts in kinds.items() if f"{block}.{kind}.weight" in arrays)
    if norm:
        return f"{block}.bn{order.index(part) + 1}"
    names = {
        ("project",): ("conv",),
        ("expand", "project"): ("conv_exp", "conv_pwl"),
        ("expand", "depthwise", "project"): ("conv_pw", "conv_dw", "conv_pwl"),
        ("depthwise", "project"): ("conv_dw", "conv_pw"),
    }
    return f"{block}.{names[order][order.index(part)]}"


EFFICIENTNET_TIMM: Names = {
    "stem_conv": "conv_stem",
    "stem_bn": "bn1",
    _EFFICIENT_BLOCK: _efficient_timm,
    "top_conv": "conv_head",
    "top_bn": "bn2",
    "predictions": "classifier",
}

_CONVNEXT = r".*stage_(\d)_block_(\d)_"
CONVNEXT: Names = {
    ".*_stem_conv": "features.0.0",
    ".*_stem_layernorm": "features.0.1",
    r".*_downsampling_layernorm_(\d)": lambda m, _: f"features.{2 * int(m[1]) + 2}.0",
    r".*_downsampling_conv_(\d)": lambda m, _: f"features.{2 * int(m[1]) + 2}.1",
    f"{_CONVNEXT}(depthwise_conv|layernorm|pointwise_conv_1|pointwise_conv_2)": lambda m, _: (
        f"features.{2 * int(m[1]) + 1}.{m[2]}.block."
        + {"d": "0", "l": "2", "1": "3", "2": "5"}[m[3][-1] if m[3][0] == "p" else m[3][0]]
    ),
    f"{_CONVNEXT}layer_scale": lambda m, _: f"features.{2 * int(m[1]) + 1}.{m[2]}.layer_scale",
    ".*_head_layernorm": "classifier.0",
    ".*_head_dense": "classifier.2",
}
CONVNEXT_TIMM: Names = {
    ".*_stem_conv": "stem.0",
    ".*_stem_layernorm": "stem.1",
    r".*_downsampling_layernorm_(\d)": lambda m, _: f"stages.{int(m[1]) + 1}.downsample.0",
    r".*_downsampling_conv_(\d)": lambda m, _: f"stages.{int(m[1]) + 1}.downsample.1",
    f"{_CONVNEXT}depthwise_conv": r"stages.\1.blocks.\2.conv_dw",
    f"{_CONVNEXT}layernorm": r"stages.\1.blocks.\2.norm",
    rf"{_CONVNEXT}pointwise_conv_(\d)": r"stages.\1.blocks.\2.mlp.fc\3",
    f"{_CONVNEXT}layer_scale": r"stages.\1.blocks.\2.gamma",
    ".*_head_layernorm": "head.norm",
    ".*_head_dense": "head.fc",
}
