"""Encoders of images beside encoders of text, whose variables have the same paths."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np

from tests.real.architectures.case import Case
from tests.real.architectures.oracles import Oracle, conv, linear, mapped, part, together
from tests.real.architectures.transformers_cases import FILE, images_and_tokens, transformers_case
from tests.real.architectures.transformers_decoders import affine, fused, norm
from tests.real.architectures.transformers_encoders import BERT
from tests.real.architectures.transformers_images import VIT

both = partial(images_and_tokens, size=16)
IMAGE = {"image_shape": (16, 16, 3)}
LENGTH = {"max_sequence_length": 13}


def layers(model: str, names: dict[str, str]) -> dict[str, object]:
    """Rules for an encoder's blocks, for names of Keras's layers by those of the file."""
    layer = rf"{model}.encoder.layers.\1"
    attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    rules: dict[str, object] = {}
    for name, key in {**attention, "attention_output": "out_proj"}.items():
        rules |= affine(rf".*_(\d+)/{names['attention']}/{name}", f"{layer}.self_attn.{key}")
    for key in ("layer_norm1", "layer_norm2"):
        rules |= norm(rf".*_(\d+)/{names[key]}", f"{layer}.{key}")
    for key in ("fc1", "fc2"):
        rules |= affine(rf".*_(\d+)/{names[key]}", f"{layer}.mlp.{key}")
    return rules


def embeddings(model: str) -> dict[str, object]:
    place = f"{model}.embeddings"
    return {
        "class_embedding": f"{place}.class_embedding",
        **affine("patch_embedding", f"{place}.patch_embedding", conv),
        "token_embedding/embeddings": f"{place}.token_embedding.weight",
        "position_embedding/embeddings": f"{place}.position_embedding.weight",
    }


def pair(vision: dict[str, object], text: dict[str, object], rest: dict[str, object]) -> Oracle:
    """Rules for each encoder, and for what is in neither."""

    def outside(model: keras.Model) -> list[keras.Variable]:
        encoders = (model.vision_encoder, model.text_encoder)
        inside = {id(variable) for encoder in encoders for variable in encoder.weights}
        return [variable for variable in model.weights if id(variable) not in inside]

    return together(
        mapped(vision, FILE, lambda model: model.vision_encoder.weights),
        mapped(text, FILE, lambda model: model.text_encoder.weights),
        mapped(rest, FILE, outside),
    )


CLIP_NAMES = {
    "attention": "attention",
    "layer_norm1": "layer_norm_1",
    "layer_norm2": "layer_norm_2",
    "fc1": "dense_1",
    "fc2": "dense_2",
}
CLIP = pair(
    {
        **embeddings("vision_model"),
        **layers("vision_model", CLIP_NAMES),
        **norm("pre_layer_norm", "vision_model.pre_layrnorm"),
        **norm("layer_norm", "vision_model.post_layernorm"),
    },
    {
        **embeddings("text_model"),
        **layers("text_model", CLIP_NAMES),
        **norm("layer_norm", "text_model.final_layer_norm"),
    },
    {
        "vision_projection/kernel": ("visual_projection.weight", linear),
        "text_projection/kernel": ("text_projection.weight", linear),
        "logit_scale": "logit_scale",
    },
)

SIGLIP_NAMES = {
    "attention": "self_attn",
    "layer_norm1": "layer_norm1",
    "layer_norm2": "layer_norm2",
    "fc1": "mlp/fc1",
    "fc2": "mlp/fc2",
}
POOL = "vision_model.head.attention"
SIGLIP = pair(
    {
        **embeddings("vision_model"),
        **{
            path: (key.replace("in_proj.", "in_proj_"), take)
            for path, (key, take) in fused(
                "head/attention", f"{POOL}.in_proj", "query key value", part
            ).items()
        },
        **affine("head/attention/attention_output", f"{POOL}.out_proj"),
        **norm("head/layernorm", "vision_model.head.layernorm"),
        **affine("head/mlp/fc1", "vision_model.head.mlp.fc1"),
        **affine("head/mlp/fc2", "vision_model.head.mlp.fc2"),
        "head/variable": "vision_model.head.probe",
        **layers("vision_model", SIGLIP_NAMES),
        **norm("post_layer_norm", "vision_model.post_layernorm"),
    },
    {
        **embeddings("text_model"),
        **layers("text_model", SIGLIP_NAMES),
        **norm("post_layer_norm", "text_model.final_layer_norm"),
        **affine("head", "text_model.head"),
    },
    {"logit_scale": "logit_scale", "logit_bias": "logit_bias"},
)


def clip_target() -> keras.Model:
    import keras_hub

    models = keras_hub.models
    vision = models.CLIPVisionEncoder(4, 24, 2, 3, 36, **IMAGE)
    positions = vision.embedding.position_ids  # zeros: neither Keras nor the file has the numbers
    positions.assign(np.arange(17)[None])
    text = models.CLIPTextEncoder(41, 24, 24, 2, 3, 36, **LENGTH)
    return models.CLIPBackbone(vision, text, projection_dim=20)


def siglip_target() -> keras.Model:
    import keras_hub

    models = keras_hub.models
    vision = models.SigLIPVisionEncoder(4, 24, 2, 3, 36, **IMAGE)
    text = models.SigLIPTextEncoder(41, 24, 24, 2, 3, 36, **LENGTH)
    return models.SigLIPBackbone(vision, text)


CASES: tuple[Case, ...] = (
    transformers_case(
        "clip",
        "CLIPModel",
        "CLIPBackbone",
        example=both,
        target=clip_target,
        oracle=CLIP,
        text_config={**BERT, "eos_token_id": 40},
        vision_config=VIT,
        projection_dim=20,
    ),
    transformers_case(
        "metaclip2",
        "MetaClip2Model",
        "MetaCLIP2Backbone",
        example=partial(both, end=2),
        text_config={**BERT, "eos_token_id": 2},
        vision_config=VIT,
        projection_dim=20,
    ),
    transformers_case(
        "siglip",
        "SiglipModel",
        "SigLIPBackbone",
        example=both,
        target=siglip_target,
        oracle=SIGLIP,
        text_config={**BERT, "projection_size": 24},
        vision_config=VIT,
    ),
)
