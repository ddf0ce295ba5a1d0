"""Compare each variable with its tensors, by name, shape and dtype."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import keras

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.layouts.hints import Hints
from keras_trainops.restoring.naming.matching import Matching
from keras_trainops.restoring.naming.target import Target
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.planning.dependent_tensors import dependent_tensor_problems
from keras_trainops.restoring.planning.options import REACTIONS, Options, Reaction
from keras_trainops.restoring.planning.report import Mismatch
from keras_trainops.restoring.planning.shapes import (
    dtype_problems,
    mismatch_line,
    mismatch_of,
    with_adapter_for_keys,
)
from keras_trainops.restoring.planning.table import folded
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

    def lines(self, arguments: Collection[str] = REACTIONS) -> list[str]:
        """Return lines for the report: those whose reaction one of the arguments sets."""
        found: list[str] = []
        if "on_mismatch" in arguments:
            found += self.mismatch_lines
        if "on_missing" in arguments and self.missing:
            found.append(f"- missing: {folded(self.missing)}")
        if "on_unexpected" in arguments and self.unexpected:
            found.append(f"+ unused: {folded(self.unexpected)}")
        return found

    def lines_for(self, reaction: Reaction, options: Options) -> list[str]:
        """Return the lines to which the options set this reaction."""
        return self.lines([a for a in REACTIONS if options.reaction(a) == reaction])

    def failing(self, options: Options) -> list[str]:
        """Return the paths of the variables for which `restore` raises."""
        failing = list(self.unusable)
        if options.on_mismatch == "error":
            failing += [mismatch.path for mismatch in self.mismatched]
        if options.on_missing == "error":
            failing += self.missing
        return failing

    def compare(
        self, target: Target, checkpoint: Checkpoint, matching: Matching, hints: Hints
    ) -> None:
        """Compare one variable with its tensors, and add what is found.

        Args:
            target: A selected variable with keys.
            checkpoint: The source.
            matching: All variables, for patterns in suggestions.
            hints: Suggests adapters.
        """
        assignment = Assignment(
            target.path, target.variable, target.keys, target.adapter, target.copies
        )
        self.problems += dtype_problems(assignment, checkpoint)
        try:
            assignment = with_adapter_for_keys(assignment, checkpoint)
            mismatch = mismatch_of(
                assignment, checkpoint, hints, lambda: matching.table.pattern_for(target)
            )
        except ValueError as error:
            self.problems.append(str(error))
            self.unusable.append(target.path)
            return
        if mismatch is None:
            self.assignments.append(assignment)
        else:
            self.unfit.append(assignment)
            self.mismatched.append(mismatch)
            self.mismatch_lines.append(mismatch_line(mismatch, assignment, checkpoint))


def findings_of(
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
            findings.compare(target, checkpoint, matching, hints)
    wanted = findings.assignments + (findings.unfit if options.on_mismatch == "error" else [])
    incomplete, paths = dependent_tensor_problems(wanted, matching.unused, checkpoint)
    words, paths_of_words, findings.warnings = vocabulary_problems(
        model, checkpoint, findings.assignments
    )
    findings.problems += incomplete + words
    findings.unusable += paths + paths_of_words
    return findings


def sort_unused(
    unused: Sequence[str], state: Sequence[Assignment], checkpoint: Checkpoint
) -> tuple[list[str], list[str]]:
    """Sort keys that lead to no weight into weights and training state.

    Args:
        unused: The keys.
        state: The assignments planned for the optimizer; their keys are used.
        checkpoint: The source.

    Returns:
        `Findings.unexpected` and `Findings.slots`.
    """
    used = {assignment.keys[0] for assignment in state}
    left = [key for key in unused if key not in used]
    slots = [key for key in left if key in checkpoint.training_state]
    return [key for key in left if key not in checkpoint.training_state], slots
