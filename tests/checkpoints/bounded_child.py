"""Read a checkpoint in limited memory and time; `bounded.py` runs this as a process.

Arguments: the path, `read` or `cut` (truncate the file to 100 bytes while it is open), and modules
to import first. Prints `read`, or `refused: ` and the message.
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
    """Read every tensor, in 1 GiB more than the libraries need."""
    path, what, *libraries = sys.argv[1:]
    for library in libraries:
        __import__(library)
    with open("/proc/self/statm") as status:
        used = int(status.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
    signal.alarm(60)  # ends a process that hangs
    try:
        with open_checkpoint(path) as checkpoint:
            if what == "cut":
                os.truncate(path, 100)
            for key in checkpoint:
                checkpoint[key]
        print("read")
    except RestoreError as error:
        print(f"refused: {error}".replace("\n", " "))


if __name__ == "__main__":
    main()
