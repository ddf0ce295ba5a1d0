"""Run the command line as `python -m keras_trainops`."""

import sys

from keras_trainops.cli import main

if __name__ == "__main__":
    sys.exit(main())
