"""Apply what `kt.suggest_rename` says to a target, compare each variable, and write it back."""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

import keras
import numpy as np

import keras_trainops as kt
from tests.real.architectures.case import Case, difference, mark, neutralise, values
from tests.real.architectures.store import Prepared, build
from tests.real.stored import differences

RIGHT, WRONG, AMBIGUOUS, MISSING, ABSENT = "right", "wrong", "ambiguous", "missing", "absent"


@dataclass(frozen=True)
class Finding:
    """What became of one variable.

    Attributes:
        path: Its path.
        shape: Its shape.
        verdict: `right`, `wrong`, `ambiguous`, `missing`, or `absent` from the file and untouched.
        key: The key that the suggestion gives it.
        label: Why: `names`, `shape`, `order`, or "" if there is no rule.
        origin: The right key, as far as its numbers tell.
    """

    path: str
    shape: tuple[int, ...]
    verdict: str
    key: str
    label: str
    origin: str


@dataclass
class Score:
    """The row of one case."""

    case: Case
    suggestion: kt.Suggestion | None = None
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""
    difference: float | None = None  # of outputs, relative, where an example was recorded
    unlike: list[str] = field(default_factory=list)  # tensors that are written back differently
    lost: list[str] = field(default_factory=list)  # changes of variables that are not written

    def count(self, verdict: str) -> int:
        return Counter(finding.verdict for finding in self.findings)[verdict]

    @property
    def of(self) -> int:
        return sum(finding.verdict != ABSENT for finding in self.findings)

    @property
    def complete(self) -> bool:
        return not self.error and 0 < self.of == self.count(RIGHT)

    @property
    def rules(self) -> int:
        return len(self.suggestion.rules) if self.suggestion else 0


def score(case: Case, prepared: Prepared) -> Score:
    """Suggest, restore with the suggestion alone, write back, and judge every variable."""
    model = build(case, prepared.directory)
    initial, before = values(model), mark(model)
    result = Score(case)
    started = time.perf_counter()
    try:
        suggestion = result.suggestion = kt.suggest_rename(model, prepared.path)
        result.seconds = time.perf_counter() - started
        report = restore(model, prepared, suggestion)
        result.unlike = written_differently(model, prepared, report)
        result.lost = changes_lost(model, before, prepared, report)
    except Exception as error:  # a case that fails is a row of the table
        result.error = f"{type(error).__name__}: {error}"
        result.seconds = result.seconds or time.perf_counter() - started
    result.findings = judge(model, before, prepared, result.suggestion)
    if result.complete and prepared.example:
        neutralise(model, prepared.right, initial)
        result.difference = difference(model, prepared.example)
    return result


def restore(model: keras.Model, prepared: Prepared, suggestion: kt.Suggestion) -> kt.RestoreReport:
    return kt.restore(
        model,
        prepared.path,
        rename=suggestion.rules,
        adapt=suggestion.adapt,
        on_missing="ignore",
        on_unexpected="ignore",
    )


def written_differently(
    model: keras.Model, prepared: Prepared, report: kt.RestoreReport
) -> list[str]:
    """Lines about tensors whose bytes `kt.write_back` changes, although no variable has changed."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, prepared.path.name)
        kt.write_back(model, prepared.path, out, report=report)
        return differences(out, prepared.path)


def changes_lost(
    model: keras.Model, before: list[np.ndarray], prepared: Prepared, report: kt.RestoreReport
) -> list[str]:
    """Double all restored variables, write them, and list those that do not come back from there.

    The model keeps the values that it was restored to.
    """
    restored = [not np.array_equal(*pair) for pair in zip(before, values(model), strict=True)]
    for variable in compress(model.weights, restored):
        variable.assign(variable.value * 2)
    changed = values(model)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, prepared.path.name)
        try:
            kt.write_back(model, prepared.path, out, report=report)
            mark(model)
            kt.restore(model, out, plan=report)
        except kt.RestoreError as error:
            return [str(error)]
        finally:
            found = values(model)
            mark(model)
            kt.restore(model, prepared.path, plan=report)
    return [
        variable.path
        for variable, new, old in compress(
            zip(model.weights, found, changed, strict=True), restored
        )
        if not np.allclose(new, old, rtol=1e-6, atol=0)
    ]


def judge(
    model: keras.Model,
    before: list[np.ndarray],
    prepared: Prepared,
    suggestion: kt.Suggestion | None,
) -> list[Finding]:
    ambiguous, key_of, label_of = set(), {}, {}
    if suggestion:
        ambiguous = {path for group in suggestion.ambiguous for path in group.paths}
        key_of = {path: key for key, path in suggestion.pairs.items()}
        label_of = _labels(suggestion)
    findings = []
    after = values(model)
    for i, variable in enumerate(model.weights):
        verdict = _verdict(before[i], after[i], prepared.right[i], variable.path in ambiguous)
        key = key_of.get(variable.path, "")
        findings.append(
            Finding(
                path=variable.path,
                shape=tuple(variable.shape),
                verdict=verdict,
                key=key,
                label=label_of.get(key, ""),
                origin=prepared.origins[i],
            )
        )
    return findings


def _verdict(
    before: np.ndarray, after: np.ndarray, right: np.ndarray | None, ambiguous: bool
) -> str:
    if right is None:
        # A bias or factor that the file lacks may be set to what changes nothing.
        untouched = np.array_equal(before, after) or bool(np.all(after == 0) or np.all(after == 1))
        return ABSENT if untouched else WRONG
    if np.allclose(after, right, rtol=1e-6, atol=1e-7):
        return RIGHT
    if not np.array_equal(before, after):
        return WRONG
    return AMBIGUOUS if ambiguous else MISSING


def _labels(suggestion: kt.Suggestion) -> dict[str, str]:
    """The label of each key's rule."""
    label = dict.fromkeys(suggestion.rules, "names")
    label |= dict.fromkeys(suggestion.by_shape, "shape")
    label |= dict.fromkeys(suggestion.by_order, "order")
    found = {}
    for key in suggestion.pairs:
        rule = next((rule for rule in suggestion.rules if re.fullmatch(rule, key)), None)
        found[key] = "" if rule is None else label[rule]
    return found
