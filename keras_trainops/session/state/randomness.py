"""The state of the global random generators that shuffle data."""

from __future__ import annotations

import base64
import random
import sys
from typing import Any

import numpy as np


def state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and PyTorch's generators as the libraries give them.

    Taking them is cheap; `to_document` converts them for JSON.
    """
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
    """Convert the result of `state` for JSON."""
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
    """Set the global generators to the states in a document."""
    _set(document, random, np.random)
    torch: Any = sys.modules.get("torch")
    if torch is None or "torch" not in document:
        return
    torch.set_rng_state(_decoded(torch, document["torch"]))
    if len(document["torch_cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all([_decoded(torch, one) for one in document["torch_cuda"]])


def check(document: Any) -> None:
    """Try a document on new generators, without changing the global ones.

    Raises:
        Exception: Any error of the generators, if `to_document` cannot have made the document.
    """
    _set(document, random.Random(), np.random.RandomState())
    if "torch" in document:
        states = [base64.b64decode(text) for text in (document["torch"], *document["torch_cuda"])]
        torch: Any = sys.modules.get("torch")
        if torch is not None:
            torch.Generator().set_state(_tensor(torch, states[0]))


def _set(document: dict[str, Any], python: Any, numpy: Any) -> None:
    """Set the states of `python`, like `random`, and of `numpy`, like `numpy.random`."""
    version, internal, gauss = document["python"]
    python.setstate((version, tuple(internal), gauss))
    name, keys, position, *rest = document["numpy"]
    if not 0 <= position <= len(keys) == 624:  # NumPy itself does not check this
        raise ValueError("the state of NumPy's generator has the wrong size")
    numpy.set_state((name, np.array(keys, "uint32"), position, *rest))


def _encoded(tensor: Any) -> str:
    return base64.b64encode(tensor.numpy().tobytes()).decode("ascii")


def _decoded(torch: Any, text: str) -> Any:
    return _tensor(torch, base64.b64decode(text))


def _tensor(torch: Any, state: bytes) -> Any:
    return torch.from_numpy(np.frombuffer(state, np.uint8).copy())
