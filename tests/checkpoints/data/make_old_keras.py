"""Write the files of older Keras to this directory. Run it to create them again.

    python tests/checkpoints/data/make_old_keras.py

Each version is installed into a temporary directory. The model is that of `old_keras_model.py`
beside this directory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# One of each minor version that runs on today's Python.
VERSIONS = (
    *("3.3.3", "3.4.1", "3.5.0", "3.6.0", "3.7.0", "3.8.0"),
    *("3.9.2", "3.10.0", "3.11.3", "3.12.0", "3.13.2", "3.14.0"),
)


def install_and_write(version: str) -> None:
    """Run `write` below in another Keras."""
    with tempfile.TemporaryDirectory() as directory:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", directory, f"keras=={version}"], check=True)
        paths = os.pathsep.join([directory, str(HERE.parent), str(HERE.parents[1])])
        environment = {**os.environ, "PYTHONPATH": paths, "KERAS_BACKEND": "numpy"}
        subprocess.run([sys.executable, __file__, version], env=environment, check=True)


def write(version: str) -> None:
    """Save the whole model, and its weights."""
    import keras

    from tests.checkpoints.old_keras_model import old_keras_model

    assert keras.__version__ == version, keras.__version__
    name = "_".join(version.split(".")[:2])
    model = old_keras_model()
    model.save(HERE / f"keras_{name}.keras")
    if name == "3_3":  # the last version that stored no names
        model.save_weights(HERE / f"keras_{name}.weights.h5")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(sys.argv[1])
    else:
        for each in VERSIONS:
            install_and_write(each)
