"""Opens a file in little memory and time; `test_bounds.py` runs it as a process.

Arguments: the path, and what happens while it is open (`read` alone, or `cut` to 100 bytes before).
Standard output has `read`, or `refused: ` and the message.
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
    """Reads all that there is, in 1 GiB more than what the libraries need for themselves."""
    path, what, *libraries = sys.argv[1:]
    for library in libraries:
        __import__(library)
    with open("/proc/self/statm") as status:
        used = int(status.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
    signal.alarm(60)  # ends a process that never would
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
