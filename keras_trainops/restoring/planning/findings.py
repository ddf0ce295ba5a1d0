"""Compare each variable with its tensors, by name, shape and dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import keras

from keras_trainops.adapt.suggestion import Hints
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.restoring.naming.matching import Matching
from keras_trainops.restoring.naming.target import Target
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.planning.dependent_tensors import dependent_tensor_problems
from keras_trainops.restoring.planning.options import Options, Reaction
from keras_trainops.restoring.planning.report import Mismatch, folded
from keras_trainops.restoring.planning.shapes import (
    dtype_problems,
    mismatch_line,
    mismatch_of,
    with_adapter_for_keys,
)
from keras_trainops.restoring.planning.vocabularies import vocabulary_problems


@dataclass
class Findings:
    """The results of the comparison.

    Attributes:
        assignments: Assignments that fit, in the order of the model's variables.
        mismatched: Variables whose shape differs from their tensor's.
        mismatch_lines: A line of the report for each of them.
        unfit: An assignment for each of them.
        missing: Paths of selected variables without a key.
        excluded: Paths of variables that are not selected.
        unusable: Paths of variables that cannot be restored, whatever the reactions.
        unexpected: Keys of weights that lead to no variable.
        slots: Keys of training state that lead to no variable.
        problems: Reasons to refuse the restore, whatever the reactions.
        warnings: Warnings for the user.
    """

    assignments: list[Assignment] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)
    mismatch_lines: list[str] = field(default_factory=list)
    unfit: list[Assignment] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    slots: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> dict[str, list[str]]:
        """Return lines for the report, by the argument that sets the reaction to them."""
        missing = [f"- missing: {folded(self.missing)}"] if self.missing else []
        unused = [f"+ unused: {folded(self.unexpected)}"] if self.unexpected else []
        return {"on_mismatch": self.mismatch_lines, "on_missing": missing, "on_unexpected": unused}

    def lines_for(self, reaction: Reaction, options: Options) -> list[str]:
        """Return the lines to which the options set this reaction."""
        found: list[str] = []
        for argument, lines in self.lines().items():
            if options.reaction(argument) == reaction:
                found += lines
        return found

    def failing(self, options: Options) -> list[str]:
        """Return the paths of the variables for which `restore` raises."""
        failing = list(self.unusable)
        if options.on_mismatch == "error":
            failing += [mismatch.path for mismatch in self.mismatched]
        if options.on_missing == "error":
            failing += self.missing
        return failing


def compare(
    model: keras.Model, checkpoint: Checkpoint, matching: Matching, options: Options
) -> Findings:
    """Compare every variable with the tensors of its keys.

    Args:
        model: The model.
        checkpoint: The source.
        matching: The variables with their keys.
        options: The arguments of `restore`; only `on_mismatch` is used.
    """
    findings = Findings()
    hints = Hints(model)
    for target in matching.table.targets:
        if not target.selected:
            findings.excluded.append(target.path)
        elif not target.leads:
            findings.missing.append(target.path)
        else:
            _compare_tensors(target, findings, checkpoint, matching, hints)
    wanted = findings.assignments + (findings.unfit if options.on_mismatch == "error" else [])
    incomplete, paths = dependent_tensor_problems(wanted, matching.unused, checkpoint)
    words, paths_of_words, findings.warnings = vocabulary_problems(
        model, checkpoint, findings.assignments
    )
    findings.problems += incomplete + words
    findings.unusable += paths + paths_of_words
    return findings


def _compare_tensors(
    target: Target, findings: Findings, checkpoint: Checkpoint, matching: Matching, hints: Hints
) -> None:
    """Compare one variable with its tensors.

    Args:
        target: A selected variable with keys.
        findings: Receives the results.
        checkpoint: The source.
        matching: All variables, for patterns in suggestions.
        hints: Suggests adapters.
    """
    assignment = Assignment(
        target.path, target.variable, target.keys, target.adapter, target.copies
    )
    findings.problems += dtype_problems(assignment, checkpoint)
    try:
        assignment = with_adapter_for_keys(assignment, checkpoint)
        mismatch = mismatch_of(
            assignment, checkpoint, hints, lambda: matching.table.pattern_for(target)
        )
    except ValueError as error:
        findings.problems.append(str(error))
        findings.unusable.append(target.path)
        return
    if mismatch is None:
        findings.assignments.append(assignment)
    else:
        findings.unfit.append(assignment)
        findings.mismatched.append(mismatch)
        findings.mismatch_lines.append(mismatch_line(mismatch, assignment, checkpoint))


def sort_unused(
    findings: Findings, unused: Sequence[str], state: Sequence[Assignment], checkpoint: Checkpoint
) -> None:
    """Sort keys that lead to no weight into weights and training state.

    Args:
        findings: Receives the keys in `unexpected` and `slots`.
        unused: The keys.
        state: The assignments planned for the optimizer; their keys are used.
        checkpoint: The source.
    """
    used = {assignment.keys[0] for assignment in state}
    for key in unused:
        if key not in used:
            is_state = key in checkpoint.training_state
            (findings.slots if is_state else findings.unexpected).append(key)
