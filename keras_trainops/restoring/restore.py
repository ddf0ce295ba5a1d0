"""`restore` and `plan_restore`: open the source, plan, assign and report."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import reprlib
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeAlias

import keras

from keras_trainops import keras_private
from keras_trainops.adapt.base import Adapt
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.checkpoints.open import open_checkpoint
from keras_trainops.errors import RestoreError
from keras_trainops.paths import Patterns
from keras_trainops.restoring.loading.assign import assign
from keras_trainops.restoring.loading.progress import progress_bar
from keras_trainops.restoring.loading.tensors import overwritten_memory
from keras_trainops.restoring.naming.rules import Rename
from keras_trainops.restoring.planning.assignment import variable_bytes
from keras_trainops.restoring.planning.options import Options, Reaction
from keras_trainops.restoring.planning.plan import make_plan, refusal, require_variables
from keras_trainops.restoring.planning.report import RestoreReport
from keras_trainops.restoring.planning.saved_plan import SavedPlan, load_plan
from keras_trainops.restoring.sources import ModelCheckpoint, shares_variables

Source: TypeAlias = "str | bytes | os.PathLike[str] | Mapping[str, Any] | keras.Model | Checkpoint"
Plans: TypeAlias = "str | os.PathLike[str] | RestoreReport | HasReport | None"


class HasReport(Protocol):
    """What has restored a model and keeps the report, such as a `WarmStart`."""

    @property
    def report(self) -> RestoreReport | None: ...


def restore(
    model: keras.Model,
    source: Source,
    *,
    rename: Rename = None,
    include: Patterns = None,
    exclude: Patterns = None,
    adapt: Adapt = None,
    on_missing: Reaction | None = None,
    on_unexpected: Reaction | None = None,
    on_mismatch: Reaction = "error",
    include_optimizer: bool = False,
    plan: Plans = None,
    verbose: int = 0,
) -> RestoreReport:
    r"""Load weights into `model` by name, from any supported source: all of them, or none.

    Args:
        model: A built Keras model.
        source: The path of a checkpoint (see `open_checkpoint`), an open checkpoint, a mapping
            from name to array or tensor (nested mappings and lists are joined by `/`), or another
            Keras model.
        rename: Rules from key to variable path. An ordered mapping from regular expression
            (`re.fullmatch` on the key) to a template, a list of templates (one tensor, several
            variables), a `keras.Variable`, or None (leave the key out); or a callable from key to
            path or None; or "auto", which applies the rules and adapters of `suggest_rename`, and
            raises if anything in them rests on order or is ambiguous. A key that no rule matches
            keeps its own name. In a template, `\1` is a group as in `re.sub`, `\g<1+1>` the number
            in group 1, plus one, `\g<1+a>` that number as a letter, and `\g<2+1{0:0,1:3}>` the
            number in group 2, plus the entry for group 1. A template that ends in `/*` leads to
            the variable of that layer with the meaning of the key's last component, and `norm#2`
            is the second layer of its owner with that name and an automatic number.
        include: Patterns (see `keras_trainops.paths`) of the variables to restore; None for all.
        exclude: Patterns of the variables to leave unchanged.
        adapt: Mapping from pattern to an adapter of `kt.adapt`, such as `kt.adapt.Transpose()`, a
            callable on arrays, or a list of these. It converts the tensor, or combines the tensors
            if several keys lead to one variable, before the variable is assigned.
        on_missing: Reaction to a selected variable that no key leads to: "error", "warn" or
            "ignore". Defaults to "error", for a mapping of arrays to "ignore".
        on_unexpected: Reaction to a key that leads to no variable. Defaults to "ignore" (the report
            lists it), for a mapping of arrays to "error".
        on_mismatch: Reaction to shapes that differ. Unless it is "error", the variable is left
            unchanged.
        include_optimizer: If True, also restore the state of the model's optimizer: its step count
            and its slots, but not its learning rate.
        plan: The report of another restore, the `WarmStart` that did it, or the path of a plan that
            `report.save` wrote, in place of `rename` and `adapt`. Variables that it does not list
            are left unchanged.
        verbose: 1 to print the report and, if it takes long, a progress bar; 0 to print nothing.

    Returns:
        A report of what was restored from which key, and what was not. Values are cast to the
        variables' dtypes.

    Raises:
        RestoreError: If the source cannot be read, the model has no variables yet, or anything
            does not fit. The message lists all problems, and no variable was changed.
        ValueError: If an argument has the wrong type or value.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")])
        >>> report = restore(model, {"fc/w": np.ones((3, 2))}, rename={"fc/w": "head/kernel"})
        >>> dict(report.restored)
        {'sequential/head/kernel': 'fc/w'}

    References: `assign_from_checkpoint_fn`, `assign_from_values_fn` and
    `get_variables_to_restore` of tf.contrib.training and tf.contrib.framework.
    """
    options = Options(
        *(rename, include, exclude, adapt, on_missing, on_unexpected, on_mismatch),
        include_optimizer=include_optimizer,
        plan=as_plan(plan),
    ).checked()
    started = time.perf_counter()
    with open_source(source, model, include_optimizer) as checkpoint:
        made = make_plan(model, checkpoint, options)
        if made.report.problems:
            raise RestoreError(refusal(made))
        # Warn before anything is assigned, because filters may turn warnings into errors.
        for line in [*made.warnings, *_unbuilt_warning(made.report)]:
            warnings.warn(f"{made.report.source}: {line}", stacklevel=2)
        # Each variable is processed twice: checked and assigned.
        total = 2 * sum(variable_bytes(each.variable) for each in made.assignments)
        with progress_bar(total, verbose) as progress:
            assign(model, made.assignments, checkpoint, progress)
    seconds = time.perf_counter() - started
    report = dataclasses.replace(made.report, applied=True, seconds=seconds)
    if verbose:
        print(report, flush=True)
    return report


def plan_restore(
    model: keras.Model,
    source: Source,
    *,
    rename: Rename = None,
    include: Patterns = None,
    exclude: Patterns = None,
    adapt: Adapt = None,
    on_missing: Reaction | None = None,
    on_unexpected: Reaction | None = None,
    on_mismatch: Reaction = "error",
    include_optimizer: bool = False,
    plan: Plans = None,
) -> RestoreReport:
    """Report what `restore` would do with the same arguments, without reading or changing values.

    Args:
        model: A built Keras model.
        source: The source, as for `restore`.
        rename: Rules from key to variable path, as for `restore`.
        include: Patterns of the variables to restore; None for all.
        exclude: Patterns of the variables to leave unchanged.
        adapt: Mapping from pattern to adapter, as for `restore`.
        on_missing: Reaction to a selected variable that no key leads to.
        on_unexpected: Reaction to a key that leads to no variable.
        on_mismatch: Reaction to shapes that differ.
        include_optimizer: If True, also plan the state of the model's optimizer.
        plan: The report of another restore, or the path of its plan, as for `restore`.

    Returns:
        The report. `report.problems` lists the reasons why `restore` would raise, as far as names,
        shapes and dtypes show them; values are not read.

    Raises:
        RestoreError: If the source cannot be read or the model has no variables yet.
        ValueError: If an argument has the wrong type or value.

    Example:
        >>> import keras, numpy as np
        >>> layers = [keras.Input((3,)), keras.layers.Dense(2, name="head")]
        >>> model = keras.Sequential(layers, name="net")
        >>> plan_restore(model, {"head/kernel": np.ones((3, 1))}).mismatched[0].checkpoint_shape
        (3, 1)
    """
    options = Options(
        *(rename, include, exclude, adapt, on_missing, on_unexpected, on_mismatch),
        include_optimizer=include_optimizer,
        plan=as_plan(plan),
    ).checked()
    started = time.perf_counter()
    with open_source(source, model, include_optimizer) as checkpoint:
        made = make_plan(model, checkpoint, options)
    return dataclasses.replace(made.report, seconds=time.perf_counter() - started)


def as_plan(plan: Plans, argument: str = "plan") -> SavedPlan | None:
    """Return a plan from the report of a restore, from what did the restore, or from a file.

    Args:
        plan: The report, the `WarmStart`, or the path of a plan.
        argument: The name of the argument, for the message.

    Raises:
        RestoreError: If the file is not a plan.
        ValueError: If `plan` has another type, or nothing was restored.
    """
    if plan is None:
        return None
    if isinstance(plan, (str, os.PathLike)):
        return load_plan(plan)
    report = plan if isinstance(plan, RestoreReport) else getattr(plan, "report", None)
    if isinstance(report, RestoreReport) and report.origin is not None:
        return report.origin.leads_alone()
    raise ValueError(
        f"`{argument}` must be the report of a restore, a `WarmStart` that has loaded its weights, "
        f"or the path of a plan that `report.save` wrote. Received: {argument}={plan!r}"
    )


@contextlib.contextmanager
def open_source(
    source: Source, model: keras.Model, with_optimizer: bool = False
) -> Iterator[Checkpoint]:
    """Open any source that `restore` accepts.

    Args:
        source: The source.
        model: The model to restore into.
        with_optimizer: If True, a source model includes the state of its optimizer.

    Raises:
        RestoreError: If the source cannot be read, or is a model without variables.
        ValueError: If `source` has another type.
    """
    if isinstance(source, Checkpoint):
        yield source  # the caller opened it and closes it
    elif isinstance(source, keras.layers.Layer):
        yield _of_model(source, model, with_optimizer)
    elif isinstance(source, Mapping):
        yield ArraysCheckpoint(source, is_overwritten=overwritten_memory(model))
    elif isinstance(source, (str, bytes, os.PathLike)):
        with open_checkpoint(source) as checkpoint:
            yield checkpoint
    else:
        raise ValueError(
            "`source` must be the path of a checkpoint, a mapping from name to array, a Keras "
            "model or an open checkpoint. For a PyTorch module, pass its `state_dict()`; a single "
            f"array needs a name. Received: {reprlib.repr(source)}"
        )


def _of_model(source: keras.Model, target: keras.Model, with_optimizer: bool) -> Checkpoint:
    require_variables(source)
    optimizer = getattr(source, "optimizer", None) if with_optimizer else None
    named = keras_private.named_optimizers(optimizer)
    return ModelCheckpoint(
        source,
        {name: keras_private.innermost(each) for name, each in named.items()},
        copied=shares_variables(source, target),  # shared variables are about to be overwritten
    )


def _unbuilt_warning(report: RestoreReport) -> list[str]:
    if not report.unbuilt:
        return []
    return [
        f"these layers of {report.model!r} are not built yet, so nothing was restored into them: "
        f"{', '.join(report.unbuilt)}. Call the model on a batch first."
    ]
