"""The plan of a restore: complete, and checked whole, before anything is read or assigned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import keras

from keras_trainops import keras_private, paths
from keras_trainops.adapt.base import Adapt, Adapter, as_adapter
from keras_trainops.checkpoints.arrays import nbytes
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.arrays import ArraysCheckpoint
from keras_trainops.errors import RestoreError
from keras_trainops.restoring.naming.matching import Matching, pair_by_heuristic
from keras_trainops.restoring.naming.rules import Rename, apply_rules
from keras_trainops.restoring.naming.table import NameTable
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.planning.dependent_tensors import meaning_problems
from keras_trainops.restoring.planning.exclusions import exclude_patterns
from keras_trainops.restoring.planning.optimizer_state import plan_optimizer
from keras_trainops.restoring.planning.report import Mismatch, RestoreReport, folded
from keras_trainops.restoring.planning.shapes import dtype_problems, for_keys, in_words, mismatch_of
from keras_trainops.restoring.planning.vocabularies import vocabulary_problems
from keras_trainops.weight_names import named_weights

Reaction = Literal["error", "warn", "ignore"]


class Options(NamedTuple):
    """What the caller of `restore` asks for, as documented there."""

    rename: Rename = None
    include: paths.Patterns = None
    exclude: paths.Patterns = None
    adapt: Adapt = None
    on_missing: Reaction | None = None
    on_unexpected: Reaction | None = None
    on_mismatch: Reaction = "error"
    include_optimizer: bool = False

    def for_source(self, checkpoint: Checkpoint) -> Options:
        """The same with the reactions that are not given: what is usual for such a source.

        A checkpoint must cover the model; arrays somebody put together must be used whole.
        """
        whole = isinstance(checkpoint, ArraysCheckpoint)
        return self._replace(
            on_missing=self.on_missing or ("ignore" if whole else "error"),
            on_unexpected=self.on_unexpected or ("error" if whole else "ignore"),
        )

    def reaction(self, what: str) -> Reaction:
        """The reaction to what `on_…` names."""
        return getattr(self, what)


@dataclass
class Plan:
    """What a restore will do.

    Attributes:
        assignments: What is to be assigned, in the order of the model's variables.
        report: The same for people, with all that was left aside.
        failing: Paths of the variables for which `restore` refuses.
        warnings: What the caller asked to be warned of.
        paths: The paths of all variables of the model.
    """

    assignments: list[Assignment]
    report: RestoreReport
    failing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    paths: Sequence[str] = ()


def make_plan(model: keras.Model, checkpoint: Checkpoint, options: Options) -> Plan:
    """Plans, from names, shapes and dtypes alone, without reading a tensor.

    Raises:
        ValueError: If an argument is not of the kind it must be.
        RestoreError: If the model has no variables yet.
    """
    options = options.for_source(checkpoint)
    for argument in ("on_missing", "on_unexpected", "on_mismatch"):
        reaction = options.reaction(argument)
        if reaction not in get_args(Reaction):
            raise ValueError(
                f"`{argument}` must be one of {get_args(Reaction)}. Received: {reaction!r}"
            )
    unbuilt = require_variables(model)
    weights = named_weights(model)
    named = [paths.NamedVariable(weight.path, weight.variable) for weight in weights]
    problems: list[str] = []
    selected = _selected(named, options, problems)
    adapters = _adapters(named, options.adapt, problems)
    table = NameTable(model, weights, checkpoint)
    matching = Matching(named, selected, adapters, table)
    if isinstance(options.rename, str):
        renaming = pair_by_heuristic(options.rename, matching, checkpoint)
    else:
        renaming = apply_rules(options.rename, checkpoint)
    problems += renaming.problems
    matching.add(renaming.renamed)
    problems += matching.problems()
    outcome = _outcome(matching, checkpoint)
    wanted = outcome.assignments + (outcome.unfit if options.on_mismatch == "error" else [])
    altered, outcome.not_alone = meaning_problems(wanted, matching.unused, checkpoint)
    words, other_words, warned = vocabulary_problems(model, checkpoint, outcome.assignments)
    outcome.not_alone += other_words
    problems += outcome.problems + altered + words
    state: list[Assignment] = []
    if options.include_optimizer:
        state, why_not = plan_optimizer(model, checkpoint, outcome.assignments)
        problems += why_not
    plan = _plan(model, checkpoint, matching, outcome, state, unbuilt, problems, options)
    plan.warnings += warned
    return plan


def require_variables(model: keras.Model) -> tuple[str, ...]:
    """Refuses a model that has no variables yet; names the layers that lack theirs.

    Raises:
        RestoreError: If there is nothing to restore into.
        ValueError: If `model` is no Keras model or layer.
    """
    if not isinstance(model, keras.layers.Layer):
        raise ValueError(f"`model` must be a Keras model. Received: {model!r}")
    if not model.weights:
        raise RestoreError(
            f"The model {model.name!r} has no variables yet: it is built when it first sees data. "
            "Call it on a batch before you restore, as in `model(x)`; or mix in `TrainOpsMixin`, "
            "which builds it before `WarmStart` runs."
        )
    return keras_private.unbuilt_layers(model)


def _selected(
    named: Sequence[paths.NamedVariable], options: Options, problems: list[str]
) -> list[bool]:
    chosen = {}
    for argument, patterns in (("include", options.include), ("exclude", options.exclude)):
        try:
            chosen[argument] = paths.select(patterns, named)
        except ValueError as error:
            problems += [f"`{argument}`: {line}" for line in str(error).splitlines()]
            chosen[argument] = [False] * len(named)
    everything = options.include is None
    return [
        (everything or included) and not excluded
        for included, excluded in zip(chosen["include"], chosen["exclude"], strict=True)
    ]


def _adapters(
    named: Sequence[paths.NamedVariable], adapt: Adapt, problems: list[str]
) -> list[Adapter | None]:
    rules = [(pattern, as_adapter(value)) for pattern, value in paths.as_rules(adapt)]
    own = [rule for rule in rules if not rule[1].gives_way]
    others = [rule for rule in rules if rule[1].gives_way]
    try:
        first = paths.first_match(own, named)
        second = paths.first_match(others, named, shadowed="allow")
    except ValueError as error:
        problems += [f"`adapt`: {line}" for line in str(error).splitlines()]
        return [None] * len(named)
    return [ours or other for ours, other in zip(first, second, strict=True)]


@dataclass
class _Outcome:
    """What the matching of names comes to, once shapes and dtypes are looked at."""

    assignments: list[Assignment] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)  # the same in words
    unfit: list[Assignment] = field(default_factory=list)  # the same, as they would be assigned
    not_adapted: list[str] = field(default_factory=list)
    not_alone: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _outcome(matching: Matching, checkpoint: Checkpoint) -> _Outcome:
    outcome = _Outcome()
    for position, (path, variable) in enumerate(matching.named):
        keys = matching.keys_of(position)
        if not matching.selected[position]:
            outcome.excluded.append(path)
        elif not keys:
            outcome.missing.append(path)
        else:
            adapter, copies = matching.adapters[position], matching.copies_of.get(position, [])
            assignment = Assignment(path, variable, keys, adapter, copies)
            outcome.problems += dtype_problems(assignment, checkpoint)
            try:
                assignment = for_keys(assignment, checkpoint)
                mismatch = mismatch_of(assignment, checkpoint, matching.table, position)
            except ValueError as error:
                outcome.problems.append(str(error))
                outcome.not_adapted.append(path)
                continue
            if mismatch is None:
                outcome.assignments.append(assignment)
            else:
                outcome.unfit.append(assignment)
                outcome.mismatched.append(mismatch)
                outcome.mismatches.append(in_words(mismatch, assignment, checkpoint))
    return outcome


def _plan(
    model: keras.Model,
    checkpoint: Checkpoint,
    matching: Matching,
    outcome: _Outcome,
    state: list[Assignment],
    unbuilt: tuple[str, ...],
    problems: list[str],
    options: Options,
) -> Plan:
    assignments, mismatched, missing = outcome.assignments, outcome.mismatched, outcome.missing
    restored_state = {key for assignment in state for key in assignment.keys}
    unused = [key for key in matching.unused if key not in restored_state]
    unexpected = [key for key in unused if key not in checkpoint.training_state]
    lines = {
        "on_mismatch": outcome.mismatches,
        "on_missing": [f"- missing: {folded(missing)}"] if missing else [],
        "on_unexpected": [f"+ unused: {folded(unexpected)}"] if unexpected else [],
    }
    refused = [
        line for what, found in lines.items() if options.reaction(what) == "error" for line in found
    ]
    if not assignments and not problems:
        refused = [line for found in lines.values() for line in found]
        if not mismatched:
            problems.append(_nothing_matched(checkpoint, matching))
    report = RestoreReport(
        model=model.name,
        source=f"{checkpoint.location!r} ({checkpoint.format})",
        restored={a.path: " + ".join(a.keys) for a in assignments},
        adapted={a.path: str(a.adapter) for a in assignments if a.adapter is not None},
        optimizer={a.path: a.keys[0] for a in state},
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=tuple(mismatched),
        excluded=tuple(outcome.excluded),
        ignored=tuple(matching.ignored),
        slots=tuple(key for key in unused if key in checkpoint.training_state),
        unbuilt=unbuilt,
        problems=tuple(problems + refused),
        bytes=sum(
            nbytes(checkpoint.shape(key), checkpoint.dtype(key))
            for key in {k for a in [*assignments, *state] for k in a.keys}
        ),
    )
    failing = [*outcome.not_adapted, *outcome.not_alone]
    failing += [m.path for m in mismatched] if options.on_mismatch == "error" else []
    failing += missing if options.on_missing == "error" else []
    warned = [
        line for what, found in lines.items() if options.reaction(what) == "warn" for line in found
    ]
    return Plan([*assignments, *state], report, failing, warned, matching.table.paths)


def _nothing_matched(checkpoint: Checkpoint, matching: Matching) -> str:
    if not any(matching.selected):
        return "No variable is selected: `include` and `exclude` leave nothing."
    examples = [key for key in checkpoint if key not in checkpoint.training_state]
    if not examples:
        return f"{checkpoint.location!r} holds no weights."
    return (
        f"No key of {checkpoint.location!r} leads to a selected variable. Keys look like "
        f"{examples[:2]}, variables like {matching.table.paths[:2]}."
    )


def refusal(plan: Plan) -> str:
    """The error message for a plan with problems."""
    report = plan.report
    paths_of_mismatched = [m.path for m in report.mismatched]
    selected = {*report.restored, *report.missing, *paths_of_mismatched, *plan.failing}
    what = f"{len(plan.failing)} of {len(selected)} variables of " if plan.failing else ""
    lines = "\n".join(f"  {line}" for line in report.problems)
    patterns = exclude_patterns(set(plan.failing), plan.paths)
    leave = (
        f", or leave variables at their initial values with `exclude={patterns}`"
        if patterns
        else ""
    )
    return (
        f"Cannot restore {what}{report.model!r} from {report.source}:\n{lines}\n"
        f"Nothing was changed. Say what goes where with `rename=`{leave}."
    )
