"""Writing files as real libraries do, with random values in every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np


@cache
def library(name: str) -> Any:
    """Import a library that may use torchvision.

    A torchvision wheel built for another release of PyTorch has no operators of its own. Importing
    it only needs their names.
    """
    import importlib

    import torch

    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", signature)
    return importlib.import_module(name)


def randomise(module: Any, seed: int = 0) -> Any:
    """Give every parameter and running statistic random values that keep activations in size.

    Zeros and ones, as in new normalisations and biases, would hide a wrong restore.
    """
    import torch

    rng = np.random.default_rng(seed)
    statistics = {k: v for k, v in module.named_buffers() if k.endswith(("_mean", "_var"))}
    with torch.no_grad():
        for name, tensor in {**dict(module.named_parameters()), **statistics}.items():
            tensor.copy_(torch.from_numpy(random_values(name, tuple(tensor.shape), rng)))
    return module.eval()


def random_values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Values for a tensor with PyTorch's layout: variances positive, factors around one."""
    factor = len(shape) < 2 and not name.endswith(("bias", "_mean"))
    if factor or name.endswith("_var"):
        drawn = rng.uniform(0.5, 1.5, shape)
    elif len(shape) < 2:
        drawn = rng.normal(0, 0.1, shape)
    else:
        drawn = rng.normal(0, np.sqrt(1 / np.prod(shape[1:])), shape)
    return drawn.astype("float32")


def save_state(module: Any, path: Path) -> Path:
    """Write `state_dict()` as safetensors (each tensor once) or with `torch.save`."""
    import torch
    from safetensors.torch import save_file

    state = {key: tensor.detach().contiguous() for key, tensor in module.state_dict().items()}
    if path.suffix == ".safetensors":
        unique = {tensor.data_ptr(): key for key, tensor in reversed(state.items())}
        kept = {k: v for k, v in state.items() if unique[v.data_ptr()] == k or not v.numel()}
        save_file(kept, path)
    else:
        torch.save(state, path)
    return path


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file written here."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path) as stored:
            return dict(stored)
    import torch

    return {k: v.numpy() for k, v in torch.load(path, weights_only=True).items()}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Join the names of nested dicts with "/"."""
    flat: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{name}/") if nested else {prefix + name: np.asarray(value)}
    return flat
