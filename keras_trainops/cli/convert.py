"""`keras-trainops convert FILE OUT`: a checkpoint in another format, or under other names."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_trainops.checkpoints.arrays import nbytes
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.open import FORMATS, open_checkpoint
from keras_trainops.checkpoints.storage.limits import refuse_unsafe_names
from keras_trainops.checkpoints.storage.writing import UnwritableError, written_aside
from keras_trainops.cli.model import (
    add_imports,
    add_restore_options,
    load_model,
    rename_rules,
    restore_arguments,
    says_more_than_names,
)
from keras_trainops.cli.output import FILE_HELP, RefusedError, print_json, progress_bar, size_text
from keras_trainops.errors import RestoreError

if TYPE_CHECKING:
    import keras

_WRITERS = {known.suffix: known.write for known in FORMATS if known.write is not None}
_KERAS = ".weights.h5"


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "convert",
        parents=[common],
        help="write a checkpoint in another format",
        description="Writes the weights of a checkpoint to OUT: a .safetensors or .npz file, one "
        "tensor at a time, or the .weights.h5 of a model. With --model they are restored into the "
        "model first, and OUT has the names of its variables. OUT is written whole or not at all.",
    )
    parser.add_argument("file", metavar="FILE", help=FILE_HELP)
    parser.add_argument("out", metavar="OUT", help="the new file: .safetensors, .npz, .weights.h5")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.add_argument("--all", action="store_true", help="write training state as well")
    parser.add_argument("--model", metavar="MODEL", help="a model that Keras loads: a .keras file")
    add_imports(parser)
    add_restore_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    ending = _ending(options)
    out = _target(options)
    with open_checkpoint(options.file) as checkpoint:
        if options.model is None:
            written = _write(out, ending, checkpoint, _names(checkpoint, options))
        else:
            written = _write_model(out, ending, checkpoint, options)
    size = out.stat().st_size
    if options.json:
        print_json({"out": options.out, "tensors": written, "bytes": size})
    else:
        print(f"{options.out}: {written} tensors, {size_text(size)}")
    return 0


def _ending(options: argparse.Namespace) -> str:
    """How OUT ends, which says what it is to be.

    Raises:
        ValueError: If that is unknown, or the options do not go with it.
    """
    ending = next((e for e in (*_WRITERS, _KERAS) if options.out.endswith(e)), None)
    if ending is None:
        known = ", ".join([*_WRITERS, _KERAS])
        raise ValueError(f"OUT must end in one of {known}. Received: {options.out!r}")
    if ending == _KERAS and options.model is None:
        raise ValueError(f"A {_KERAS} file is that of a model: which, `--model` has to say.")
    if options.model is not None and options.all:
        raise ValueError("`--all` does not go with `--model`: a model has no training state.")
    if options.model is None and (options.modules or says_more_than_names(options)):
        raise ValueError(
            "Without `--model` there are no variables: `--rename 'KEY => NAME'` is all that can "
            "be said."
        )
    return ending


def _target(options: argparse.Namespace) -> Path:
    """The file to be written: of a link what it points to, which need not be there.

    Raises:
        RefusedError: If something is in its place.
        ValueError: If its directory does not exist.
    """
    out = Path(os.path.realpath(options.out))
    if out.is_dir():
        raise RefusedError(f"{options.out!r} is a directory.")
    if os.path.lexists(options.out) and not options.force:
        raise RefusedError(f"{options.out!r} exists. Overwrite it with --force.")
    if not out.parent.is_dir():
        raise ValueError(f"There is no directory {str(out.parent)!r} to write {out.name!r} to.")
    return out


def _names(checkpoint: Checkpoint, options: argparse.Namespace) -> dict[str, str]:
    """From name in the new file to key.

    Raises:
        RefusedError: If a rule matches nothing, or two keys would have one name.
    """
    keys = [key for key in checkpoint if options.all or key not in checkpoint.training_state]
    rules = rename_rules(options.rename)
    if rules is None:
        return {key: key for key in keys}
    from keras_trainops.restoring.naming.rules import apply_rules

    renaming = apply_rules(rules, keys)
    names = [(str(target), entry.key) for entry in renaming.renamed for target in entry.addresses]
    repeated = [name for name, count in Counter(name for name, _ in names).items() if count > 1]
    problems = renaming.problems + [f"Several keys are to be called {name!r}." for name in repeated]
    if problems:
        raise RefusedError("\n".join(problems))
    return dict(names)


def _write(out: Path, ending: str, checkpoint: Checkpoint, names: Mapping[str, str]) -> int:
    _refuse_unsafe(names)
    total = sum(nbytes(checkpoint.shape(key), checkpoint.dtype(key)) for key in names.values())
    with written_aside(out) as aside, progress_bar(total, "writing") as progress:
        try:
            _WRITERS[ending](aside, checkpoint, names, progress)
        except UnwritableError as error:
            raise RefusedError(str(error)) from error
        checkpoint.require_unchanged()
    return len(names)


def _refuse_unsafe(names: Iterable[str]) -> None:
    """Refuses to write a file that readers would refuse."""
    for name in names:
        try:
            refuse_unsafe_names([name], "OUT")
        except RestoreError as error:
            raise RefusedError(
                f"No tensor may be called {name!r}: taken for a path, it leads elsewhere."
            ) from error


def _write_model(
    out: Path, ending: str, checkpoint: Checkpoint, options: argparse.Namespace
) -> int:
    rename_rules(options.rename)
    model = load_model(options.model, options.modules)
    import keras_trainops as kt

    arguments = restore_arguments(options, model)
    problems = kt.plan_restore(model, checkpoint, **arguments).problems
    if problems:
        raise RefusedError(
            "\n".join([f"{options.file!r} does not fit {options.model!r}:", *problems])
        )
    try:
        kt.restore(model, checkpoint, **arguments)
    except kt.RestoreError as error:
        _require_readable(checkpoint)
        raise RefusedError(str(error)) from error
    if ending == _KERAS:
        with written_aside(out) as aside:
            model.save_weights(aside)
        return len(model.weights)
    values = _of_model(model)
    return _write(out, ending, values, {key: key for key in values})


def _require_readable(checkpoint: Checkpoint) -> None:
    """Reads it all again: values that do not fit are an answer, but damage is none.

    Raises:
        RestoreError: If a tensor cannot be read, or the files change meanwhile.
    """
    for key in checkpoint:
        for _ in checkpoint.pieces(key):
            pass
    checkpoint.require_unchanged()


def _of_model(model: keras.Model) -> Checkpoint:
    from keras_trainops.checkpoints.formats.arrays import VariablesCheckpoint
    from keras_trainops.values import copy_of
    from keras_trainops.weight_names import named_weights

    variables = [(weight.short, weight.variable) for weight in named_weights(model)]
    return VariablesCheckpoint(variables, f"model {model.name}", copy_of)
