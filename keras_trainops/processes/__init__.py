"""The processes of one run: who this one is, and what all of them agree on."""

from __future__ import annotations

from keras_trainops.processes.processes import (
    Processes,
    ProcessTimeoutError,
    checksum_of,
    settled,
)

__all__ = ["ProcessTimeoutError", "Processes", "checksum_of", "settled"]
