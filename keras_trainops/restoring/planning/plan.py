"""The plan of a restore: complete and fully checked before any value is read or assigned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import keras

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.errors import RestoreError
from keras_trainops.restoring.differences import differences
from keras_trainops.restoring.guessing.automatic import rename_automatically
from keras_trainops.restoring.naming.matching import Matching
from keras_trainops.restoring.naming.rules import apply_rules
from keras_trainops.restoring.naming.table import NameTable
from keras_trainops.restoring.naming.target import Target
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.planning.exclusions import exclude_patterns
from keras_trainops.restoring.planning.findings import Findings, findings_of, sort_unused
from keras_trainops.restoring.planning.following import follow
from keras_trainops.restoring.planning.optimizer_state import plan_optimizer
from keras_trainops.restoring.planning.options import Options, choose
from keras_trainops.restoring.planning.report import RestoreReport
from keras_trainops.restoring.planning.saved_plan import Lead, origin_of


@dataclass
class Plan:
    """The plan of a restore.

    Attributes:
        assignments: The assignments, in the order of the model's variables.
        report: The report, which also lists everything that is not assigned.
        unfit: Assignments whose variable has another shape than its tensors.
        failing: Paths of the variables for which `restore` raises.
        warnings: Warnings that the options ask for.
        paths: The paths of all variables of the model.
    """

    assignments: list[Assignment]
    report: RestoreReport
    unfit: list[Assignment] = field(default_factory=list)
    failing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    paths: Sequence[str] = ()


def make_plan(model: keras.Model, checkpoint: Checkpoint, options: Options) -> Plan:
    """Make a plan from names, shapes and dtypes.

    At most the tf-idf weights of lookup layers are read.

    Args:
        model: A built model.
        checkpoint: The source.
        options: The arguments of `restore`.

    Raises:
        ValueError: If an argument has the wrong type or value.
        RestoreError: If the model has no variables yet.
    """
    options = options.for_source(checkpoint)
    unbuilt = require_variables(model)
    matching, problems = _match(model, NameTable(model, checkpoint), checkpoint, options)
    findings = findings_of(model, checkpoint, matching, options)
    problems += findings.problems
    state: list[Assignment] = []
    if options.include_optimizer:
        state, state_problems = plan_optimizer(model, checkpoint, findings.assignments)
        problems += state_problems
    findings.unexpected, findings.slots = sort_unused(matching.unused, state, checkpoint)
    targets = matching.table.targets
    if findings.assignments or problems:
        problems += findings.lines_for("error", options)
    else:
        problems += _empty_plan(findings, checkpoint, targets)
    assignments = [*findings.assignments, *state]
    report = RestoreReport(
        model=model.name,
        source=f"{checkpoint.location!r} ({checkpoint.format})",
        restored={a.path: " + ".join(a.keys) for a in findings.assignments},
        adapted={a.path: str(a.adapter) for a in assignments if a.adapter is not None},
        optimizer={a.path: a.keys[0] for a in state},
        missing=tuple(findings.missing),
        unexpected=tuple(findings.unexpected),
        mismatched=tuple(findings.mismatched),
        excluded=tuple(findings.excluded),
        ignored=tuple(matching.ignored),
        slots=tuple(findings.slots),
        unbuilt=unbuilt,
        problems=tuple(problems),
        bytes=_bytes_to_read(assignments, checkpoint),
        origin=origin_of(model.name, checkpoint, list(map(_lead, findings.assignments)), targets),
    )
    return Plan(
        assignments,
        report,
        unfit=findings.unfit,
        failing=findings.failing(options),
        warnings=[
            *findings.lines_for("warn", options),
            *findings.warnings,
            *differences(
                model, checkpoint, ((a.keys[0], a.variable) for a in findings.assignments)
            ),
        ],
        paths=[target.path for target in targets],
    )


def _lead(assignment: Assignment) -> Lead:
    keys, copies = tuple(assignment.keys), tuple(assignment.copies)
    return Lead(assignment.path, keys, assignment.adapter, copies)


def _match(
    model: keras.Model, table: NameTable, checkpoint: Checkpoint, options: Options
) -> tuple[Matching, list[str]]:
    """Return the variables with their keys, and lines about problems with the arguments."""
    matching = Matching(table)
    problems = choose(table.targets, options)
    if options.plan is not None:
        return matching, problems + follow(options.plan, matching, checkpoint)
    if isinstance(options.rename, str):
        _require_auto(options.rename)
        renaming = rename_automatically(model, table, checkpoint)
    else:
        renaming = apply_rules(options.rename, checkpoint)
    return matching, problems + renaming.problems + matching.resolve(renaming.renamed)


def _require_auto(rename: str) -> None:
    if rename != "auto":
        raise ValueError(
            '`rename` must be "auto", a mapping from regular expression to path, or a callable '
            f"from key to path. Received: rename={rename!r}"
        )


def require_variables(model: keras.Model) -> tuple[str, ...]:
    """Check that a model has variables, and return the names of layers that are not built.

    Raises:
        RestoreError: If the model has no variables.
        ValueError: If `model` is not a Keras model or layer.
        NotImplementedError: If its weights are distributed by an engine that is not supported.
    """
    if not isinstance(model, keras.layers.Layer):
        raise ValueError(f"`model` must be a Keras model. Received: {model!r}")
    backend().require_supported_engine(model)
    if not model.weights:
        raise RestoreError(
            f"The model {model.name!r} has no variables yet: it is built when it first sees data. "
            "Call it on a batch before you restore, as in `model(x)`; or mix in `TrainOpsMixin`, "
            "which builds it before `WarmStart` runs."
        )
    return tuple(layer.name for layer in keras_private.unbuilt_layers(model))


def _empty_plan(findings: Findings, checkpoint: Checkpoint, targets: Sequence[Target]) -> list[str]:
    """Return lines about why a plan assigns nothing."""
    lines = findings.lines()
    if findings.mismatched:
        return lines
    return [_why_nothing_matched(checkpoint, targets), *lines]


def _why_nothing_matched(checkpoint: Checkpoint, targets: Sequence[Target]) -> str:
    if not any(target.selected for target in targets):
        return "No variable is selected: `include` and `exclude` leave nothing."
    examples = [key for key in checkpoint if key not in checkpoint.training_state]
    if not examples:
        return f"{checkpoint.location!r} contains no weights."
    return (
        f"No key of {checkpoint.location!r} leads to a selected variable. Keys look like "
        f"{examples[:2]}, variables like {[target.path for target in targets[:2]]}."
    )


def _bytes_to_read(assignments: Sequence[Assignment], checkpoint: Checkpoint) -> int:
    keys: set[str] = set()
    keys.update(*(assignment.keys for assignment in assignments))
    return sum(checkpoint.nbytes(key) for key in keys)


def refusal(plan: Plan) -> str:
    """Return the error message for a plan with problems."""
    report = plan.report
    mismatched = [mismatch.path for mismatch in report.mismatched]
    selected = {*report.restored, *report.missing, *mismatched, *plan.failing}
    count = f"{len(plan.failing)} of {len(selected)} variables of " if plan.failing else ""
    lines = "\n".join(f"  {line}" for line in report.problems)
    patterns = exclude_patterns(set(plan.failing), plan.paths)
    exclude = (
        f", or leave variables at their initial values with `exclude={patterns}`"
        if patterns
        else ""
    )
    return (
        f"Cannot restore {count}{report.model!r} from {report.source}:\n{lines}\n"
        f"Nothing was changed. Map keys to variables with `rename=`{exclude}."
    )
