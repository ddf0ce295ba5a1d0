"""The settings of a session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """The checked arguments of a `TrainingSession`."""

    logdir: Path
    save_seconds: float | None
    save_steps: int | None
    summary_steps: int | None
    keep: int
    stop_at_step: int | None
    verbose: int
