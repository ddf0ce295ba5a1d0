"""The command line: `keras-trainops`, or `python -m keras_trainops`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from keras_trainops.readers.base import Checkpoint, RestoreError, open_checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit code: 0 if all went well, 1 if a checkpoint cannot be read. (`argparse` exits with
        2 where the arguments make no sense.)
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except RestoreError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    import keras_trainops

    parser = argparse.ArgumentParser(
        prog="keras-trainops", description="Looks into checkpoints of any supported format."
    )
    version = f"%(prog)s {keras_trainops.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser(
        "inspect",
        help="list the tensors of a checkpoint",
        description="Lists keys, without values.",
    )
    inspect.add_argument("checkpoint", help="a file, a directory, or a TensorFlow prefix")
    inspect.set_defaults(run=_inspect)
    return parser


def _inspect(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    with open_checkpoint(options.checkpoint) as checkpoint:
        title = _title(checkpoint)
        table = Table()
        table.add_column("key", overflow="fold")
        table.add_column("shape")
        table.add_column("dtype")
        table.add_column("")
        for key in checkpoint:
            note = "training state" if key in checkpoint.training_state else ""
            dtype = checkpoint.dtype(key).name
            table.add_row(Text(key), Text(str(checkpoint.shape(key))), Text(dtype), note)
    console = Console()
    console.print(Text(title), soft_wrap=True)
    console.print(table)
    return 0


def _title(checkpoint: Checkpoint) -> str:
    weights = len(checkpoint) - len(checkpoint.training_state)
    return (
        f"{checkpoint.location}: {checkpoint.format}, {weights} weights and "
        f"{len(checkpoint.training_state)} tensors of training state"
    )
