"""Fixtures for tests of the command line: small files to read."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tests.cli.command_line import THEIRS
from tests.helpers import two_layers


@pytest.fixture
def theirs() -> str:
    np.savez("theirs.npz", **THEIRS)
    return "theirs.npz"


@pytest.fixture
def fitting() -> str:
    """The same tensors with Keras's names of variables."""
    leaves = {"w": "kernel", "b": "bias"}
    np.savez(
        "fitting.npz",
        **{f"{k[:-1]}{leaves[k[-1]]}": v for k, v in THEIRS.items() if k.startswith("net")},
    )
    return "fitting.npz"


@pytest.fixture
def model() -> str:
    two_layers(seed=1, name="net").save("model.keras")
    keras.backend.clear_session()
    return "model.keras"
