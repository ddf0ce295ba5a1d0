"""Foreign files of a small network, and comparisons of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import safetensors.numpy

import keras_trainops as kt
from tests.helpers import randomise

RENAME = {
    r"enc\.attn\.(query|key|value)\.(weight|bias)": r"attention/\1/*",
    r"enc\.attn\.out\.(weight|bias)": r"attention/attention_output/*",
    r"enc\.norm\.(weight|bias)": r"norm/*",
    r"head\.(weight|bias)": r"head/*",
}
WIDTH, HEADS, SIZE, CLASSES = 6, 2, 3, 5


def network(classes: int = CLASSES, seed: int = 1) -> keras.Model:
    """Attention, a norm and a head."""
    inputs = keras.Input((4, WIDTH))
    attention = keras.layers.MultiHeadAttention(HEADS, SIZE, name="attention")
    x = keras.layers.LayerNormalization(name="norm")(attention(inputs, inputs))
    outputs = keras.layers.Dense(classes, name="head")(x)
    return randomise(keras.Model(inputs, outputs, name="network"), seed)


def tensors(classes: int = CLASSES, dtype: Any = "float32") -> dict[str, np.ndarray]:
    """What another library has stored: PyTorch's layouts, a table without a variable, a step."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(dtype)

    inner = HEADS * SIZE
    found = {"head.weight": normal(classes, WIDTH), "head.bias": normal(classes)}
    for name in ("value", "key", "query"):
        found[f"enc.attn.{name}.weight"] = normal(inner, WIDTH)
        found[f"enc.attn.{name}.bias"] = normal(inner)
    return {
        **found,
        "enc.attn.out.weight": normal(WIDTH, inner),
        "enc.attn.out.bias": normal(WIDTH),
        "enc.rotary.table": normal(4, 2),
        "enc.norm.weight": normal(WIDTH),
        "enc.norm.bias": normal(WIDTH),
        "global_step": np.int64([7]),
    }


def saved(path: str, arrays: dict[str, np.ndarray] | None = None) -> str:
    arrays = tensors() if arrays is None else arrays
    if path.endswith(".npz"):
        np.savez(path, **arrays)
    else:
        safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    return path


def rules(model: keras.Model) -> dict[str, Any]:
    return {"rename": RENAME, "adapt": kt.adapt.from_torch(model)}


def arrays_in(path: str | Path) -> dict[str, np.ndarray]:
    with kt.open_checkpoint(path) as checkpoint:
        return {key: checkpoint[key] for key in checkpoint}


def assert_equal_files(
    ours: str | Path, theirs: str | Path, *, without: tuple[str, ...] = ()
) -> None:
    """The same names in the same order, and the same dtypes, shapes and bytes."""
    found, wanted = arrays_in(ours), arrays_in(theirs)
    assert list(found) == [key for key in wanted if key not in without]
    for key, array in found.items():
        assert (array.shape, array.dtype) == (wanted[key].shape, wanted[key].dtype), key
        assert array.tobytes() == wanted[key].tobytes(), key


def hugging_face(directory: str, **config: Any) -> str:
    """A directory as `save_pretrained` writes it."""
    Path(directory).mkdir()
    saved(f"{directory}/model.safetensors", {k: v for k, v in tensors().items() if "." in k})
    Path(directory, "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    Path(directory, "vocab.txt").write_text("[PAD]\nword\n")
    return directory


BFLOAT16 = ml_dtypes.bfloat16
