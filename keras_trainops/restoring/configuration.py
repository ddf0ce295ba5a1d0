"""The configuration of a network beside its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LARGEST = 1 << 20  # bytes


def config_beside(location: object) -> dict[str, Any] | None:
    """Return the `config.json` in the directory of a checkpoint, or None.

    Args:
        location: The path of the checkpoint, or of its directory.
    """
    if not isinstance(location, str):
        return None
    path = Path(location)
    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        if not file.is_file() or file.stat().st_size > _LARGEST:
            return None
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None
