"""The processes of one run: who this one is, and what all of them agree on."""

from __future__ import annotations

from keras_trainops.processes.connection import ProcessTimeoutError, settled
from keras_trainops.processes.processes import Processes, checksum_of

__all__ = ["ProcessTimeoutError", "Processes", "checksum_of", "settled"]
