"""`keras-trainops write-back MODEL LIKE OUT`: write the weights of a model like a checkpoint."""

from __future__ import annotations

import argparse
import functools
import sys
from typing import Any

from keras_trainops.cli.model import (
    add_imports,
    add_restore_options,
    load_model,
    rename_rules,
    restore_arguments,
)
from keras_trainops.cli.output import FILE_HELP, RefusedError, print_json, progress_bar


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "write-back",
        parents=[common],
        help="write the weights of a model in the format and under the names they came in",
        description="Writes the weights of MODEL to OUT, with the keys, shapes, dtypes and "
        "metadata of LIKE. The options say how LIKE is restored into MODEL. OUT is written whole "
        "or not at all.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model that Keras loads: a .keras file")
    parser.add_argument("like", metavar="LIKE", help=f"{FILE_HELP}; or a saved plan")
    parser.add_argument("out", metavar="OUT", help="the new file, directory or prefix")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.add_argument("--plan", metavar="PLAN", help="a saved plan, in place of rules")
    parser.add_argument(
        "--shape", choices=("like", "model"), default="like", help="whose shapes to write"
    )
    parser.add_argument(
        "--lora",
        choices=("merge", "peft"),
        default="merge",
        help="add low-rank updates to the weights, or write them as an adapter of PEFT",
    )
    add_imports(parser)
    add_restore_options(parser, ["on_missing", "on_unexpected"])
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    rename_rules(options.rename)  # before anything slow
    model = load_model(options.model, options.modules)
    import keras_trainops as kt
    from keras_trainops.restoring.planning.options import Options
    from keras_trainops.restoring.restore import as_plan
    from keras_trainops.writing.like import open_like
    from keras_trainops.writing.write_back import Request, write

    arguments = restore_arguments(options, model)
    on_unexpected = arguments.pop("on_unexpected", None)
    try:
        request = Request(
            Options(**arguments, plan=as_plan(options.plan)).checked(),
            on_unexpected,
            options.shape,
            options.lora,
            options.force,
        )
        bar = functools.partial(progress_bar, what="writing")
        report, lines = write(model, options.like, options.out, request, bar)
    except kt.RestoreError as error:
        with open_like(options.like, model):  # raises if it cannot be read
            raise RefusedError(str(error)) from error
    for line in lines:
        print(line, file=sys.stderr)
    if options.json:
        print_json(report.to_dict())
    else:
        print(report)
    return 0
