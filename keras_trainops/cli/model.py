"""`keras-trainops plan` and `suggest`: fit a checkpoint to a model in a Keras file."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from keras_trainops.cli.output import FILE_HELP, RefusedError, print_json
from keras_trainops.registration import register_classes

if TYPE_CHECKING:
    import keras

_REACTIONS = ("error", "warn", "ignore")
_REACTIONS_TO = {
    "on_missing": "a variable without a key",
    "on_unexpected": "a key without a variable",
    "on_mismatch": "shapes that differ",
}
_SELECTIONS = ("include", "exclude", *_REACTIONS_TO)


def add_plan(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `plan` to the parser."""
    parser = commands.add_parser(
        "plan",
        parents=[common],
        help="show what a restore would do",
        description="Shows what `restore` would do, without reading or changing a value. Exits "
        "with 1 if it would be refused.",
    )
    _add_files(parser)
    add_restore_options(parser)
    parser.set_defaults(run=_plan)


def add_suggest(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `suggest` to the parser."""
    parser = commands.add_parser(
        "suggest",
        parents=[common],
        help="suggest rename rules",
        description="Suggests rename rules as Python code to check and paste. Exits with 1 if "
        "nothing was found, or if something is ambiguous.",
    )
    _add_files(parser)
    _add_selection(parser)
    parser.set_defaults(run=_suggest)


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model that Keras loads: a .keras file")
    parser.add_argument("file", metavar="FILE", help=FILE_HELP)
    add_imports(parser)


def add_imports(parser: argparse.ArgumentParser) -> None:
    """Add the option that registers the user's own classes with Keras."""
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module that registers custom layers before loading the model; may be "
        "given several times",
    )


def _add_selection(parser: argparse.ArgumentParser) -> None:
    for option, what in (("--include", "restore only"), ("--exclude", "leave out")):
        parser.add_argument(
            option,
            action="append",
            type=_pattern,
            metavar="PATTERN",
            help=f"{what} variables of the model that match; may be given several times",
        )


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        message = f"must be a regular expression, not {text!r}: {error}"
        raise argparse.ArgumentTypeError(message) from None
    return text


def add_restore_options(
    parser: argparse.ArgumentParser, reactions: Iterable[str] = _REACTIONS_TO
) -> None:
    """Add the arguments of `restore`.

    Args:
        parser: The parser of a command.
        reactions: Those of the arguments that set reactions which the command has.
    """
    add_rename(parser)
    _add_selection(parser)
    for name in reactions:
        option = f"--{name.replace('_', '-')}"
        what = _REACTIONS_TO[name]
        parser.add_argument(option, choices=_REACTIONS, help=f"what to do with {what}")
    parser.add_argument(
        "--from-torch", action="store_true", help="the tensors have PyTorch's layouts"
    )
    parser.add_argument(
        "--reshape",
        action="append",
        type=_pattern,
        default=[],
        metavar="PATTERN",
        help="reshape tensors to the variables that match; may be given several times",
    )


def add_rename(parser: argparse.ArgumentParser) -> None:
    """Add the option for rename rules."""
    parser.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="'KEY => PATH'",
        help="map keys that match a regular expression to a path (\\1 is the first group, "
        "\\g<1+1> the number in it plus one); an empty path leaves them out; may be given several "
        "times, the first match wins; or: auto",
    )


def needs_model(options: argparse.Namespace) -> bool:
    """Return True if there are options that need a model."""
    given = [getattr(options, name, None) for name in _SELECTIONS]
    return any([*given, options.from_torch, options.reshape, options.rename == ["auto"]])


def rename_rules(texts: list[str]) -> dict[str, str | None] | Literal["auto"] | None:
    """Parse the rules of `--rename`.

    Args:
        texts: The values of the option.

    Returns:
        Mapping from pattern to path, or None as the path to leave keys out; "auto"; or None if
        there are no rules.

    Raises:
        ValueError: If a text is not a rule, or two rules have the same pattern.
    """
    if texts == ["auto"]:
        return "auto"
    rules: dict[str, str | None] = {}
    for text in texts:
        whole = f"{text} "  # the path may be empty
        arrow = " => " if " => " in whole else "=>"  # `(?<=>)` in a pattern is not an arrow then
        key, found, path = (part.strip() for part in whole.partition(arrow))
        if not found or not key:
            raise ValueError(
                f"`--rename` must be 'KEY => PATH' or, alone, auto. Received: {text!r}"
            )
        if key in rules:
            raise ValueError(f"`--rename` has two rules for {key!r}.")
        rules[key] = path or None
    return rules or None


def restore_arguments(options: argparse.Namespace, model: keras.Model) -> dict[str, Any]:
    """Convert the options to arguments of `restore`."""
    import keras_trainops as kt

    adapt: dict[str, Any] = {pattern: kt.adapt.Reshape() for pattern in options.reshape}
    if options.from_torch:
        adapt |= kt.adapt.from_torch(model)
    given = {
        "rename": rename_rules(options.rename),
        "adapt": adapt,
        **{name: getattr(options, name, None) for name in _SELECTIONS},
    }
    return {name: value for name, value in given.items() if value}


def load_model(file: str, modules: list[str]) -> keras.Model:
    """Load a model without compiling it.

    Args:
        file: Path of a `.keras` file or another whole model.
        modules: Names of modules to import first.

    Returns:
        The model.

    Raises:
        ValueError: If a module cannot be imported, or Keras cannot load the file.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's remarks do not help users
    import keras

    register_classes()  # registers our classes
    for module in modules:
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # as `python -m` does
        try:
            importlib.import_module(module)
        except Exception as error:  # of any class, as it is the user's code
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"Cannot import {module!r} ({reason})") from error
    if not os.path.exists(file):
        raise ValueError(f"There is no model at {file!r}.")
    try:
        return keras.saving.load_model(file, compile=False)
    except Exception as error:  # of any class, as configurations can be wrong in any way
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"Keras cannot load a model from {file!r} ({type(error).__name__}: {reason}). It must "
            "be a whole model, as saved by `model.save('model.keras')`; register custom layers "
            "with `--import MODULE`."
        ) from error


def _plan(options: argparse.Namespace) -> int:
    rename_rules(options.rename)  # reports errors before the slow import of Keras
    model = load_model(options.model, options.modules)
    import keras_trainops as kt

    report = kt.plan_restore(model, options.file, **restore_arguments(options, model))
    if options.json:
        print_json(report.to_dict())
    else:
        print(report)
    return 1 if report.problems else 0


def _suggest(options: argparse.Namespace) -> int:
    model = load_model(options.model, options.modules)
    import keras_trainops as kt

    selection = {"include": options.include, "exclude": options.exclude}
    try:
        found = kt.suggest_rename(model, options.file, **selection)
    except kt.RestoreError:
        raise
    except ValueError as error:  # a valid pattern that matches nothing
        raise RefusedError(str(error)) from error
    if options.json:
        print_json(found.to_dict())
    else:
        print(found)
    return 1 if found.ambiguous or not found.pairs else 0
