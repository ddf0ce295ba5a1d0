"""`include_optimizer=True`: the count of updates and the slots of an optimizer of the same class.

Keras names a slot after its variable (`adam/trunk_kernel_momentum`), so that it is found by the key
that the variable itself is restored from. Weights files keep an optimizer's variables by position;
they get the names of the model's own where the file was written by a model with the same layers.
What cannot be matched with certainty is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import keras

from keras_trainops import _keras
from keras_trainops.readers.base import Checkpoint
from keras_trainops.readers.keras_weights import KerasWeightsCheckpoint
from keras_trainops.restoring.assignment import Assignment


def innermost(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer that makes the steps, without those that scale losses or transform."""
    inner = getattr(optimizer, "inner_optimizer", None)
    return optimizer if inner is None else innermost(inner)


def plan_optimizer(
    model: keras.Model, checkpoint: Checkpoint, weights: Sequence[Assignment]
) -> tuple[list[Assignment], list[str]]:
    """Plans for the state of the model's optimizer, which is built if it is not yet.

    Args:
        model: A compiled model.
        checkpoint: Its training state is looked through.
        weights: What is planned for the model's weights. The slots of others stay as they are.

    Returns:
        The assignments, and why they cannot be made.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return [], [f"`include_optimizer`: {model.name!r} has no optimizer. Compile it first."]
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    try:
        names = _names(model, checkpoint)
        return _plan(innermost(optimizer), names, checkpoint, weights), []
    except _UnmatchedError as reason:
        return [], [f"`include_optimizer`: {reason}"]


class _UnmatchedError(Exception):
    """Why the state of the optimizer cannot be restored."""


def _names(model: keras.Model, checkpoint: Checkpoint) -> Mapping[str, str]:
    """The name of each variable of an optimizer -> its key."""
    if not checkpoint.training_state:
        raise _UnmatchedError(f"{checkpoint.location!r} holds no optimizer's state.")
    if not isinstance(checkpoint, KerasWeightsCheckpoint):
        return {_name(key): key for key in checkpoint.training_state}
    _require_same_class(checkpoint.owners.get("optimizer", "unnamed"), model.optimizer)
    walk = _keras.saving_walk(model)
    ours = {entry.group: walk.owners.get(entry.group) for entry in walk.entries if entry.group}
    if {group: checkpoint.owners.get(group) for group in ours} != ours:
        raise _UnmatchedError(
            f"{checkpoint.location!r} keeps its optimizer's variables by position, and was written "
            "by a model with other layers: which is whose, it does not tell."
        )
    variables = model.optimizer.variables
    keys = [f"optimizer/{i}" for i in range(len(variables))]
    stored = [key for key in checkpoint.training_state if key.startswith("optimizer/")]
    if len(stored) != len(keys) or any(
        checkpoint.shape(key) != tuple(v.shape) for key, v in zip(keys, variables, strict=True)
    ):
        raise _UnmatchedError(
            f"{checkpoint.location!r} keeps {len(stored)} variables of an optimizer by position, "
            f"and the {len(keys)} of this one have other shapes: other variables were trained."
        )
    return {_name(v.path): key for key, v in zip(keys, variables, strict=True)}


def _plan(
    optimizer: keras.optimizers.Optimizer,
    names: Mapping[str, str],
    checkpoint: Checkpoint,
    weights: Sequence[Assignment],
) -> list[Assignment]:
    scope = _scope(optimizer.name)
    if not any(name.startswith(f"{scope}/") for name in names):
        found = sorted({name.partition("/")[0] for name in names if "/" in name})
        _require_same_class(" or ".join(found) or "unnamed", optimizer)
    wanted = [(optimizer.iterations, "iteration")]
    owner_of = {id(a.variable): a for a in weights}
    for slots in _keras.slot_lists(optimizer).values():
        for slot, variable in zip(slots, _keras.trained_by(optimizer), strict=True):
            assignment = owner_of.get(id(variable))
            if slot is not None and assignment is not None:
                wanted.append((slot, _name_in_source(slot, variable, assignment)))
    slots = [name for _, name in wanted[1:]]
    prefix = _model_name(slots, [n.partition("/")[2] for n in names if n.startswith(f"{scope}/")])
    assignments = []
    for i, (variable, name) in enumerate(wanted):
        key = names.get(f"{scope}/{prefix if i else ''}{name}")
        if key is None:
            raise _UnmatchedError(
                f"{checkpoint.location!r} holds no {scope}/{name} for {variable.path!r}."
            )
        if checkpoint.shape(key) != tuple(variable.shape):
            raise _UnmatchedError(
                f"{variable.path!r} is {tuple(variable.shape)}, and {checkpoint.shape(key)} under "
                f"key {key!r}."
            )
        assignments.append(Assignment(variable.path, variable, [key]))
    return assignments


def _name_in_source(slot: keras.Variable, variable: keras.Variable, weight: Assignment) -> str:
    """What the slot is called where its variable is called as the key says."""
    own = f"{variable.path.replace('/', '_')}_"
    if weight.adapter is not None or not slot.name.startswith(own):
        raise _UnmatchedError(
            f"the tensor of {variable.path!r} is adapted, and its slots cannot be."
        )
    return f"{weight.keys[0].replace('/', '_')}_{slot.name.removeprefix(own)}"


def _model_name(slots: Sequence[str], leaves: Sequence[str]) -> str:
    """What stands in front of all slots: nothing, or the name of the model they come from."""
    if not slots:
        return ""
    known = set(leaves)
    prefixes = {leaf.removesuffix(slots[0]) for leaf in leaves if leaf.endswith(slots[0])}
    fitting = sorted(p for p in prefixes if all(f"{p}{slot}" in known for slot in slots))
    return fitting[0] if fitting else ""  # the shortest: nothing at all, if that fits


def _name(path: str) -> str:
    """`optimizer_weights/adam_1/iteration` -> `adam/iteration`."""
    *_, scope, leaf = f"/{path}".split("/")
    return f"{_scope(scope)}/{leaf}"


def _scope(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _require_same_class(found: str, optimizer: keras.optimizers.Optimizer) -> None:
    if _scope(found) != _scope(optimizer.name):
        raise _UnmatchedError(
            f"the state is that of {found}, and the model's optimizer is {optimizer.name}. State "
            "is restored between optimizers of one class and name only."
        )
