"""Cost of a restore, compared with the original tool of each format and the bare minimum.

The model has 128 variables of 8 MB, 1 GB in all, unless `--variables` says otherwise; the files
are in the page cache. Everything is paired: a round runs every variant once, one after the other
in one process, the next round in the opposite order; the first round is dropped. Printed are
medians: of the seconds, and of the rounds' ratios to the first row of a table, with their
quartiles.

    python tests/benchmarks/restore.py [--quick] [--variables 64] [speed] [part] [memory] [planning]
        [import]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import safetensors.numpy
import tensorflow as tf
from step_time import interleave

import keras_trainops as kt
from keras_trainops.backends import backend
from keras_trainops.checkpoints.storage.raw import aligned

SHAPE = (1024, 2048)
MB = 1 << 20
TENSOR_MB = SHAPE[0] * SHAPE[1] * 4 // MB


class Kernel(keras.layers.Layer):
    """One variable."""

    def build(self, input_shape: object) -> None:
        self.kernel = self.add_weight(shape=SHAPE, initializer="zeros", name="kernel")

    def call(self, x: object) -> object:
        return x


def make_model(count: int) -> keras.Model:
    """A model of so many variables."""
    x = inputs = keras.Input((2,))
    for i in range(count):
        x = Kernel(name=f"layer{i}")(x)
    return keras.Model(inputs, x, name="model")


def fill(model: keras.Model) -> None:
    """Random values, which no file system compresses."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.standard_normal(SHAPE, "float32"))


class Files:
    """The model's weights in every format, written when they are first asked for."""

    def __init__(self, folder: str, count: int, few: int) -> None:
        self.folder = Path(folder)
        self.model, self.small = make_model(count), make_model(few)
        for model in (self.model, self.small):
            fill(model)

    def _once(self, name: str, write: Callable[[str], object]) -> str:
        path = str(self.folder / name)
        if not list(self.folder.glob(f"{name}*")):
            write(path)
        return path

    def arrays(self) -> dict[str, np.ndarray]:
        """All values, by path."""
        return {v.path: keras.ops.convert_to_numpy(v.value) for v in self.model.weights}

    def h5(self) -> str:
        """A `.weights.h5` file."""
        return self._once("w.weights.h5", self.model.save_weights)

    def keras(self) -> str:
        """A `.keras` file, of a smaller model: stock reads it at a crawl."""
        return self._once("w.keras", self.small.save)

    def checkpoint(self) -> str:
        """A TF2 object-based checkpoint."""
        return self._once("tf2", lambda path: tf.train.Checkpoint(model=self.model).write(path))

    def tf1(self) -> str:
        """A TF1 name-based checkpoint."""

        def write(path: str) -> None:
            arrays = self.arrays()
            with tf.Graph().as_default(), tf.compat.v1.Session() as session:
                value = tf.compat.v1.placeholder(tf.float32, SHAPE)
                for name, array in arrays.items():
                    variable = tf.compat.v1.get_variable(
                        name, SHAPE, initializer=zeros(), use_resource=True
                    )
                    session.run(variable.initializer)
                    session.run(variable.assign(value), {value: array})
                tf.compat.v1.train.Saver().save(session, path, write_meta_graph=False)

        return self._once("tf1", write)

    def safetensors(self) -> str:
        """A `.safetensors` file."""
        return self._once(
            "w.safetensors", lambda path: safetensors.numpy.save_file(self.arrays(), path)
        )


def zeros() -> object:
    """The initialiser of a TF1 graph."""
    return tf.compat.v1.zeros_initializer()


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """Seconds that `run` takes."""

    def seconds() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return seconds


def table(
    title: str, seconds: dict[str, Sequence[float]], goals: dict[str, tuple[str, float]]
) -> None:
    """Prints a row per variant, with its ratio to the first.

    Args:
        title: What is compared.
        seconds: By variant.
        goals: By variant "x faster" or "x the time" (than the first row's), and how many.
    """
    (reference, base), *_ = seconds.items()
    print(f"\n{title}, {len(base)} rounds")
    print(f"  {'':44s} {'s':>7s}")
    for name, times in seconds.items():
        row = f"  {name:44s} {statistics.median(times):7.3f}"
        if name != reference:
            kind, goal = goals.get(name, ("x the time", 0.0))
            faster = kind == "x faster"
            ratios = [b / t if faster else t / b for t, b in zip(times, base, strict=True)]
            low, middle, high = statistics.quantiles([*ratios, *ratios], n=4, method="inclusive")
            row += f"   {middle:6.2f} {kind}  ({low:.2f} to {high:.2f})"
            if goal:
                reached = middle >= goal if faster else middle <= goal
                row += f"  {goal:.2f} {'reached' if reached else 'missed'}"
        print(row, flush=True)


def floor(path: str, model: keras.Model) -> None:
    """Reads a file once, into memory that the variables take over: the least there is to do."""
    values = []
    with open(path, "rb", buffering=0) as file:
        for variable in model.weights:
            tensor, memory = backend().empty_tensor(SHAPE, np.dtype("float32")) or (None, None)
            memory = aligned(SHAPE, np.dtype("float32")) if memory is None else memory
            file.readinto(memory.reshape(-1).view("uint8").data)
            values.append((variable, memory if tensor is None else tensor))
    for variable, value in values:
        variable.assign(value)


def read_and_assign(path: str, model: keras.Model) -> None:
    """Reads the bytes of a file once, into one buffer that Keras copies from."""
    buffer = np.empty(SHAPE, "float32")
    view = buffer.reshape(-1).view("uint8").data
    with open(path, "rb", buffering=0) as file:
        for variable in model.weights:
            file.readinto(view)
            variable.assign(buffer)


def load_and_assign(path: str, model: keras.Model) -> None:
    """Read and assign as users of safetensors do."""
    arrays = safetensors.numpy.load_file(path)
    for variable in model.weights:
        variable.assign(arrays[variable.path])


def slim_restore(path: str, count: int) -> Callable[[], object]:
    """`assign_from_checkpoint_fn` in a session."""
    import tf_slim as slim

    graph = tf.Graph()
    with graph.as_default():
        variables = {
            f"layer{i}/kernel": tf.compat.v1.get_variable(
                f"layer{i}/kernel", SHAPE, initializer=zeros(), use_resource=True
            )
            for i in range(count)
        }
        init = slim.assign_from_checkpoint_fn(path, variables)
        session = tf.compat.v1.Session()
        session.run(tf.compat.v1.global_variables_initializer())

    def restore() -> None:
        with graph.as_default():
            init(session)

    return restore


def speed(files: Files, rounds: int) -> None:
    """Each format beside the tool that it comes from."""
    model, small = files.model, files.small
    count = len(model.weights)
    size = f"{count * TENSOR_MB} MB in {count} tensors"
    path = files.safetensors()
    runs = {
        "floor: read into the variables' memory": lambda: floor(path, model),
        "ours, .safetensors": lambda: kt.restore(model, path),
        "ours, read once": lambda: kt.restore(model, path, memory="once"),
        "ours, bounded memory": lambda: kt.restore(model, path, memory="bounded"),
        "read into a buffer, assign": lambda: read_and_assign(path, model),
        "safetensors load_file, assign": lambda: load_and_assign(path, model),
    }
    compare("safetensors", size, runs, {"ours, .safetensors": ("x the time", 1.1)}, rounds)

    h5 = files.h5()
    runs = {
        "stock load_weights, .weights.h5": lambda: model.load_weights(h5),
        "ours, .weights.h5": lambda: kt.restore(model, h5),
    }
    compare(".weights.h5", size, runs, {"ours, .weights.h5": ("x faster", 3.0)}, rounds)

    prefix = files.checkpoint()
    reader = tf.train.Checkpoint(model=model)
    tf1 = files.tf1()
    runs = {
        "tf.train.Checkpoint.read": lambda: reader.read(prefix),
        "ours, TF2 checkpoint": lambda: kt.restore(model, prefix),
    }
    compare("TF2 checkpoint", size, runs, {"ours, TF2 checkpoint": ("x faster", 2.5)}, rounds)
    runs = {
        "tf_slim assign_from_checkpoint_fn": slim_restore(tf1, count),
        "ours, TF1 checkpoint": lambda: kt.restore(model, tf1),
    }
    compare("TF1 checkpoint", size, runs, {"ours, TF1 checkpoint": ("x faster", 2.5)}, rounds)

    archive, few = files.keras(), len(small.weights)
    runs = {
        "stock load_weights, .keras": lambda: small.load_weights(archive),
        "ours, .keras": lambda: kt.restore(small, archive),
    }
    size = f"{few * TENSOR_MB} MB in {few} tensors"
    goals = {"ours, .keras": ("x faster", 15.0)}
    compare(".keras", size, runs, goals, min(rounds, 2))


def compare(
    title: str,
    size: str,
    runs: dict[str, Callable[[], object]],
    goals: dict[str, tuple[str, float]],
    rounds: int,
) -> None:
    """Runs and prints one table."""
    timers = {name: timed(run) for name, run in runs.items()}
    table(f"{title}: {size}", interleave(timers, rounds, title), goals)


def part(files: Files, rounds: int) -> None:
    """A restore that selects a tenth of the bytes."""
    tenth = [f"layer{i}" for i in range(len(files.model.weights) // 10)]
    for name, path in {
        ".safetensors": files.safetensors(),
        ".weights.h5": files.h5(),
        "TF2 checkpoint": files.checkpoint(),
    }.items():
        runs = {
            f"all, {name}": lambda path=path: kt.restore(files.model, path),
            f"a tenth, {name}": lambda path=path: kt.restore(files.model, path, include=tenth),
        }
        goals = {f"a tenth, {name}": ("x the time", 0.12)}
        compare(f"A part, {name}", f"{len(tenth)} of the tensors", runs, goals, rounds)


CHILD = """
import sys
import restore
import keras_trainops as kt
path, count = sys.argv[1], int(sys.argv[2])
tiny = restore.make_model(1)  # what is imported and set up once is no part of it
tiny.save_weights(sys.argv[4])
tiny.load_weights(sys.argv[4])
kt.restore(tiny, sys.argv[4])
del tiny
model = restore.make_model(count)
print("start", flush=True); sys.stdin.readline()
if sys.argv[3] == "stock":
    model.load_weights(path)
else:
    kt.restore(model, path, memory=sys.argv[3])
print("end", flush=True); sys.stdin.readline()
"""


def memory(files: Files, rounds: int) -> None:
    """The highest anonymous memory while a fresh process restores, above that of its model."""
    count = len(files.model.weights)
    whole = count * TENSOR_MB
    print(f"\nPeak memory above that of the model, {whole} MB; largest tensor {TENSOR_MB} MB")
    for name, path, who in (
        ("bounded, .safetensors", files.safetensors(), "bounded"),
        ("bounded, .weights.h5", files.h5(), "bounded"),
        ("bounded, TF2 checkpoint", files.checkpoint(), "bounded"),
        ("once, .safetensors", files.safetensors(), "once"),
        ("once, TF2 checkpoint", files.checkpoint(), "once"),
        ("stock load_weights, .weights.h5", files.h5(), "stock"),
    ):
        above = peak_above([path, str(count), who, str(files.folder / "tiny.weights.h5")])
        goal = {"bounded": TENSOR_MB + 64, "once": whole + TENSOR_MB + 64}.get(who)
        row = f"  {name:44s} {above:7.0f} MB"
        if goal is not None:
            row += f"  {goal} {'reached' if above <= goal else 'missed'}"
        print(row, flush=True)


def peak_above(arguments: Sequence[str]) -> float:
    """Runs `CHILD` and watches it from here, so that the watching takes none of its time."""
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": here},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.readline()
    before = peak = anonymous_mb(child.pid)
    os.set_blocking(child.stdout.fileno(), False)
    child.stdin.write("\n")
    child.stdin.flush()
    while not child.stdout.readline():
        peak = max(peak, anonymous_mb(child.pid))
        time.sleep(0.001)
    child.communicate("\n")
    return peak - before


def anonymous_mb(pid: int) -> float:
    """Memory that is no page of a file, in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


class Many(keras.layers.Layer):
    """So many scalars."""

    def __init__(self, count: int) -> None:
        super().__init__(name="net")
        for i in range(count):
            self.add_weight(shape=(), name=f"part{i % 200}_unit{i // 200}")
        self.built = True

    def call(self, x: object) -> object:
        return x


def planning(rounds: int, most: int) -> None:
    """Seconds of planning alone, for more variables and keys, and for more rules."""
    print("\nPlanning, variables = keys")
    print(f"  {'variables':>10s} {'rules':>6s} {'s':>7s}")
    value = np.zeros((), "float32")
    for count in (most // 4, most // 2, most):
        inputs = keras.Input((2,))
        model = keras.Model(inputs, Many(count)(inputs))
        arrays = {f"their/p{i % 200}/u{i // 200}": value for i in range(count)}
        for rules in (50, 100, 200):
            width = 200 // rules
            rename = {
                f"their/p({'|'.join(str(r * width + k) for k in range(width))})/u(\\d+)": (
                    r"net/part\1_unit\2"
                )
                for r in range(rules)
            }
            times = []
            for _ in range(max(rounds, 3)):
                report = kt.plan_restore(model, arrays, rename=rename)
                assert report.problems == ()
                assert len(report.restored) == count
                times.append(report.seconds)
            print(f"  {count:10d} {rules:6d} {statistics.median(times):7.3f}", flush=True)


def importing(rounds: int) -> None:
    """Time `import keras_trainops` after Keras is imported."""
    code = (
        "import keras, time; t = time.perf_counter(); import keras_trainops; "
        "print(time.perf_counter() - t)"
    )
    times = [
        float(
            subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            ).stdout.split()[-1]
        )
        for _ in range(max(rounds, 3))
    ]
    median = statistics.median(times)
    verdict = "reached" if median <= 0.03 else "missed"
    print(f"\nimport keras_trainops after import keras: {median:.3f} s  0.03 {verdict}")


def main() -> None:
    sections = ["speed", "part", "memory", "planning", "import"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(sections)}")
    parser.add_argument("--quick", action="store_true", help="a smoke test: small, few rounds")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--variables", type=int, default=128, help="of 8 MB each")
    options = parser.parse_args()
    chosen = options.sections or sections
    if not set(chosen) <= set(sections):
        parser.error(f"the sections are: {', '.join(sections)}")
    rounds = 2 if options.quick else options.rounds
    packages = ["keras", "tensorflow", "h5py", "safetensors", "tf_slim", "keras_trainops"]
    print(", ".join(f"{p} {version(p)}" for p in packages))
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load average {load}; {', '.join(chosen)}")
    with tempfile.TemporaryDirectory() as folder:
        if {"speed", "part", "memory"} & set(chosen):
            count = 12 if options.quick else options.variables
            files = Files(folder, count, max(4, count // 4))
            for name, run in (("speed", speed), ("part", part), ("memory", memory)):
                if name in chosen:
                    run(files, rounds)
    if "planning" in chosen:
        planning(rounds, 2000 if options.quick else 20000)
    if "import" in chosen:
        importing(rounds)


if __name__ == "__main__":
    main()
