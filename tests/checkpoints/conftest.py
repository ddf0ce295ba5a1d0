"""Fixtures for tests of checkpoints."""

from __future__ import annotations

import pytest

from keras_trainops.checkpoints.storage import limits


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the size that counts as large, so that the bombs in tests can be small."""
    monkeypatch.setattr(limits, "_LARGE", 1 << 16)
