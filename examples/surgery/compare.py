"""Comparison of ways to start a model: command-line options, runs, a table and a picture."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

import keras_trainops as kt

OUTPUT = Path(__file__).parents[1] / "output"


def options(doc: str, output: str, **counts: int) -> argparse.Namespace:
    """Parse the command line of an example, and create its output directory.

    Args:
        doc: Docstring of the example; its first line describes the command.
        output: Name of the output file in `examples/output/`.
        **counts: Integer options, such as epochs, and their defaults.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, default in counts.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--output", type=Path, default=OUTPUT / output)
    chosen = parser.parse_args()
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    return chosen


def compare(
    build: Callable[[], keras.Model],
    source: Path,
    ways: Mapping[str, Mapping[str, Any] | None],
    train: tuple[np.ndarray, np.ndarray],
    measure: Callable[[keras.Model], float],
    epochs: int,
) -> dict[str, list[float]]:
    """Train one model per way to start it, on the same data in the same order.

    Args:
        build: Returns a compiled model.
        source: A file of weights.
        ways: Arguments of `restore` from `source`, by name; None starts from scratch.
        train: Inputs and labels.
        measure: Returns the value to compare, on held-out data.
        epochs: Number of epochs.

    Returns:
        The values before training and after each epoch, for each way.
    """
    runs: dict[str, list[float]] = {}
    for name, arguments in ways.items():
        keras.utils.set_random_seed(2)
        model = build()
        if arguments is not None:
            print(f"\n{name}:\n{kt.restore(model, source, **arguments)}")
        runs[name] = [measure(model)]
        for _ in range(epochs):
            model.fit(*train, batch_size=32, verbose=0)
            runs[name].append(measure(model))
    return runs


def show(title: str, axes: tuple[str, str], runs: Mapping[str, list[float]], output: Path) -> None:
    """Print and draw the values that `compare` returned.

    Args:
        title: Description of the held-out data.
        axes: Labels of the epochs and of the values.
        runs: Result of `compare`.
        output: File of the picture.
    """
    epochs = len(next(iter(runs.values()))) - 1
    columns = ["", "before training", "after 1 epoch", f"after {epochs}"]
    rows = {name: [values[0], values[1], values[-1]] for name, values in runs.items()}
    table(f"{axes[1].capitalize()} on {title}", columns, rows)
    curves({title: runs}, axes, output)


def table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[float]]) -> None:
    """Print a row of numbers for each name.

    Args:
        title: Title of the table.
        columns: Headings of all columns.
        rows: Numbers of each row, by name.
    """
    print(f"\n{title}:")
    printed = Table()
    printed.add_column(columns[0])
    for column in columns[1:]:
        printed.add_column(column, justify="right")
    for name, numbers in rows.items():
        printed.add_row(name, *(f"{number:.3f}" for number in numbers))
    Console(width=100).print(printed)


def curves(
    panels: Mapping[str, Mapping[str, Sequence[float]]], axes: tuple[str, str], output: Path
) -> None:
    """Draw one panel per title, with one curve per name.

    Args:
        panels: Values before training and after each epoch, by title and name.
        axes: Labels of the axes.
        output: File of the picture.
    """
    figure, plots = plt.subplots(
        1, len(panels), figsize=(4.4 * len(panels), 3.3), layout="constrained", squeeze=False
    )
    for plot, (title, runs) in zip(plots[0], panels.items(), strict=True):
        for name, values in runs.items():
            plot.plot(range(len(values)), values, marker="o", markersize=3, label=name)
        plot.set(title=title, xlabel=axes[0], ylabel=axes[1])
        plot.xaxis.get_major_locator().set_params(integer=True)
        plot.grid(alpha=0.3)
        plot.legend()
    figure.savefig(output, dpi=80)
    plt.close(figure)
    print(f"\npicture: {output}")
