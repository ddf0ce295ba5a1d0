"""`write_back`: a new file like the source, with the values of a model."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import keras

from keras_trainops.adapt.base import Adapt
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.format import Writer
from keras_trainops.checkpoints.storage.writing import UnwritableError, written_aside
from keras_trainops.errors import RestoreError
from keras_trainops.paths import Patterns
from keras_trainops.restoring.configuration import config_beside
from keras_trainops.restoring.loading.progress import progress_bar
from keras_trainops.restoring.naming.rules import Rename
from keras_trainops.restoring.planning.options import Options, Reaction
from keras_trainops.restoring.restore import Plans, Source, as_plan
from keras_trainops.writing.configuration import disagreements
from keras_trainops.writing.destination import path_for, refuse_files_of, require_space, writer_for
from keras_trainops.writing.gathering import WHAT, ModelValues
from keras_trainops.writing.inversion import Inversion, ShapeOf, invert
from keras_trainops.writing.like import Like, open_like
from keras_trainops.writing.peft import PeftAdapter
from keras_trainops.writing.report import WriteReport

Lora: TypeAlias = Literal["merge", "peft"]


def write_back(
    model: keras.Model,
    like: Source,
    out: str | os.PathLike[str],
    *,
    rename: Rename = None,
    include: Patterns = None,
    exclude: Patterns = None,
    adapt: Adapt = None,
    report: Plans = None,
    on_missing: Reaction | None = None,
    on_unexpected: Reaction | None = None,
    shape: ShapeOf = "like",
    lora: Lora = "merge",
    overwrite: bool = False,
    verbose: int = 0,
) -> WriteReport:
    r"""Write the weights of `model` as `like` stores them: the inverse of `restore`.

    The new file has the keys of `like` in their order, its shapes, dtypes, shards and metadata.
    Tensors that lead to no variable, such as an excluded head or tables of rotary embeddings, are
    copied from `like`; slots and counters of an optimizer are left out. A tensor whose variable has
    not changed keeps its bytes.

    If several processes train the model, all of them call it with the same arguments. The first one
    reads `like` and writes; variables that are sharded over processes come to it one at a time.

    Args:
        model: A built Keras model.
        like: The source that was restored, as for `restore`, or the path of a plan that
            `report.save` wrote. A Hugging Face directory is written as a directory.
        out: The new file, directory, or prefix of a TensorFlow checkpoint. Its format is that of
            `like`, unless `out` has the ending of another one, such as `.safetensors`.
        rename: Rules from key to variable path, as for `restore`.
        include: Patterns of the variables to write; None for all.
        exclude: Patterns of the variables whose tensors are copied from `like`.
        adapt: Mapping from pattern to adapter, as for `restore`; their inverses are applied.
        report: The report of the restore, the `WarmStart` that did it, or the path of a saved plan,
            in place of `rename` and `adapt`. `include` and `exclude` select among the variables
            that it lists.
        on_missing: Reaction to a selected variable that no key leads to, whose value would be lost:
            "error" (default), "warn" or "ignore".
        on_unexpected: Reaction to a tensor that leads to no variable. Defaults to "ignore", which
            copies it; for a plan to "error", because it has no values to copy.
        shape: "like" writes the shapes of `like`: slices that `Crop` and `Rows` left out are those
            of `like`, and new slices are an error. "model" writes the shapes of the model, such as
            a head with other classes; the report says which entries of `config.json` disagree.
        lora: What becomes of the low-rank updates of layers with `enable_lora`: "merge" adds them
            to the weights; "peft" writes a directory with an adapter that PEFT loads, and with the
            modules that have changed otherwise. PEFT cannot represent all updates.
        overwrite: If True, replace what exists at `out`. Files of a directory that are not written
            stay.
        verbose: 1 to print the report and, if it takes long, a progress bar; 0 to print nothing.

    Returns:
        A report of what was written, copied and left out, the same on all processes.

    Raises:
        RestoreError: If `like` cannot be read, the model has no variables yet, model and `like` do
            not fit, a value does not fit into its dtype, two variables with different values lead
            to one tensor, `out` exists, or the disk is full. Nothing was written.
        ValueError: If an argument has the wrong type or value, or the format cannot be written.

    Example:
        >>> import keras, numpy as np, keras_trainops as kt
        >>> np.savez("theirs.npz", **{"fc.weight": np.ones((2, 3), "float16")})
        >>> layers = [keras.Input((3,)), keras.layers.Dense(2, use_bias=False, name="head")]
        >>> model = keras.Sequential(layers)
        >>> rules = {"rename": {"fc.weight": "head/kernel"}, "adapt": kt.adapt.from_torch(model)}
        >>> report = kt.restore(model, "theirs.npz", **rules)
        >>> report = write_back(model, "theirs.npz", "ours.npz", **rules)
        >>> {key: (array.shape, array.dtype.name) for key, array in np.load("ours.npz").items()}
        {'fc.weight': ((2, 3), 'float16')}
    """
    values = ModelValues(model)
    processes = values.processes
    written: WriteReport | None = None
    lines: Sequence[str] = ()
    with processes.agreed(WHAT):
        if processes.is_first:
            with values.leading():
                options = Options(
                    rename, include, exclude, adapt, on_missing, plan=as_plan(report, "report")
                ).checked()
                request = Request(options, on_unexpected, shape, lora, overwrite)
                bar = functools.partial(progress_bar, verbose=verbose)
                written, lines = write(model, like, out, request, bar, values)
        else:
            values.follow()
    if written is None:
        return WriteReport.from_dict(processes.broadcast(None, WHAT))
    processes.broadcast(written.to_dict(), WHAT)
    for line in lines:
        warnings.warn(line, stacklevel=2)
    if verbose:
        print(written, flush=True)
    return written


class Request(NamedTuple):
    """The arguments of `write_back`, as documented there."""

    options: Options
    on_unexpected: Reaction | None = None
    shape: ShapeOf = "like"
    lora: Lora = "merge"
    overwrite: bool = False


def write(
    model: keras.Model,
    like: Source,
    out: str | os.PathLike[str],
    request: Request,
    progress_bar: Callable[[int], AbstractContextManager[Callable[[int], None]]],
    values: ModelValues | None = None,
) -> tuple[WriteReport, Sequence[str]]:
    """Write a file as `write_back` does.

    Args:
        model: A built Keras model.
        like: The source.
        out: The new file.
        request: The other arguments.
        progress_bar: Returns, given the number of bytes, a context with a function to report
            progress to.
        values: The values of the model, for the first of several processes.

    Returns:
        The report, and warnings for the user.
    """
    if request.lora not in get_args(Lora):
        raise ValueError(f"`lora` must be one of {get_args(Lora)}. Received: {request.lora!r}")
    started = time.perf_counter()
    values = values or ModelValues(model)
    with open_like(like, model) as source:
        path = path_for(out, source, overwrite=request.overwrite)
        options = _with_plan(request.options, source)
        writer: Writer = writer_for(os.fsdecode(out), source)
        inversion = invert(model, source, options, request.shape, request.on_unexpected, values)
        tensors: Checkpoint = inversion.tensors
        report = inversion.report
        if request.lora == "peft":
            adapter = _adapter(model, inversion, source)
            tensors, report, writer = adapter.tensors, adapter.report, adapter.write
        require_space(path, report.bytes)
        aside = written_aside(path, overwrite=request.overwrite)
        with aside as new, progress_bar(report.bytes) as progress:
            report_progress = _beating(progress, values)
            lines = _store(writer, new, tensors, source, report_progress)
            _refuse(inversion.tensors.problems, path)
            refuse_files_of(source, (file.name for file in new.parent.iterdir()), path)
            source.checkpoint.require_unchanged()
        notes = [*report.notes, *dict.fromkeys(inversion.tensors.notes), *lines]
        if request.lora == "merge":
            notes += _disagreements(inversion, source)
    seconds = time.perf_counter() - started
    written = dataclasses.replace(report, out=os.fsdecode(out), notes=tuple(notes), seconds=seconds)
    return written, inversion.warnings


def _beating(progress: Callable[[int], None], values: ModelValues) -> Callable[[int], None]:
    def report(nbytes: int) -> None:
        progress(nbytes)
        values.keep_waiting()

    return report


def _with_plan(options: Options, like: Like) -> Options:
    """Return the options with the plan that `like` is, unless there is another one."""
    if like.plan is None or options.plan is not None:
        return options
    return options._replace(plan=like.plan).checked()


def _adapter(model: keras.Model, inversion: Inversion, like: Like) -> PeftAdapter:
    """Return the adapter of PEFT.

    Raises:
        ValueError: If the source has no values to compare with.
    """
    if not like.has_values:
        raise ValueError('`lora="peft"` needs the original file as `like`, but it is a plan.')
    return PeftAdapter(model, inversion, like.checkpoint)


def _store(
    writer: Writer,
    new: Path,
    tensors: Checkpoint,
    like: Like,
    progress: Callable[[int], None],
) -> Sequence[str]:
    """Write the tensors, and return lines for the report."""
    try:
        return writer(new, tensors, {key: key for key in tensors}, progress) or ()
    except UnwritableError as error:
        message = f"Cannot write {new.name!r}: {error} Nothing was written."
        raise RestoreError(message) from error
    except (RestoreError, OSError, MemoryError):
        raise
    except Exception as error:
        if like.has_values:
            raise
        plan = like.checkpoint.location  # a file may contain anything
        message = f"The plan {plan!r} is damaged: {error!r}. Nothing was written."
        raise RestoreError(message) from error


def _refuse(problems: Sequence[str], path: Path) -> None:
    if problems:
        lines = "\n".join(f"  ! {line}" for line in dict.fromkeys(problems))
        raise RestoreError(
            f"Cannot write {str(path)!r}:\n{lines}\nNothing was written. Leave these variables "
            "out with `exclude=`, which copies their tensors from the source."
        )


def _disagreements(inversion: Inversion, like: Like) -> list[str]:
    shapes = inversion.report.reshaped
    changes = {key: (like.checkpoint.shape(key), shape) for key, shape in shapes.items()}
    is_from_file = like.has_values and like.format is not None
    config = config_beside(like.checkpoint.location) if is_from_file else None
    return disagreements(config, changes)
