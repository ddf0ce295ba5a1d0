"""The command line: `keras-trainops`, or `python -m keras_trainops`.

Each command has a module, which calls the rest of the library. Only commands that need a model, and
`convert --rename`, import Keras.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence

import keras_trainops
from keras_trainops.cli import convert, diff, inspect, model, write_back
from keras_trainops.cli.output import RefusedError, print_json

_EXIT_CODES = """\
exit codes:
  0    success: listed, planned without problems, equal, converted, written
  1    negative result: a restore would be refused, files differ, something
       is ambiguous, a pattern matches nothing, a file is not written
  2    error: no such file, a damaged file or an unknown format, an invalid
       rule or argument
  130  interrupted (Ctrl-C)
  141  the reader of the output went away, as in `| head`

With --json, stdout is a single JSON document; after an error it is
{"error": ...}. Messages go to stderr.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments; by default those of the process.

    Returns:
        The exit code; `--help` lists them. (`argparse` itself exits with 2 if the arguments are
        invalid.)
    """
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for unencodable characters
    try:
        code = _run(options)
        if sys.stdout is not None:  # None if it was closed; then `print` does nothing
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Python flushes again at exit, which would fail.
        with contextlib.suppress(OSError, ValueError):
            if sys.stdout is not None:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    try:
        return int(options.run(options))
    except BrokenPipeError:  # an `OSError` that `main` handles
        raise
    except RefusedError as refused:
        return _fail(refused, 1, options.json)
    except (OSError, ValueError) as error:  # `RestoreError` is a `ValueError`
        return _fail(error, 2, options.json)


def _fail(error: Exception, code: int, as_json: bool) -> int:
    if sys.stderr is not None:  # with None, `print` would write to stdout
        print(error, file=sys.stderr)
    if as_json:
        print_json({"error": str(error)})
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-trainops",
        description="Inspects, compares and converts checkpoints of any supported format, plans "
        "how to restore them into a Keras model, and writes its weights back.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"%(prog)s {keras_trainops.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document")
    for command in (
        *(inspect.add, model.add_plan, model.add_suggest),
        *(diff.add, convert.add, write_back.add),
    ):
        command(commands, common)
    return parser
