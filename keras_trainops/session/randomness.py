"""The state of the global random generators that data are shuffled with."""

from __future__ import annotations

import base64
import random
import sys
from typing import Any

import numpy as np


def state() -> dict[str, Any]:
    """The states, as they are: `to_document` makes a document of them."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=True),
    }
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        states["torch"] = torch.get_rng_state()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            states["torch_cuda"] = torch.cuda.get_rng_state_all()
    return states


def to_document(states: dict[str, Any]) -> dict[str, Any]:
    """What JSON can hold."""
    name, keys, *rest = states["numpy"]
    document: dict[str, Any] = {
        "python": states["python"],
        "numpy": [name, keys.tolist(), *rest],
    }
    if "torch" in states:
        document["torch"] = _encoded(states["torch"])
        document["torch_cuda"] = [_encoded(one) for one in states.get("torch_cuda", [])]
    return document


def restore(document: dict[str, Any]) -> None:
    """Puts the generators into the states of a document."""
    version, internal, gauss = document["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = document["numpy"]
    np.random.set_state((name, np.array(keys, "uint32"), *rest))
    torch: Any = sys.modules.get("torch")
    if torch is None or "torch" not in document:
        return
    torch.set_rng_state(_decoded(torch, document["torch"]))
    if len(document["torch_cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all([_decoded(torch, one) for one in document["torch_cuda"]])


def _encoded(tensor: Any) -> str:
    return base64.b64encode(tensor.numpy().tobytes()).decode("ascii")


def _decoded(torch: Any, text: str) -> Any:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), np.uint8).copy())
