"""Read a checkpoint in limited memory and time; `bounded.py` runs this as a process.

Arguments: `read` or `cut` (cut the file to 100 bytes while it is open), modules to import first
(comma-separated), and paths. Prints a line for each: `read`, or `refused: ` and the message.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import warnings

from keras_trainops.checkpoints.open import open_checkpoint
from keras_trainops.errors import RestoreError

warnings.simplefilter("ignore")


def main() -> None:
    """Read every tensor of each file, in 1 GiB more than the libraries need."""
    what, libraries, *paths = sys.argv[1:]
    for library in filter(None, libraries.split(",")):
        __import__(library)
    with open("/proc/self/statm") as status:
        used = int(status.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
    for path in paths:
        signal.alarm(60)  # ends a process that hangs
        print(_answer(path, what), flush=True)


def _answer(path: str, what: str) -> str:
    try:
        with open_checkpoint(path) as checkpoint:
            if what == "cut":
                os.truncate(path, 100)
            for key in checkpoint:
                checkpoint[key]
        return "read"
    except RestoreError as error:
        return f"refused: {error}".replace("\n", " ")


if __name__ == "__main__":
    main()
