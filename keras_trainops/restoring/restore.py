"""`restore` and `plan_restore`: open the source, plan, assign and report."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import reprlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias

import keras

from keras_trainops import keras_private
from keras_trainops.adapt.base import Adapt
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.checkpoints.open import open_checkpoint
from keras_trainops.errors import RestoreError
from keras_trainops.paths import Patterns
from keras_trainops.processes import Processes
from keras_trainops.restoring.loading.agreement import (
    Who,
    agreed,
    assign_together,
    facts_of,
    processes_for,
    require_same,
    require_same_values,
)
from keras_trainops.restoring.loading.assign import assign
from keras_trainops.restoring.loading.from_first import restore_from_first
from keras_trainops.restoring.loading.hold import hold
from keras_trainops.restoring.loading.progress import progress_bar
from keras_trainops.restoring.loading.room import How, has_room, require_valid
from keras_trainops.restoring.loading.tensors import overwritten_memory
from keras_trainops.restoring.naming.rules import Rename
from keras_trainops.restoring.planning.assignment import variable_bytes
from keras_trainops.restoring.planning.optimizer_state import build_optimizer
from keras_trainops.restoring.planning.options import Options, Reaction
from keras_trainops.restoring.planning.plan import Plan, make_plan, refusal, require_variables
from keras_trainops.restoring.planning.report import RestoreReport
from keras_trainops.restoring.planning.saved_plan import SavedPlan, load_plan
from keras_trainops.restoring.sources import ModelCheckpoint, shares_variables
from keras_trainops.restoring.spread import bytes_here, is_spread

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
    processes: Who = "each",
    memory: How = "auto",
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
        processes: Who reads if several processes train the model, which must all call `restore`:
            "each" process reads what it holds of the variables; the "first" reads everything and
            sends it to the others, which need no file; or this process restores "alone", without
            the others.
        memory: "once" reads every tensor once, and keeps all of them until the last is checked;
            "bounded" reads every tensor twice, one at a time, to check and to assign it, and a
            failure of an assignment may leave a model of more than 8 MB half-loaded; "auto" reads
            once if twice the bytes of the selected variables are free. Several processes, and one
            with variables that are spread over devices, always read once.
        verbose: 1 to print the report and, if it takes long, a progress bar; 0 to print nothing.

    Returns:
        A report of what was restored from which key, and what was not. Values are cast to the
        variables' dtypes.

    Raises:
        RestoreError: If the source cannot be read, the model has no variables yet, or anything
            does not fit. The message lists all problems, and no variable was changed. If it fails
            in one process, it fails in all that restore together.
        ValueError: If an argument has the wrong type or value.
        ProcessTimeoutError: If another process does not call `restore`.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")])
        >>> report = restore(model, {"fc/w": np.ones((3, 2))}, rename={"fc/w": "head/kernel"})
        >>> dict(report.restored)
        {'sequential/head/kernel': 'fc/w'}

    References: `assign_from_checkpoint_fn`, `assign_from_values_fn` and
    `get_variables_to_restore` of tf.contrib.training and tf.contrib.framework.
    """
    together = processes_for(model, processes)
    require_valid(memory)
    started = time.perf_counter()
    if include_optimizer and together.several:
        build_optimizer(model)  # before anything fails, as all processes may have to take part

    with contextlib.ExitStack() as opened:

        def prepare() -> tuple[Plan, Checkpoint]:
            options = Options(
                *(rename, include, exclude, adapt, on_missing, on_unexpected, on_mismatch),
                include_optimizer=include_optimizer,
                plan=as_plan(plan),
            ).checked()
            checkpoint = opened.enter_context(open_source(source, model, include_optimizer))
            made = make_plan(model, checkpoint, options)
            if made.report.problems:
                raise RestoreError(refusal(made))
            # Warn before anything is assigned, because filters may turn warnings into errors.
            lines = [*made.warnings, *_unbuilt_warning(made.report)] if together.is_first else []
            for line in lines:
                warnings.warn(f"{made.report.source}: {line}", stacklevel=4)
            return made, checkpoint

        shown = verbose if together.is_first else 0
        found = _restore(model, together, processes, prepare, memory, shown)
    report = dataclasses.replace(found, applied=True, seconds=time.perf_counter() - started)
    if shown:
        print(report, flush=True)
    return report


def _restore(
    model: keras.Model,
    processes: Processes,
    who: Who,
    prepare: Callable[[], tuple[Plan, Checkpoint]],
    memory: How,
    verbose: int,
) -> RestoreReport:
    """Plan, read, agree with the other processes, and assign.

    Args:
        model: The model.
        processes: The processes that restore it together.
        who: The processes that read.
        prepare: Opens the source, and makes and checks the plan.
        memory: Whether all new values may be in memory at once.
        verbose: 1 to show a progress bar if it takes long.
    """
    if who == "first" and processes.several:
        return restore_from_first(model, processes, prepare)
    with agreed(processes):
        plan, checkpoint = prepare()
    assignments = plan.assignments
    require_same(processes, facts_of(who, assignments, checkpoint))
    variables = [assignment.variable for assignment in assignments]
    # Other processes of JAX may have the same arrays, and would be asked if they were assigned to.
    is_lone = who == "alone" and Processes(model).several
    is_apart = processes.several or is_lone or any(map(is_spread, variables))
    if not is_apart and not has_room(memory, variables):
        # Each variable is processed twice: checked and assigned.
        total = 2 * sum(map(variable_bytes, variables))
        with progress_bar(total, verbose) as progress:
            assign(model, assignments, checkpoint, progress)
        return plan.report
    with agreed(processes), progress_bar(sum(map(bytes_here, variables)), verbose) as progress:
        held, digests = hold(model, assignments, checkpoint, progress, compared=processes.several)
    require_same_values(processes, assignments, digests)
    assign_together(processes, held)
    return plan.report


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
