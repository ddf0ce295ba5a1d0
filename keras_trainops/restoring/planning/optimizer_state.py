"""`include_optimizer=True`: the count of updates and the slots of an optimizer of the same class.

Keras names a slot after its variable (`adam/trunk_kernel_momentum`), so that it is found by the key
that the variable itself is restored from. Weights files keep an optimizer's variables by position;
they get the names of the model's own where the file was written by a model with the same layers.
What cannot be matched with certainty is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import keras

from keras_trainops import keras_private
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.keras.weights import KerasWeightsCheckpoint
from keras_trainops.numbering import stem
from keras_trainops.restoring.naming.table import names_in_weights_file
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.sources import ModelCheckpoint


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
        return _plan(innermost(optimizer), _state(model, checkpoint), checkpoint, weights), []
    except _UnmatchedError as reason:
        return [], [f"`include_optimizer`: {reason}"]


class _UnmatchedError(Exception):
    """Why the state of the optimizer cannot be restored."""


class _State(Protocol):
    """Where a checkpoint keeps an optimizer's state."""

    def counter(self) -> str:
        """The key of the count of updates."""

    def slot(self, attribute: str, slot: keras.Variable, weight: Assignment) -> str:
        """The key of what an optimizer keeps for a weight in `attribute`; empty if none."""


def _state(model: keras.Model, checkpoint: Checkpoint) -> _State:
    if not checkpoint.training_state:
        raise _UnmatchedError(f"{checkpoint.location!r} holds no optimizer's state.")
    optimizer = innermost(model.optimizer)
    if isinstance(checkpoint, ModelCheckpoint):
        _require_same_class(checkpoint.optimizer_name, optimizer)
        return _OfModel(checkpoint)
    if isinstance(checkpoint, KerasWeightsCheckpoint):
        return _ByPosition(model, checkpoint)
    return _ByName(optimizer, checkpoint)


class _OfModel:
    def __init__(self, checkpoint: ModelCheckpoint) -> None:
        self._checkpoint = checkpoint

    def counter(self) -> str:
        return self._checkpoint.counter

    def slot(self, attribute: str, slot: keras.Variable, weight: Assignment) -> str:
        return self._checkpoint.slots.get((weight.keys[0], attribute), "")


class _ByPosition:
    """A weights file that was written by a model with the same layers and an optimizer like ours.

    What the file keeps for a weight is where ours keeps its slots for the weight of that name.
    """

    def __init__(self, model: keras.Model, checkpoint: KerasWeightsCheckpoint) -> None:
        _require_same_class(checkpoint.owners.get("optimizer", "unnamed"), model.optimizer)
        walk = keras_private.saving_walk(model)
        ours = {entry.group: walk.owners.get(entry.group) for entry in walk.entries if entry.group}
        if {group: checkpoint.owners.get(group) for group in ours} != ours:
            raise _UnmatchedError(
                f"{checkpoint.location!r} keeps its optimizer's variables by position, and was "
                "written by a model with other layers: which is whose, it does not tell."
            )
        variables = model.optimizer.variables
        keys = [f"optimizer/{i}" for i in range(len(variables))]
        stored = [key for key in checkpoint.training_state if key.startswith("optimizer/")]
        if len(stored) != len(keys) or any(
            checkpoint.shape(key) != tuple(v.shape) for key, v in zip(keys, variables, strict=True)
        ):
            raise _UnmatchedError(
                f"{checkpoint.location!r} keeps {len(stored)} variables of an optimizer by "
                f"position, and the {len(keys)} of this one have other shapes: other variables "
                "were trained."
            )
        self._key_of = {id(v): key for key, v in zip(keys, variables, strict=True)}
        self._weight_of = dict(names_in_weights_file(model, checkpoint))
        self._optimizer = innermost(model.optimizer)
        self._place = {id(v): i for i, v in enumerate(keras_private.trained_by(self._optimizer))}

    def counter(self) -> str:
        return self._key_of[id(self._optimizer.iterations)]

    def slot(self, attribute: str, slot: keras.Variable, weight: Assignment) -> str:
        place = self._place.get(self._weight_of.get(weight.keys[0], 0))
        if place is None:
            return ""
        return self._key_of.get(id(keras_private.slot_lists(self._optimizer)[attribute][place]), "")


class _ByName:
    """Tensors that are called as Keras calls an optimizer's variables: after their weights."""

    def __init__(self, optimizer: keras.optimizers.Optimizer, checkpoint: Checkpoint) -> None:
        self._scope = stem(optimizer.name)
        self._keys: dict[str, list[str]] = {}
        for key in checkpoint.training_state:
            self._keys.setdefault(_name(key), []).append(key)
        if not any(name.startswith(f"{self._scope}/") for name in self._keys):
            found = sorted({name.partition("/")[0] for name in self._keys if "/" in name})
            _require_same_class(" or ".join(found) or "unnamed", optimizer)
        self._prefix: str | None = None

    def begin(self, slots: Sequence[str]) -> None:
        """Finds what stands in front of all these."""
        scope = f"{self._scope}/"
        leaves = [name.removeprefix(scope) for name in self._keys if name.startswith(scope)]
        self._prefix = _model_name(slots, leaves)

    def counter(self) -> str:
        return self._only("iteration")

    def slot(self, attribute: str, slot: keras.Variable, weight: Assignment) -> str:
        return self._only(f"{self._prefix or ''}{_name_in_source(slot, weight)}")

    def _only(self, name: str) -> str:
        keys = self._keys.get(f"{self._scope}/{name}", [])
        if len(keys) > 1:
            raise _UnmatchedError(
                f"{' and '.join(map(repr, sorted(keys)))} could both be {self._scope}/{name}."
            )
        return keys[0] if keys else ""


def _plan(
    optimizer: keras.optimizers.Optimizer,
    state: _State,
    checkpoint: Checkpoint,
    weights: Sequence[Assignment],
) -> list[Assignment]:
    owner_of = {id(a.variable): a for a in weights}
    wanted = [
        (attribute, slot, owner_of[id(variable)])
        for attribute, slots in keras_private.slot_lists(optimizer).items()
        for slot, variable in zip(slots, keras_private.trained_by(optimizer), strict=True)
        if slot is not None and id(variable) in owner_of
    ]
    for _, _, weight in wanted:
        if weight.adapter is not None or len(weight.keys) != 1:
            raise _UnmatchedError(
                f"the tensor of {weight.variable.path!r} is adapted, and its slots cannot be."
            )
    if isinstance(state, _ByName):
        state.begin([_name_in_source(slot, weight) for _, slot, weight in wanted])
    found = [(optimizer.iterations, state.counter())]
    found += [(slot, state.slot(attribute, slot, weight)) for attribute, slot, weight in wanted]
    assignments = []
    for variable, key in found:
        if not key:
            raise _UnmatchedError(
                f"{checkpoint.location!r} holds no {_name(variable.path)} for {variable.path!r}."
            )
        if checkpoint.shape(key) != tuple(variable.shape):
            raise _UnmatchedError(
                f"{variable.path!r} is {tuple(variable.shape)}, and {checkpoint.shape(key)} under "
                f"key {key!r}."
            )
        assignments.append(Assignment(variable.path, variable, [key]))
    return assignments


def _name_in_source(slot: keras.Variable, weight: Assignment) -> str:
    """What the slot is called where its variable is called as the key says."""
    own = f"{weight.variable.path.replace('/', '_')}_"
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
    return f"{stem(scope)}/{leaf}"


def _require_same_class(found: str, optimizer: keras.optimizers.Optimizer) -> None:
    if stem(found) != stem(optimizer.name):
        raise _UnmatchedError(
            f"the state is that of {found}, and the model's optimizer is {optimizer.name}. State "
            "is restored between optimizers of one class and name only."
        )
