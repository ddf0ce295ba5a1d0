"""Cost of `write_back`, compared with a plain `save_file` of the same bytes.

The model has 64 variables of 8 MB, half a gigabyte in all; the source is in the page cache. A round
runs every variant once, one after the other in one process, the next round in the opposite order;
the first round is dropped. All wait until the file is on the disk. Printed are medians: of the
seconds, and of the rounds' ratios to the first row, with their quartiles. A second table has the
peak of memory beyond that of the model, each in a process of its own.

    python tests/benchmarks/write_back.py [--variables 64] [--rounds 9]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import safetensors.numpy
from restore import MB, SHAPE, TENSOR_MB, fill, make_model, table, timed
from step_time import interleave

import keras_trainops as kt

PLAIN = "save_file, and fsync"
NAMES = {r"layer(\d+)\.weight": r"layer\1/kernel"}


def save_plainly(model: keras.Model, path: str) -> None:
    """Write all values with the library alone."""
    arrays = {
        f"layer{i}.weight": keras.ops.convert_to_numpy(variable.value)
        for i, variable in enumerate(model.weights)
    }
    safetensors.numpy.save_file(arrays, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def variants(model: keras.Model, folder: Path) -> dict[str, Callable[[], Any]]:
    """Return what is compared: plain, as it is, transposed, and every other format."""
    theirs, out = str(folder / "theirs.safetensors"), folder / "ours"
    turned = str(folder / "turned.safetensors")
    if not Path(theirs).exists():
        save_plainly(model, theirs)
        safetensors.numpy.save_file(
            {
                f"layer{i}.weight": keras.ops.convert_to_numpy(variable.value).T.copy()
                for i, variable in enumerate(model.weights)
            },
            turned,
        )

    def write(like: str, ending: str, **options: Any) -> Callable[[], Any]:
        path = f"{out}{ending}"
        return lambda: kt.write_back(model, like, path, rename=NAMES, overwrite=True, **options)

    transposed = {"adapt": {"kernel": kt.adapt.Transpose()}}
    return {
        PLAIN: lambda: save_plainly(model, str(folder / "plain.safetensors")),
        "write_back, .safetensors": write(theirs, ".safetensors"),
        "write_back, transposed": write(turned, ".safetensors", **transposed),
        "write_back, .npz": write(theirs, ".npz"),
        "write_back, .pt": write(theirs, ".pt"),
        "write_back, .ckpt": write(theirs, ".ckpt"),
    }


def memory(line: str) -> int:
    """Return a line of the process's status in MB: VmRSS is what it has, VmHWM the most it had."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) // 1024


def print_memory(count: int, folder: str, names: list[str]) -> None:
    """Print the peak of each variant beyond what the model needs, in MB."""
    print(
        f"\nPeak of memory beyond the model of {count * TENSOR_MB} MB; a tensor has {TENSOR_MB} MB"
    )
    for name in names:
        run = subprocess.run(
            [sys.executable, __file__, "--child", name, "--variables", str(count), folder],
            capture_output=True,
            text=True,
            check=True,
        )
        print(f"  {name:44s} {run.stdout.strip():>7s}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variables", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--child")
    parser.add_argument("folder", nargs="?")
    options = parser.parse_args()
    model = make_model(options.variables)
    fill(model)
    if options.child:
        run = variants(model, Path(options.folder))[options.child]
        ending = options.child.rpartition(" ")[2]
        path = f"{options.folder}/small{ending if ending.startswith('.') else '.npz'}"
        arrays = {"a": np.zeros(SHAPE, "float32")}
        rename = {"a": "layer0/kernel"}
        kt.write_back(make_model(1), arrays, path, rename=rename, overwrite=True)  # imports all
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        before = memory("VmRSS")
        run()
        print(memory("VmHWM") - before)
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = variants(model, Path(folder))
        timing = {name: timed(run) for name, run in runs.items()}
        seconds = interleave(timing, options.rounds, "writing")
        megabytes = options.variables * np.prod(SHAPE) * 4 // MB
        goals = {"write_back, .safetensors": ("x the time", 1.25)}
        table(f"Writing {megabytes} MB", seconds, goals)
        print_memory(options.variables, folder, list(runs))


if __name__ == "__main__":
    main()
