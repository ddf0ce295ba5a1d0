"""`keras-trainops convert FILE OUT`: write a checkpoint in another format or with new names."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.format import Writer
from keras_trainops.checkpoints.open import is_checkpoint, open_checkpoint, writers
from keras_trainops.checkpoints.storage.limits import refuse_unsafe_names
from keras_trainops.checkpoints.storage.writing import UnwritableError, existing, written_aside
from keras_trainops.cli.model import (
    add_imports,
    add_restore_options,
    load_model,
    needs_model,
    rename_rules,
    restore_arguments,
)
from keras_trainops.cli.output import FILE_HELP, RefusedError, print_json, progress_bar, size_text
from keras_trainops.errors import RestoreError

if TYPE_CHECKING:
    import keras

_SAVED_BY_KERAS = (".keras", ".weights.h5")  # from a model


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "convert",
        parents=[common],
        help="write a checkpoint in another format",
        description="Writes the weights of a checkpoint to OUT: a "
        f"{' or '.join(writers())} file, one tensor at a time. Without --model, .keras and "
        ".weights.h5 files are only written like another one. With --model, the weights are first "
        "restored into the model, and OUT has the names of its variables. OUT is written whole or "
        "not at all.",
    )
    parser.add_argument("file", metavar="FILE", help=FILE_HELP)
    parser.add_argument("out", metavar="OUT", help=f"the new file: {', '.join(writers())}")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.add_argument("--all", action="store_true", help="write training state as well")
    parser.add_argument("--model", metavar="MODEL", help="a model that Keras loads: a .keras file")
    add_imports(parser)
    add_restore_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    suffix = _suffix(options.out)
    _require_consistent(options)
    out = _target(options)
    with open_checkpoint(options.file) as checkpoint:
        if options.model is None:
            written = _write(out, writers()[suffix], checkpoint, _names(checkpoint, options))
        else:
            written = _write_model(out, suffix, checkpoint, options)
    size = sum(path.stat().st_size for path in _files(out))
    if options.json:
        print_json({"out": options.out, "tensors": written, "bytes": size})
    else:
        print(f"{options.out}: {written} tensors, {size_text(size)}")
    return 0


def _files(out: Path) -> list[Path]:
    """Return the files of OUT, which may be a directory or a prefix of TensorFlow."""
    if out.is_dir():
        return [path for path in out.rglob("*") if path.is_file()]
    if out.exists():
        return [out]
    name = glob.escape(out.name)
    return [*out.parent.glob(f"{name}.index"), *out.parent.glob(f"{name}.data-*-of-*")]


def _suffix(out: str) -> str:
    """Return the suffix of OUT, which selects the format.

    Raises:
        ValueError: If it is unknown.
    """
    for suffix in writers():
        if out.endswith(suffix):
            return suffix
    raise ValueError(f"OUT must end in one of {', '.join(writers())}. Received: {out!r}")


def _require_consistent(options: argparse.Namespace) -> None:
    """Raise if the options contradict each other.

    Raises:
        ValueError: If an option needs `--model`, or excludes it.
    """
    if options.model is None:
        if options.modules or needs_model(options):
            raise ValueError(
                "Without `--model` there are no variables, so the only option for names is "
                "`--rename 'KEY => NAME'`."
            )
    elif options.all:
        raise ValueError("`--all` cannot be used with `--model`: a model has no training state.")


def _target(options: argparse.Namespace) -> Path:
    """Return the file to write; a link is followed, even if its target does not exist.

    Raises:
        RefusedError: If something exists at OUT.
        ValueError: If its directory does not exist.
    """
    out = Path(os.path.realpath(options.out))
    if out.is_dir() and not is_checkpoint(out):
        raise RefusedError(f"{options.out!r} is a directory.")
    if (os.path.lexists(options.out) or existing(out)) and not options.force:
        raise RefusedError(f"{options.out!r} exists. Overwrite it with --force.")
    if not out.parent.is_dir():
        raise ValueError(f"There is no directory {str(out.parent)!r} to write {out.name!r} to.")
    return out


def _names(checkpoint: Checkpoint, options: argparse.Namespace) -> dict[str, str]:
    """Return a mapping from the name in the new file to the key.

    Raises:
        RefusedError: If a rule matches nothing, or two keys would get the same name.
    """
    keys = [key for key in checkpoint if options.all or key not in checkpoint.training_state]
    rules = rename_rules(options.rename)
    return {key: key for key in keys} if rules is None else _renamed(keys, rules)


def _renamed(keys: list[str], rules: Mapping[str, str | None] | Literal["auto"]) -> dict[str, str]:
    from keras_trainops.restoring.naming.rules import apply_rules

    renaming = apply_rules(rules, keys)
    keys_of: dict[str, list[str]] = {}
    for entry in renaming.renamed:
        for target in entry.addresses:
            keys_of.setdefault(str(target), []).append(entry.key)
    repeated = [name for name, sources in keys_of.items() if len(sources) > 1]
    problems = renaming.problems + [f"Several keys would be named {name!r}." for name in repeated]
    if problems:
        raise RefusedError("\n".join(problems))
    return {name: key for name, (key,) in keys_of.items()}


def _write(out: Path, write: Writer, checkpoint: Checkpoint, names: Mapping[str, str]) -> int:
    _refuse_unsafe(names)
    total = sum(checkpoint.nbytes(key) for key in names.values())
    with written_aside(out) as aside, progress_bar(total, "writing") as progress:
        try:
            lines = write(aside, checkpoint, names, progress)
        except UnwritableError as error:
            raise RefusedError(str(error)) from error
        checkpoint.require_unchanged()
    for line in lines or ():
        print(line, file=sys.stderr)
    return len(names)


def _refuse_unsafe(names: Iterable[str]) -> None:
    """Raise if readers would refuse the new file.

    Raises:
        RefusedError: If a name would lead elsewhere when used as a path.
    """
    for name in names:
        try:
            refuse_unsafe_names([name], "OUT")
        except RestoreError as error:
            raise RefusedError(
                f"No tensor may be named {name!r}: used as a path, the name leads elsewhere."
            ) from error


def _write_model(
    out: Path, suffix: str, checkpoint: Checkpoint, options: argparse.Namespace
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
    if suffix in _SAVED_BY_KERAS:
        with written_aside(out) as aside:
            (model.save if suffix == ".keras" else model.save_weights)(aside)
        return len(model.weights)
    values = _of_model(model)
    return _write(out, writers()[suffix], values, {key: key for key in values})


def _require_readable(checkpoint: Checkpoint) -> None:
    """Read everything again, as damaged files are errors and not refusals.

    Raises:
        RestoreError: If a tensor cannot be read, or a file has changed.
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
