from __future__ import annotations

from typing import Any

import pytest

from keras_trainops.layouts.positions import position_offset

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("config", "offset"),
    [
        ({"model_type": "opt"}, 2),
        ({"model_type": "bart", "pad_token_id": 7}, 2),
        ({"model_type": "roberta", "pad_token_id": 1}, 2),
        ({"model_type": "xlm-roberta", "pad_token_id": 0}, 1),
        ({"model_type": "roberta"}, None),
        ({"model_type": "roberta", "pad_token_id": None}, None),
        ({"model_type": "bert", "pad_token_id": 0}, None),
        ({}, None),
    ],
)
def test_the_configuration_tells_the_offset(config: dict[str, Any], offset: int | None) -> None:
    assert position_offset(config) == offset
