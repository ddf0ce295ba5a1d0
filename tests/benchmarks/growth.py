"""Growth of costs with the size of what is trained, restored, planned and saved.

Each curve measures one operation at growing sizes and prints, for each size, the median of the
rounds, its ratio to the previous size, and the slope between both in a log-log plot: 1 is linear.
The slope of a curve is fitted to its three largest sizes, where fixed costs do not hide it. A
picture shows all curves.

    python tests/benchmarks/growth.py [--quick] [--sizes 5] [--out docs/_static/growth.png] [step]
        [first-fit] [bytes] [tensors] [plan] [suggest] [save]
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import ops
from safetensors.numpy import save_file
from step_time import five_transforms
from tqdm import tqdm

import keras_trainops as kt

PARTS = ("query", "value", "up", "down")
STEPS = 10  # of an epoch
MOST = 1.1  # slope: linear, times a logarithm
DOCS = Path(__file__).parents[2] / "docs"


@dataclass
class Curve:
    """Seconds by size.

    Attributes:
        title: What is measured.
        unit: What is counted.
        measure: Yields seconds, one number for each round, for a size.
        sizes: The sizes, in growing order.
        label: Tells it from others in the same panel.
        seconds: The medians, once measured.
    """

    title: str
    unit: str
    measure: Callable[[int, int], Iterator[float]]
    sizes: Sequence[int]
    label: str = ""
    seconds: list[float] = field(default_factory=list)

    def run(self, rounds: int, bar: Any) -> None:
        for size in self.sizes:
            bar.set_description(f"{self.title} {self.label} {size:,}".replace("  ", " "))
            self.seconds.append(statistics.median(self.measure(size, rounds)))
            keras.backend.clear_session()
            gc.collect()
            bar.update()

    @property
    def slope(self) -> float:
        """The slope of the three largest sizes."""
        x, y = np.log(self.sizes[-3:]), np.log(self.seconds[-3:])
        return float(np.polyfit(x, y, 1)[0])

    def print(self) -> None:
        name = f"{self.title}{f', {self.label}' if self.label else ''}"
        print(f"\n{name}: slope {self.slope:.2f}{'' if self.slope <= MOST else ', TOO STEEP'}")
        print(f"| {self.unit} | seconds | ratio | slope |\n|---:|---:|---:|---:|")
        before: tuple[int, float] | None = None
        for size, seconds in zip(self.sizes, self.seconds, strict=True):
            rest = "| |"
            if before is not None:
                ratio = seconds / before[1]
                rest = f"{ratio:.2f} | {np.log(ratio) / np.log(size / before[0]):.2f} |"
            print(f"| {size:,} | {seconds:.4g} | {rest}")
            before = size, seconds


class Many(keras.layers.Layer):
    """Many variables, with little arithmetic.

    Args:
        names: Their names.
        size: Elements of each.
    """

    def __init__(self, names: Sequence[str], size: int = 8) -> None:
        super().__init__(name="many")
        self._names, self._size = names, size

    def build(self, shape: Any) -> None:
        for name in self._names:
            self.add_weight(shape=(self._size,), name=name, initializer="zeros")

    def call(self, x: Any) -> Any:
        return x + ops.sum(ops.stack([w[:8] for w in self.weights]), axis=0)


def names(count: int) -> list[str]:
    """Names as those of blocks, with eight variables in each."""
    return [f"block{i // 8}_part{i % 8}" for i in range(count)]


def model(count: int, size: int = 8) -> Any:
    """A model with so many variables of so many elements."""
    keras.utils.set_random_seed(1)
    layer = Many(names(count), size)
    built = kt.TrainOpsModel(inputs := keras.Input((8,)), inputs)
    built.many = layer
    layer.build(None)
    return built


class Part(keras.layers.Layer):
    """A layer of a block."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(4, 4), name="kernel", initializer="zeros")
        self.bias = self.add_weight(shape=(4,), name="bias", initializer="zeros")

    def call(self, x: Any) -> Any:
        return x


def blocks(count: int) -> Any:
    """A model with so many variables: blocks of four layers, each with a kernel and a bias."""
    keras.utils.set_random_seed(1)
    built = kt.TrainOpsModel(inputs := keras.Input((8,)), inputs)
    built.parts = [Part(name=f"block{i // 4}_{PARTS[i % 4]}") for i in range(count // 2)]
    for part in built.parts:
        part.build(None)
    return built


def trained(count: int, transforms: Any) -> Any:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8,))
    built = kt.TrainOpsModel(inputs, Many(names(count))(inputs))
    built.compile("adam", "mse", gradient_transforms=transforms)
    return built


class Steps(keras.callbacks.Callback):
    """Seconds of each epoch's steps."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self._start)


@functools.cache
def epochs(transforms: Callable[[], Any], count: int, rounds: int) -> Sequence[float]:
    """Seconds of the first step, and of the epochs after it."""
    built, callback = trained(count, transforms()), Steps()
    x = np.ones((STEPS, 8), "float32")
    built.fit(x[:1], x[:1], verbose=0, callbacks=[callback])
    built.fit(x, x, batch_size=1, epochs=rounds + 1, verbose=0, callbacks=[callback])
    first, _, *others = callback.seconds
    return [first, *others]


def step(transforms: Callable[[], Any]) -> Callable[[int, int], Iterator[float]]:
    def measure(count: int, rounds: int) -> Iterator[float]:
        yield from (seconds / STEPS for seconds in epochs(transforms, count, rounds)[1:])

    return measure


def first_fit(transforms: Callable[[], Any]) -> Callable[[int, int], Iterator[float]]:
    def measure(count: int, rounds: int) -> Iterator[float]:
        yield epochs(transforms, count, rounds)[0]

    return measure


def no_transform() -> None:
    """No chain."""


def restore(restored: Any, folder: Path, rounds: int) -> Iterator[float]:
    path = str(folder / "model.safetensors")
    save_file({v.path: keras.ops.convert_to_numpy(v) for v in restored.variables}, path)
    yield from timed(lambda: kt.restore(restored, path), rounds)


def timed(run: Callable[[], object], rounds: int) -> Iterator[float]:
    run()
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        yield time.perf_counter() - start


def by_bytes(megabytes: int, rounds: int) -> Iterator[float]:
    with tempfile.TemporaryDirectory() as folder:
        yield from restore(model(16, megabytes * 1_000_000 // 64), Path(folder), rounds)


def by_tensors(count: int, rounds: int) -> Iterator[float]:
    with tempfile.TemporaryDirectory() as folder:
        yield from restore(model(count), Path(folder), min(rounds, 3))


def theirs(count: int) -> dict[str, np.ndarray]:
    """Arrays under the names that another library would give them."""
    kernel, bias = np.zeros((4, 4), "float32"), np.zeros(4, "float32")
    layers = [f"encoder/layer/{i // 4}/{PARTS[i % 4]}" for i in range(count // 2)]
    return {f"{n}/{k}": v for n in layers for k, v in (("w", kernel), ("b", bias))}


def one_layer(count: int) -> Any:
    """A model with so many variables in one layer, in no blocks."""
    built = kt.TrainOpsModel(inputs := keras.Input((8,)), inputs)
    built.many = Many([f"w{i}" for i in range(count)])
    built.many.build(None)
    return built


def their_layer(count: int) -> dict[str, np.ndarray]:
    """Arrays for the variables of one layer, under other names."""
    return {f"net/x{i}": np.zeros(8, "float32") for i in range(count)}


def plan(count: int, rounds: int) -> Iterator[float]:
    target, arrays = blocks(count), theirs(count)
    rename = {
        r"encoder/layer/(\d+)/(\w+)/w": r"block\1_\2/kernel",
        r"encoder/layer/(\d+)/(\w+)/b": r"block\1_\2/bias",
    }
    yield from timed(lambda: kt.plan_restore(target, arrays, rename=rename), min(rounds, 3))


def suggest(
    of_model: Callable[[int], Any], of_source: Callable[[int], dict[str, np.ndarray]]
) -> Callable[[int, int], Iterator[float]]:
    def measure(count: int, rounds: int) -> Iterator[float]:
        target, arrays = of_model(count), of_source(count)
        assert kt.suggest_rename(target, arrays).rules
        yield from timed(lambda: kt.suggest_rename(target, arrays), min(rounds, 3))

    return measure


def save(pattern: str) -> Callable[[int, int], Iterator[float]]:
    """Read the seconds of a session's saves from its log."""

    def measure(megabytes: int, rounds: int) -> Iterator[float]:
        keras.utils.set_random_seed(1)
        inputs = keras.Input((8,))
        layer = Many(names(16), megabytes * 1_000_000 // 64)
        layer.trainable = False
        built = kt.TrainOpsModel(inputs, keras.layers.Dense(1)(layer(inputs)))
        built.compile("sgd", "mse")
        x = np.ones((1, 8), "float32")
        with tempfile.TemporaryDirectory() as folder:
            for number in range(rounds):  # the last save of a run is never left out
                session = kt.TrainingSession(
                    folder, keep=1, save_seconds=None, summary_steps=None, verbose=0
                )
                built.fit(x, x[:, :1], epochs=number + 1, verbose=0, callbacks=[session])
            log = (Path(folder) / "session.log").read_text(encoding="utf-8")
        yield from map(float, re.findall(pattern, log))

    return measure


def curves(count: int | None) -> dict[str, list[Curve]]:
    """The curves of each panel, by its name on the command line."""

    def sizes(*all_sizes: int) -> Sequence[int]:
        return all_sizes[:count]

    variables = sizes(10, 30, 100, 300, 1000, 3000)
    megabytes = sizes(1, 3, 10, 30, 100, 300, 1000)
    tensors, many, layer = (
        sizes(100, 300, 1000, 3000, 10_000, 30_000, 100_000),
        sizes(1000, 3000, 10_000, 30_000, 100_000),
        sizes(100, 300, 1000, 3000, 10_000),
    )
    chains = (("five transforms", five_transforms), ("no transform", no_transform))
    return {
        "step": [Curve("A training step", "variables", step(c), variables, n) for n, c in chains],
        "first-fit": [
            Curve("A first fit of one step", "variables", first_fit(c), variables, n)
            for n, c in chains
        ],
        "bytes": [Curve("Restore, by bytes", "MB", by_bytes, megabytes)],
        "tensors": [Curve("Restore, by tensors", "tensors", by_tensors, tensors)],
        "plan": [Curve("Plan a restore", "names", plan, many)],
        "suggest": [
            Curve("Suggest renames", "names", suggest(blocks, theirs), many, "blocks"),
            Curve("Suggest renames", "names", suggest(one_layer, their_layer), layer, "one layer"),
        ],
        "save": [
            Curve("A session's save", "MB", save(r"paused for ([\d.]+)"), megabytes, "pause"),
            Curve("A session's save", "MB", save(r"writing took ([\d.]+)"), megabytes, "writing"),
        ],
    }


def draw(panels: Sequence[Sequence[Curve]], path: Path) -> None:
    """Draw the curves as small multiples, with a line of slope 1 in each."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 3.3 * rows), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes.flat, panels, strict=False):
        for curve, colour in zip(panel, ("#1f6fb4", "#e07b39"), strict=False):
            label = f"{curve.label}: slope {curve.slope:.2f}" if curve.label else "measured"
            axis.loglog(curve.sizes, curve.seconds, "o-", color=colour, ms=4, lw=1.4, label=label)
        x = np.array([panel[0].sizes[0], panel[0].sizes[-1]])
        top = max(curve.seconds[-1] for curve in panel)
        axis.loglog(x, top * 1.6 * x / x[-1], ":", color="#999999", lw=1.2, label="linear")
        slope = "" if len(panel) > 1 else f"\nslope {panel[0].slope:.2f}"
        axis.set_title(panel[0].title + (slope or f"\nslope {panel[0].slope:.2f}"), fontsize=10)
        axis.set_xlabel(panel[0].unit, fontsize=9)
        axis.set_ylabel("seconds", fontsize=9)
        low = min(min(curve.seconds) for curve in panel)
        axis.set_ylim(low / 2, top * 4)
        axis.grid(color="#e6e6e6", lw=0.6)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=7.5, frameon=False, loc="upper left")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.suptitle(
        f"Seconds by size, Keras {keras.__version__} on {keras.backend.backend()}, "
        f"{os.cpu_count()} cores",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--quick", action="store_true", help="a smoke test: small, few rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=DOCS / "_static" / "growth.png")
    parser.add_argument("--sizes", type=int, help="only so many of the sizes, the smallest")
    options = parser.parse_args()
    chosen = curves(3 if options.quick else options.sizes)
    unknown = sorted(set(options.parts) - set(chosen))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(chosen)}")
    panels = [chosen[name] for name in options.parts or chosen]
    every = [curve for panel in panels for curve in panel]
    with tqdm(total=sum(len(curve.sizes) for curve in every)) as bar:
        for curve in every:
            curve.run(2 if options.quick else options.rounds, bar)
    print(f"Keras {keras.__version__} on {keras.backend.backend()}, {os.cpu_count()} cores")
    for curve in every:
        curve.print()
    draw(panels, options.out)
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
