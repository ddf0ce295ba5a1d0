"""`keras-trainops diff FILE FILE`: compare two checkpoints."""

from __future__ import annotations

import argparse
from typing import Any

from keras_trainops.checkpoints.comparison import Comparison, compare
from keras_trainops.checkpoints.open import open_checkpoint
from keras_trainops.cli.output import FILE_HELP, print_columns, print_json, progress_bar


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "diff",
        parents=[common],
        help="compare two checkpoints",
        description="Compares two checkpoints of any formats key by key: names, shapes, dtypes, "
        "values. Exits with 0 if they are the same and with 1 if they differ.",
    )
    parser.add_argument("first", metavar="FILE", help=FILE_HELP)
    parser.add_argument("second", metavar="FILE", help="the file to compare with")
    parser.add_argument(
        "--atol", type=_tolerance, default=0.0, metavar="A", help="absolute tolerance"
    )
    parser.add_argument(
        "--rtol",
        type=_tolerance,
        default=0.0,
        metavar="R",
        help="relative tolerance, of the second's values",
    )
    parser.add_argument("--all", action="store_true", help="compare training state as well")
    parser.set_defaults(run=_run)


def _tolerance(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number >= 0, not {text!r}")
    return number


def _run(options: argparse.Namespace) -> int:
    with open_checkpoint(options.first) as first, open_checkpoint(options.second) as second:
        state = frozenset() if options.all else first.training_state | second.training_state
        both = [key for key in first if key in second and key not in state]
        total = sum(first.nbytes(key) for key in both)
        with progress_bar(total, "comparing") as progress:
            found = compare(
                first,
                second,
                leave_out=state,
                absolute=options.atol,
                relative=options.rtol,
                progress=progress,
            )
    if options.json:
        print_json(_document(options, found, sorted(state)))
    else:
        _print(options, found, len(state))
    return 0 if found.same else 1


def _document(options: argparse.Namespace, found: Comparison, state: list[str]) -> dict[str, Any]:
    plain = {
        name: [entry._asdict() if hasattr(entry, "_asdict") else entry for entry in value]
        for name, value in vars(found).items()
        if isinstance(value, list)
    }
    return {
        "first": options.first,
        "second": options.second,
        "same": found.same,
        **plain,
        "equal": found.equal,
        "left_out": state,
    }


def _print(options: argparse.Namespace, found: Comparison, left_out: int) -> None:
    for key in found.only_first:
        print(f"- {key}: only in {options.first}")
    for key in found.only_second:
        print(f"+ {key}: only in {options.second}")
    for what, listed in (("shape", found.shapes), ("dtype", found.dtypes)):
        for key, one, other in listed:
            print(f"! {key}: {what} {one} and {other}")
    if found.values:
        rows = [("values that differ", "largest", "relative", "of all", "not finite")]
        rows += [
            (
                f"~ {value.key}",
                f"{value.absolute:.3g}",
                f"{value.relative:.3g}",
                f"{value.unequal} of {value.size}",
                str(value.non_finite or ""),
            )
            for value in found.values
        ]
        print_columns(rows, right=range(1, 5))
    equal = f"{found.equal} tensors are equal"
    print(f"{equal}; training state left out: {left_out}" if left_out else equal)
