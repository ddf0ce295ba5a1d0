"""The command line: `keras-trainops`, or `python -m keras_trainops`.

A file per command; what they do is done in the rooms below. Keras is only imported by those that
need a model.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence

import keras_trainops
from keras_trainops.cli import convert, diff, inspect, model
from keras_trainops.cli.output import RefusedError, print_json

_EXIT_CODES = """\
exit codes:
  0    all is well: listed, planned without a problem, the same, converted
  1    the answer is no: a restore would be refused, files differ, something
       is ambiguous, a pattern matches nothing, a conversion is refused
  2    it cannot be told: no such file, a damaged or unknown one, a rule or an
       argument that makes no sense
  130  interrupted (Ctrl-C)
  141  whoever was to read the output went away, as in `| head`

With --json one JSON document is all that is printed to stdout; of an error it
is {"error": ...}. Messages go to stderr.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit code, as `--help` has it. (`argparse` itself exits with 2 where the arguments make
        no sense.)
    """
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for what its encoding lacks
    try:
        code = _run(options)
        if sys.stdout is not None:  # as it is where it was closed, and `print` does nothing
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Python flushes once more as it ends, which would fail again.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130


def _run(options: argparse.Namespace) -> int:
    try:
        return int(options.run(options))
    except BrokenPipeError:  # an `OSError` that is no matter of the command's
        raise
    except RefusedError as refused:
        return _fail(refused, 1, options.json)
    except (OSError, ValueError) as error:  # `RestoreError` is a `ValueError`
        return _fail(error, 2, options.json)


def _fail(error: Exception, code: int, as_json: bool) -> int:
    if sys.stderr is not None:  # `print` would take stdout
        print(error, file=sys.stderr)
    if as_json:
        print_json({"error": str(error)})
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-trainops",
        description="Looks into checkpoints of any supported format, and says how they would be "
        "restored into a Keras model.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"%(prog)s {keras_trainops.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document")
    for command in (inspect.add, model.add_plan, model.add_suggest, diff.add, convert.add):
        command(commands, common)
    return parser
