"""The plan of a restore: complete, and checked whole, before anything is read or assigned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import keras
import numpy as np

from keras_trainops import _keras, paths
from keras_trainops.readers.base import Checkpoint, RestoreError
from keras_trainops.restore.names import NameTable, model_weights
from keras_trainops.restore.rename import Rename, Renamed, apply_rules
from keras_trainops.restore.report import Mismatch, RestoreReport, folded

Reaction = Literal["error", "warn", "ignore"]


class Assignment(NamedTuple):
    """One variable and the key whose tensor it gets.

    `copies` are keys under which a weights file holds the same variable again, for another layer
    that shares it. They must agree.
    """

    path: str
    variable: keras.Variable
    key: str
    copies: Sequence[str] = ()


@dataclass
class Plan:
    """What a restore will do.

    Attributes:
        assignments: What is to be assigned, in the order of the model's variables.
        report: The same for people, with all that was left aside.
        failing: Paths of the variables for which `restore` refuses.
        warnings: What the caller asked to be warned of.
    """

    assignments: list[Assignment]
    report: RestoreReport
    failing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def make_plan(
    model: keras.Model,
    checkpoint: Checkpoint,
    *,
    rename: Rename,
    include: paths.Patterns,
    exclude: paths.Patterns,
    on_missing: Reaction,
    on_unexpected: Reaction,
    on_mismatch: Reaction,
) -> Plan:
    """Plans, from names, shapes and dtypes alone, without reading a tensor.

    Raises:
        ValueError: If an argument is not of the kind it must be.
        RestoreError: If the model has no variables yet.
    """
    reactions = {
        "on_missing": on_missing,
        "on_unexpected": on_unexpected,
        "on_mismatch": on_mismatch,
    }
    for argument, reaction in reactions.items():
        if reaction not in get_args(Reaction):
            raise ValueError(
                f"`{argument}` must be one of {get_args(Reaction)}. Received: {reaction!r}"
            )
    unbuilt = require_variables(model)
    named = model_weights(model)
    problems: list[str] = []
    selected = _selected(named, include, exclude, problems)
    matching = _Matching(named, selected, checkpoint, NameTable(model, named, checkpoint))
    renaming = apply_rules(rename, checkpoint)
    problems += renaming.problems
    for entry in renaming.renamed:
        matching.add(entry)
    problems += matching.problems()
    return _finish(model, checkpoint, matching, unbuilt, problems, reactions)


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
    return _keras.unbuilt_layers(model)


def _selected(
    named: Sequence[paths.NamedVariable],
    include: paths.Patterns,
    exclude: paths.Patterns,
    problems: list[str],
) -> list[bool]:
    chosen = {}
    for argument, patterns in (("include", include), ("exclude", exclude)):
        try:
            chosen[argument] = paths.select(patterns, named)
        except ValueError as error:
            problems += [f"`{argument}`: {line}" for line in str(error).splitlines()]
            chosen[argument] = [False] * len(named)
    everything = include is None
    return [
        (everything or included) and not excluded
        for included, excluded in zip(chosen["include"], chosen["exclude"], strict=True)
    ]


class _Matching:
    """Brings keys and variables together, and remembers what does not fit."""

    def __init__(
        self,
        named: Sequence[paths.NamedVariable],
        selected: Sequence[bool],
        checkpoint: Checkpoint,
        table: NameTable,
    ) -> None:
        self.named, self.selected, self.checkpoint, self.table = named, selected, checkpoint, table
        self.key_of: dict[int, str] = {}
        self.copies_of: dict[int, list[str]] = defaultdict(list)
        self._name_of: dict[int, str] = {}
        self.ignored: list[str] = []
        self.unused: list[str] = []
        self._position = {id(variable): i for i, (_, variable) in enumerate(named)}
        self._conflicts: list[str] = []
        self._rule_targets: dict[str, set[str]] = {}
        self._rules_that_lead: set[str] = set()

    def add(self, renamed: Renamed) -> None:
        """Takes the variables that one key is to go to."""
        if not renamed.targets:
            self.ignored.append(renamed.key)
        used = False
        for target in renamed.targets:
            for position in self._find(renamed, target):
                used = True
                self._take(position, renamed.key, target)
        if renamed.targets and not used:
            self.unused.append(renamed.key)
        if renamed.rule is not None and (used or not renamed.targets):
            self._rules_that_lead.add(renamed.rule)

    def _find(self, renamed: Renamed, target: str | keras.Variable) -> list[int]:
        if isinstance(target, keras.Variable):
            if id(target) not in self._position:
                self._conflicts.append(
                    f"Rename rule {renamed.rule!r} leads to the variable {target.path!r}, which is "
                    "no weight of this model."
                )
                return []
            found, name = [self._position[id(target)]], target.path
        else:
            found, name = self.table.find(target), target
            if renamed.rule is not None and not found:
                self._rule_targets.setdefault(renamed.rule, set()).add(target)
        if len(found) > 1:
            owners = ", ".join(repr(self.named[i].path) for i in found)
            self._conflicts.append(
                f"{name!r} (for key {renamed.key!r}) names {len(found)} variables: {owners}. Name "
                "one by its owner, or pass the `keras.Variable` itself in `rename`."
            )
            return []
        return found

    def _take(self, position: int, key: str, target: str | keras.Variable) -> None:
        if not self.selected[position]:
            return
        name = target if isinstance(target, str) else ""
        other = self.key_of.setdefault(position, key)
        other_name = self._name_of.setdefault(position, name)
        if other == key:
            return
        if name != other_name and {name, other_name} <= self.table.stored_as[position]:
            self.copies_of[position].append(key)
        else:
            self._conflicts.append(
                f"Two keys for one variable: {other!r} and {key!r} both lead to "
                f"{self.named[position].path!r}. Leave one out with a rename rule to None."
            )

    def problems(self) -> list[str]:
        """What is wrong with the matching itself, whatever the reactions."""
        dead_ends = [
            f"Rename rule {rule!r} leads to no variable of the model, as to {min(targets)!r}. "
            f"{paths.closest_phrase(min(targets), self.table.paths, 'path')}"
            for rule, targets in self._rule_targets.items()
            if rule not in self._rules_that_lead and rule != "the callable"
        ]
        return [*self._conflicts, *dead_ends]


def _finish(
    model: keras.Model,
    checkpoint: Checkpoint,
    matching: _Matching,
    unbuilt: tuple[str, ...],
    problems: list[str],
    reactions: dict[str, Reaction],
) -> Plan:
    assignments: list[Assignment] = []
    mismatched: list[Mismatch] = []
    missing, excluded = [], []
    for position, (path, variable) in enumerate(matching.named):
        key = matching.key_of.get(position)
        if not matching.selected[position]:
            excluded.append(path)
        elif key is None:
            missing.append(path)
        elif tuple(variable.shape) != checkpoint.shape(key):
            shapes = (tuple(variable.shape), checkpoint.shape(key))
            mismatched.append(Mismatch(path, key, *shapes))
        else:
            problems += _dtype_problem(path, variable, key, checkpoint.dtype(key))
            copies = matching.copies_of[position]
            assignments.append(Assignment(path, variable, key, copies))
    slots = [key for key in matching.unused if key in checkpoint.training_state]
    unexpected = [key for key in matching.unused if key not in checkpoint.training_state]
    lines = {
        "on_mismatch": [
            f"! {m.path}: {m.model_shape} in the model, {m.checkpoint_shape} under key {m.key!r}"
            for m in mismatched
        ],
        "on_missing": [f"- missing: {folded(missing)}"] if missing else [],
        "on_unexpected": [f"+ unused: {folded(unexpected)}"] if unexpected else [],
    }
    refused = [
        line for what, found in lines.items() if reactions[what] == "error" for line in found
    ]
    if not assignments and not problems:
        refused = [line for found in lines.values() for line in found]
        if not mismatched:
            problems.append(_nothing_matched(checkpoint, matching))
    report = RestoreReport(
        model=model.name,
        source=f"{checkpoint.location!r} ({checkpoint.format})",
        restored={a.path: a.key for a in assignments},
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        mismatched=tuple(mismatched),
        excluded=tuple(excluded),
        ignored=tuple(matching.ignored),
        slots=tuple(slots),
        unbuilt=unbuilt,
        problems=tuple(problems + refused),
        bytes=sum(_nbytes(checkpoint, key) for key in {a.key for a in assignments}),
    )
    failing = [m.path for m in mismatched] if reactions["on_mismatch"] == "error" else []
    failing += missing if reactions["on_missing"] == "error" else []
    warned = [line for what, found in lines.items() if reactions[what] == "warn" for line in found]
    return Plan(assignments, report, failing, warned)


def _nothing_matched(checkpoint: Checkpoint, matching: _Matching) -> str:
    if not any(matching.selected):
        return "No variable is selected: `include` and `exclude` leave nothing."
    examples = [key for key in checkpoint if key not in checkpoint.training_state]
    if not examples:
        return f"{checkpoint.location!r} holds no weights."
    return (
        f"No key of {checkpoint.location!r} leads to a selected variable. Keys look like "
        f"{examples[:2]}, variables like {matching.table.paths[:2]}."
    )


def _dtype_problem(path: str, variable: keras.Variable, key: str, dtype: np.dtype) -> list[str]:
    if _is_numeric(dtype) and _fits(dtype, np.dtype(variable.dtype)):
        return []
    return [f"! {path}: {variable.dtype} in the model, {dtype} under key {key!r}"]


def _is_numeric(dtype: np.dtype) -> bool:
    return dtype.kind in "biuf" or dtype.name.startswith(("bfloat16", "float8"))


def _fits(dtype: np.dtype, wanted: np.dtype) -> bool:
    """Integers may become floats; floats never silently become integers."""
    return wanted.kind not in "biu" or dtype.kind in "biu"


def _nbytes(checkpoint: Checkpoint, key: str) -> int:
    return int(np.prod(checkpoint.shape(key), dtype=np.int64)) * checkpoint.dtype(key).itemsize


def refusal(plan: Plan) -> str:
    """The error message for a plan with problems."""
    report = plan.report
    selected = len(report.restored) + len(report.missing) + len(report.mismatched)
    what = f"{len(plan.failing)} of {selected} variables of " if plan.failing else ""
    lines = "\n".join(f"  {line}" for line in report.problems)
    owners = sorted({path.rpartition("/")[0] or path for path in plan.failing})
    leave = (
        f", or leave variables at their initial values with `exclude={owners[:3]}`"
        if owners
        else ""
    )
    return (
        f"Cannot restore {what}{report.model!r} from {report.source}:\n{lines}\n"
        f"Nothing was changed. Say what goes where with `rename=`{leave}."
    )
