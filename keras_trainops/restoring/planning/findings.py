"""What becomes of each variable of a model, once names, shapes and dtypes are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import keras

from keras_trainops.adapt.suggestion import Hints
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.restoring.naming.matching import Matching
from keras_trainops.restoring.naming.target import Target
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.planning.dependent_tensors import meaning_problems
from keras_trainops.restoring.planning.options import Options
from keras_trainops.restoring.planning.report import Mismatch, folded
from keras_trainops.restoring.planning.shapes import dtype_problems, for_keys, in_words, mismatch_of
from keras_trainops.restoring.planning.vocabularies import vocabulary_problems


@dataclass
class Findings:
    """What planning found.

    Attributes:
        assignments: What can be assigned, in the order of the model's variables.
        mismatched: Variables whose shape differs from their tensor's.
        mismatches: The same in words.
        unfit: The same as assignments.
        missing: Paths of selected variables without a key.
        excluded: Paths of variables that are not selected.
        unusable: Paths of variables that cannot be restored, whatever the reactions.
        unexpected: Keys of weights that lead to no variable.
        slots: The same of training state.
        problems: Why the restore must be refused, whatever the reactions.
        warnings: What the user should know.
    """

    assignments: list[Assignment] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    unfit: list[Assignment] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    slots: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> dict[str, list[str]]:
        """Return lines for the report, by the argument that says how to react to them."""
        missing = [f"- missing: {folded(self.missing)}"] if self.missing else []
        unused = [f"+ unused: {folded(self.unexpected)}"] if self.unexpected else []
        return {"on_mismatch": self.mismatches, "on_missing": missing, "on_unexpected": unused}

    def failing(self, options: Options) -> list[str]:
        """Return the paths of the variables for which `restore` refuses."""
        failing = list(self.unusable)
        if options.on_mismatch == "error":
            failing += [mismatch.path for mismatch in self.mismatched]
        if options.on_missing == "error":
            failing += self.missing
        return failing


def compare(
    model: keras.Model, checkpoint: Checkpoint, matching: Matching, options: Options
) -> Findings:
    """Compare every variable with the tensors of its keys, by names, shapes and dtypes.

    Args:
        model: The model.
        checkpoint: The source.
        matching: Its targets have their keys.
        options: Of these, `on_mismatch`.
    """
    findings = Findings()
    hints = Hints(model)
    for target in matching.table.targets:
        if not target.selected:
            findings.excluded.append(target.path)
        elif not target.leads:
            findings.missing.append(target.path)
        else:
            _compare_shapes(target, findings, checkpoint, matching, hints)
    wanted = findings.assignments + (findings.unfit if options.on_mismatch == "error" else [])
    altered, paths = meaning_problems(wanted, matching.unused, checkpoint)
    words, other_paths, findings.warnings = vocabulary_problems(
        model, checkpoint, findings.assignments
    )
    findings.problems += altered + words
    findings.unusable += [*paths, *other_paths]
    return findings


def _compare_shapes(
    target: Target, findings: Findings, checkpoint: Checkpoint, matching: Matching, hints: Hints
) -> None:
    assignment = Assignment(
        target.path, target.variable, target.keys, target.adapter, target.copies
    )
    findings.problems += dtype_problems(assignment, checkpoint)
    try:
        assignment = for_keys(assignment, checkpoint)
        mismatch = mismatch_of(
            assignment, checkpoint, hints, lambda: matching.table.pattern_for(target)
        )
    except ValueError as error:
        findings.problems.append(str(error))
        findings.unusable.append(target.path)
        return
    if mismatch is None:
        findings.assignments.append(assignment)
        return
    findings.unfit.append(assignment)
    findings.mismatched.append(mismatch)
    findings.mismatches.append(in_words(mismatch, assignment, checkpoint))


def sort_unused(
    findings: Findings, unused: Sequence[str], state: Sequence[Assignment], checkpoint: Checkpoint
) -> None:
    """Sort keys that lead to no weight into weights and training state.

    Args:
        findings: Gets them.
        unused: The keys.
        state: What is planned for the optimizer; its keys are used.
        checkpoint: The source.
    """
    used = {assignment.keys[0] for assignment in state}
    for key in unused:
        if key not in used:
            is_state = key in checkpoint.training_state
            (findings.slots if is_state else findings.unexpected).append(key)
