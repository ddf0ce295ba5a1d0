"""Encoders of images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.real.architectures.case import Case
from tests.real.architectures.oracles import listed
from tests.real.architectures.transformers_cases import FILE, images, transformers_case

SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 16,
    "patch_size": 4,
}
VIT = {**SHAPE, "intermediate_size": 36}
DINO = {**SHAPE, "mlp_ratio": 2}
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 12,
    "depths": [1, 2],
    "num_heads": [2, 3],
    "window_size": 4,
}
small = partial(images, size=16)

SEGFORMER = {
    "depths": [1, 2, 1],
    "hidden_sizes": [8, 12, 20],
    "num_attention_heads": [1, 2, 4],
    "sr_ratios": [4, 2, 1],
    "patch_sizes": [7, 3, 3],
    "strides": [4, 2, 2],
}


def segformer_keys() -> Iterator[str]:
    """Keys in the order of the variables, whose names have running numbers."""

    def affine(*modules: str) -> Iterator[str]:
        for module in modules:
            yield from (f"encoder.{module}.weight", f"encoder.{module}.bias")

    depths, ratios = SEGFORMER["depths"], SEGFORMER["sr_ratios"]
    for stage, (depth, ratio) in enumerate(zip(depths, ratios, strict=True)):
        patches = f"patch_embeddings.{stage}"
        yield from affine(f"{patches}.proj", f"{patches}.layer_norm")
        for block in (f"block.{stage}.{number}" for number in range(depth)):
            attention = f"{block}.attention.self"
            yield from affine(f"{block}.layer_norm_1")
            yield from affine(*(f"{attention}.{name}" for name in ("query", "key", "value")))
            yield from affine(f"{block}.attention.output.dense")
            if ratio > 1:
                yield from affine(f"{attention}.sr", f"{attention}.layer_norm")
            yield from affine(f"{block}.layer_norm_2", f"{block}.mlp.dense1")
            yield from affine(f"{block}.mlp.dwconv.dwconv", f"{block}.mlp.dense2")
        yield from affine(f"layer_norm.{stage}")


def two_forms(name: str, model: str, backbone: str, **options: Any) -> tuple[Case, Case]:
    """The file, and `state_dict()`, whose names differ."""
    return (
        transformers_case(name, model, backbone, **options),
        transformers_case(f"{name}-memory", model, backbone, in_memory=True, **options),
    )


CASES = (
    *two_forms("vit", "ViTForImageClassification", "ViTBackbone", example=small, **VIT),
    *two_forms(
        "deit", "DeiTForImageClassificationWithTeacher", "DeiTBackbone", example=small, **VIT
    ),
    *two_forms(
        "swin",
        "SwinForImageClassification",
        "SwinTransformerBackbone",
        example=partial(images, size=32),
        **SWIN,
    ),
    transformers_case("dinov2", "Dinov2Model", "DINOV2Backbone", example=small, **DINO),
    transformers_case(
        "dinov2-gated", "Dinov2Model", "DINOV2Backbone", example=small, use_swiglu_ffn=True, **DINO
    ),
    transformers_case(
        "dinov3", "DINOv3ViTModel", "DINOV3Backbone", example=small, num_register_tokens=2, **VIT
    ),
    transformers_case(
        "segformer",
        "SegformerModel",
        "MiTBackbone",
        example=partial(images, size=64),
        target={
            "layerwise_depths": SEGFORMER["depths"],
            "num_layers": 3,
            "layerwise_num_heads": SEGFORMER["num_attention_heads"],
            "layerwise_sr_ratios": SEGFORMER["sr_ratios"],
            "max_drop_path_rate": 0.0,
            "layerwise_patch_sizes": SEGFORMER["patch_sizes"],
            "layerwise_strides": SEGFORMER["strides"],
            "image_shape": (64, 64, 3),
            "hidden_dims": SEGFORMER["hidden_sizes"],
        },
        oracle=listed(list(segformer_keys()), FILE),
        num_encoder_blocks=3,
        mlp_ratios=[4, 4, 4],
        hidden_act="gelu_new",  # as keras_hub computes it
        **SEGFORMER,
    ),
)
