from __future__ import annotations

from pathlib import Path

import pytest

import keras_trainops as kt

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {}}', "{" * 9999]
)
def test_other_json_is_not_an_index(text: str) -> None:
    Path("w.json").write_text(text)
    with pytest.raises(kt.RestoreError, match="is not a checkpoint of a supported format"):
        kt.open_checkpoint("w.json")
