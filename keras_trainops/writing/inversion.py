"""The plan of a restore, run backwards: from variables to the tensors of the source."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import keras
import numpy as np

from keras_trainops.adapt.base import Shape, steps_of
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.training_state import is_part_of_layer
from keras_trainops.errors import RestoreError
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.planning.options import Options, Reaction
from keras_trainops.restoring.planning.plan import Plan, make_plan, require_variables
from keras_trainops.restoring.planning.table import folded
from keras_trainops.weight_names import model_weights
from keras_trainops.writing.gathering import ModelValues
from keras_trainops.writing.like import Like
from keras_trainops.writing.lora import LowRank, low_rank_layers
from keras_trainops.writing.report import WriteReport
from keras_trainops.writing.resizing import resized_inverse
from keras_trainops.writing.tensors import ModelTensors, Part

ShapeOf: TypeAlias = Literal["like", "model"]


class Inversion(NamedTuple):
    """The tensors to write, and what there is to say about them.

    Attributes:
        tensors: The tensors.
        assignments: The variables with their keys.
        low_rank: The layers with a low-rank update that no key of the source leads to.
        values: The values of the model.
        report: The report, as far as it is known before anything is written.
        warnings: Lines for the user, with the source in front.
    """

    tensors: ModelTensors
    assignments: Sequence[Assignment]
    low_rank: Sequence[LowRank]
    values: ModelValues
    report: WriteReport
    warnings: Sequence[str]


def invert(
    model: keras.Model,
    like: Like,
    options: Options,
    shape: ShapeOf = "like",
    on_unexpected: Reaction | None = None,
    values: ModelValues | None = None,
) -> Inversion:
    """Plan what to write.

    Args:
        model: A built model.
        like: The source.
        options: The arguments of `restore`.
        shape: "like" or "model"; see `write_back`.
        on_unexpected: Reaction to keys that lead to no variable; see `write_back`.
        values: The values of the model; None if all processes invert it.

    Raises:
        RestoreError: If model and source do not fit, or the model has no variables yet.
        ValueError: If an argument has the wrong type or value.
    """
    _require_one_of("shape", shape, get_args(ShapeOf))
    on_missing = options.on_missing or "error"
    on_unexpected = on_unexpected or ("ignore" if like.has_values else "error")
    for argument, reaction in (("on_missing", on_missing), ("on_unexpected", on_unexpected)):
        _require_one_of(argument, reaction, get_args(Reaction))
    require_variables(model)
    plan = make_plan(
        model,
        like.checkpoint,
        options._replace(
            on_missing="ignore",
            on_unexpected="ignore",
            on_mismatch="error" if shape == "like" else "ignore",
        ),
    )
    assignments = [*plan.assignments, *(plan.unfit if shape == "model" else [])]
    parts = _parts(assignments)
    twins = _twins(like, [*plan.report.unexpected, *plan.report.ignored], parts)
    parts |= {key: parts[other] for key, other in twins.items()}
    low_rank = _merged(model, assignments)
    keys, left_out = _keys(like, parts)
    unexpected = [key for key in keys if key not in parts and not is_part_of_layer(key)]
    missing = _missing(model, plan, low_rank)
    lines = {
        "on_missing": _lines_about_missing(missing),
        "on_unexpected": _lines_about_unexpected(unexpected, like.has_values),
    }
    reactions = {"on_missing": on_missing, "on_unexpected": on_unexpected}
    problems = [*plan.report.problems]
    for argument, reaction in reactions.items():
        problems += lines[argument] if reaction == "error" else []
    shapes: dict[str, Shape] = {}
    if shape == "model":
        shapes, found = _shapes_of_model(assignments, parts, like.checkpoint)
        problems += found
    if problems:
        raise RestoreError(_refusal(plan, problems))
    if not like.has_values:
        left_out += unexpected
        keys = [key for key in keys if key not in unexpected]
    values = values or ModelValues(model)
    value_of = _with_updates(values, low_rank)
    tensors = ModelTensors(
        like.checkpoint, parts, keys, value_of, has_values=like.has_values, shapes=shapes
    )
    warned = [line for name, value in reactions.items() if value == "warn" for line in lines[name]]
    return Inversion(
        tensors,
        assignments,
        low_rank,
        values,
        WriteReport(
            model=model.name,
            like=plan.report.source,
            written={key: _joined(parts[key], "path") for key in keys if key in parts},
            adapted={
                key: _joined(parts[key], "adapter")
                for key in keys
                if any(part.assignment.adapter for part in parts.get(key, ()))
            },
            reshaped=shapes,
            copied=tuple(key for key in keys if key not in parts),
            left_out=tuple(left_out),
            missing=tuple(missing),
            excluded=plan.report.excluded,
            notes=tuple(
                f"{key} equals {other} in the source, so it gets the same values"
                for key, other in twins.items()
            ),
            bytes=sum(map(tensors.nbytes, keys)),
        ),
        [f"{plan.report.source}: {line}" for line in [*warned, *_lines_about_unbuilt(plan)]],
    )


def _require_one_of(argument: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"`{argument}` must be one of {allowed}. Received: {argument}={value!r}")


def _joined(parts: Sequence[Part], attribute: str) -> str:
    values = (getattr(part.assignment, attribute) for part in parts)
    return " + ".join(str(value) for value in values if value is not None)


def _parts(assignments: Sequence[Assignment]) -> dict[str, list[Part]]:
    parts: dict[str, list[Part]] = defaultdict(list)
    for assignment in assignments:
        for place, key in enumerate(assignment.keys):
            parts[key].append(Part(assignment, place))
        for key in assignment.copies:
            parts[key].append(Part(assignment, 0))
    return dict(parts)


def _twins(like: Like, keys: Sequence[str], parts: Collection[str]) -> dict[str, str]:
    """Return, for tensors without a variable, those with one that they repeat.

    Some formats store tied weights twice. Vectors may be equal by chance, as scales of 1 are.
    """
    source = like.checkpoint
    found: dict[str, str] = {}
    for key in keys if like.has_values else ():
        shape, dtype = source.shape(key), source.dtype(key)
        if len(shape) < 2 or key in source.training_state:
            continue
        for other in parts:
            is_like = (source.shape(other), source.dtype(other)) == (shape, dtype)
            if is_like and _are_equal(source, key, other):
                found[key] = other
                break
    return found


def _are_equal(source: Checkpoint, one: str, other: str) -> bool:
    """Return True if two tensors are equal, and not one number over and over."""
    is_constant = True
    for a, b in zip(source.pieces(one), source.pieces(other), strict=True):
        if not np.array_equal(a, b):
            return False
        is_constant = is_constant and bool((a == a[:1]).all())
    return not is_constant


def _merged(model: keras.Model, assignments: Sequence[Assignment]) -> list[LowRank]:
    """Return the layers whose low-rank updates are added to their weights."""
    led = {id(assignment.variable) for assignment in assignments}
    return [layer for layer in low_rank_layers(model) if not {id(layer.a), id(layer.b)} <= led]


def _missing(model: keras.Model, plan: Plan, low_rank: Sequence[LowRank]) -> list[str]:
    """Return the paths of variables whose values would be lost."""
    if not low_rank:
        return list(plan.report.missing)
    merged = {id(variable) for layer in low_rank for variable in (layer.a, layer.b)}
    added = {path for path, variable in model_weights(model) if id(variable) in merged}
    return [path for path in plan.report.missing if path not in added]


def _keys(like: Like, parts: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the keys to write, in the order of the source, and those that are left out."""
    state = like.checkpoint.training_state
    keys: list[str] = []
    left_out: list[str] = []
    for key in like.checkpoint:
        is_state = key in state and key not in parts and not is_part_of_layer(key)
        (left_out if is_state else keys).append(key)
    return keys, left_out


def _lines_about_missing(missing: Sequence[str]) -> list[str]:
    if not missing:
        return []
    return [f"- missing: {folded(missing)}; no key leads there, so their values would be lost"]


def _lines_about_unexpected(unexpected: Sequence[str], has_values: bool) -> list[str]:
    if not unexpected:
        return []
    if has_values:
        return [f"+ without a variable: {folded(unexpected)}"]
    return [
        f"+ without a variable, and the plan has no values: {folded(unexpected)}. Pass the "
        'original file as `like`, or leave them out with `on_unexpected="ignore"`'
    ]


def _lines_about_unbuilt(plan: Plan) -> list[str]:
    unbuilt = plan.report.unbuilt
    if not unbuilt:
        return []
    return [
        f"these layers of {plan.report.model!r} are not built yet, so tensors that would lead to "
        f"them are copied: {', '.join(unbuilt)}. Call the model on a batch first."
    ]


def _shapes_of_model(
    assignments: Sequence[Assignment], parts: Mapping[str, Sequence[Part]], like: Checkpoint
) -> tuple[dict[str, Shape], list[str]]:
    """Return the shapes of tensors that get that of the model, and lines about problems."""
    shapes: dict[str, Shape] = {}
    problems: list[str] = []
    for assignment in assignments:
        key, target = assignment.keys[0], tuple(assignment.variable.shape)
        old = like.shape(key)
        if not _may_resize(assignment, like):
            continue
        try:
            if len(assignment.keys) > 1 or len(parts[key]) > 1:
                raise ValueError("several tensors or variables are combined")
            zeros = np.zeros(target, bool)
            new = resized_inverse(assignment.adapter, zeros, old, target).shape
            if new != old and sorted(new) == sorted(old):
                raise ValueError(f"{new} has the axes of {old} in another order")
        except ValueError as error:
            problems.append(f"! {assignment.path}: it has no shape of its own in the file: {error}")
            continue
        if new != old or not _has_inverse(assignment, old):
            shapes[key] = new
    return shapes, problems


def _has_inverse(assignment: Assignment, shape: Shape) -> bool:
    adapter, target = assignment.adapter, tuple(assignment.variable.shape)
    try:
        if adapter is not None:
            adapter.inverse(np.zeros(target, bool), [shape], target)
    except ValueError:
        return False
    return True


def _may_resize(assignment: Assignment, like: Checkpoint) -> bool:
    """Return True if the source's tensor may have another shape than it would need now."""
    adapter, target = assignment.adapter, tuple(assignment.variable.shape)
    shapes = [like.shape(key) for key in assignment.keys]
    shape = shapes[0] if adapter is None else adapter.shape(shapes, target)
    return any(step.resizes for step in steps_of(adapter)) or shape not in (None, target)


def _with_updates(
    values: ModelValues, low_rank: Sequence[LowRank]
) -> Callable[[keras.Variable], np.ndarray]:
    """Return a function from a variable to its value, with low-rank updates added."""
    by_kernel = {id(layer.kernel): layer for layer in low_rank}

    def value_of(variable: keras.Variable) -> np.ndarray:
        layer = by_kernel.get(id(variable))
        return values.of(variable) if layer is None else values.merged(layer)

    return value_of


def _refusal(plan: Plan, problems: Sequence[str]) -> str:
    report = plan.report
    lines = "\n".join(f"  {line}" for line in problems)
    shape = ', or write the shapes of the model with `shape="model"`' if report.mismatched else ""
    return (
        f"Cannot write {report.model!r} like {report.source}:\n{lines}\nNothing was written. Map "
        "keys to variables with `rename=`, or leave variables out with `exclude=`, which copies "
        f"their tensors from the source{shape}."
    )
