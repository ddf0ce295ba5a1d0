"""Offsets of position tables: leading rows that belong to no position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TWO = {"bart", "mbart", "opt", "biogpt", "mvp", "plbart", "trocr"}
_AFTER_PADDING = {
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "mpnet", "esm"),
    *("data2vec-text", "roberta-prelayernorm", "xmod", "ibert", "luke", "markuplm"),
}


def position_offset(config: Mapping[str, Any]) -> int | None:
    """Return the number of leading rows that belong to no position, or None if it is unknown.

    Args:
        config: Contents of the model's `config.json`.

    Example:
        >>> position_offset({"model_type": "roberta", "pad_token_id": 1})
        2
        >>> position_offset({})
    """
    model = config.get("model_type")
    if model in _TWO:
        return 2
    padding = config.get("pad_token_id")
    if model in _AFTER_PADDING and isinstance(padding, int):
        return padding + 1
    return None
