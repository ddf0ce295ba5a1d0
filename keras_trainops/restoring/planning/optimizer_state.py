"""Plan `include_optimizer=True`: restore the step count and slots of an optimizer of equal class.

Keras names a slot after its variable (`adam/trunk_kernel_momentum`), so it is found by the key that
the variable itself is restored from. Weights files store an optimizer's variables by position; they
get the names of the model's own if a model with the same layers wrote the file. State that cannot
be matched with certainty is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import keras

from keras_trainops import keras_private
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.keras.weights import KerasWeightsCheckpoint
from keras_trainops.numbering import stem
from keras_trainops.restoring.naming.table import names_in_weights_file
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.sources import ModelCheckpoint


def plan_optimizer(
    model: keras.Model, checkpoint: Checkpoint, weights: Sequence[Assignment]
) -> tuple[list[Assignment], list[str]]:
    """Plan the state of the model's optimizer, which is built if necessary.

    Args:
        model: A compiled model.
        checkpoint: The source.
        weights: The assignments planned for weights. Slots of other weights are left unchanged.

    Returns:
        The assignments, and lines about why there are none.
    """
    if not build_optimizer(model):
        return [], [f"`include_optimizer`: {model.name!r} has no optimizer. Compile it first."]
    try:
        return _assignments(model, checkpoint, weights), []
    except _UnmatchedError as reason:
        return [], [f"`include_optimizer`: {reason}"]


def build_optimizer(model: keras.Model) -> bool:
    """Build a model's optimizer if necessary; return False if the model has none."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
    return optimizer is not None


class _UnmatchedError(Exception):
    """The reason why the state of the optimizer cannot be restored."""


class _Slot(NamedTuple):
    """A variable that an optimizer keeps for a weight, in one of its attributes."""

    attribute: str
    variable: keras.Variable
    weight: Assignment


class _State(Protocol):
    """The optimizer state of a checkpoint."""

    def counter(self) -> str:
        """Return the key of the step count; empty if there is none."""
        ...

    def slot(self, slot: _Slot) -> str:
        """Return the key of a slot; empty if there is none."""
        ...


def _assignments(
    model: keras.Model, checkpoint: Checkpoint, weights: Sequence[Assignment]
) -> list[Assignment]:
    found: list[Assignment] = []
    for name in keras_private.named_optimizers(model.optimizer):
        found += _of_one(model, name, checkpoint, weights)
    return found


def _of_one(
    model: keras.Model, name: str, checkpoint: Checkpoint, weights: Sequence[Assignment]
) -> list[Assignment]:
    """Return the assignments of one optimizer.

    Args:
        model: A compiled model.
        name: The optimizer's name among several; "" for the only one.
        checkpoint: The source.
        weights: The assignments planned for weights.
    """
    optimizer = _innermost(model, name)
    slots = _slots(optimizer, weights)
    state = _state(model, name, checkpoint, slots)
    for slot in slots:
        if slot.weight.adapter is not None or len(slot.weight.keys) != 1:
            raise _UnmatchedError(
                f"the tensor of {slot.weight.variable.path!r} is adapted, but its slots cannot be."
            )
    found = [(optimizer.iterations, state.counter())]
    found += [(slot.variable, state.slot(slot)) for slot in slots]
    return [_assignment(variable, key, checkpoint) for variable, key in found]


def _slots(optimizer: keras.optimizers.Optimizer, weights: Sequence[Assignment]) -> list[_Slot]:
    """Return the slots of all weights that are restored."""
    assignment_of = {id(assignment.variable): assignment for assignment in weights}
    return [
        _Slot(slot.attribute, slot.variable, assignment_of[id(slot.weight)])
        for slot in keras_private.slots(optimizer)
        if id(slot.weight) in assignment_of
    ]


def _innermost(model: Any, name: str) -> Any:
    return keras_private.innermost(keras_private.named_optimizers(model.optimizer)[name])


def _state(model: keras.Model, name: str, checkpoint: Checkpoint, slots: Sequence[_Slot]) -> _State:
    if not checkpoint.training_state:
        raise _UnmatchedError(f"{checkpoint.location!r} contains no optimizer state.")
    optimizer = _innermost(model, name)
    if isinstance(checkpoint, ModelCheckpoint):
        if name not in checkpoint.optimizers:
            raise _UnmatchedError(f"{checkpoint.location!r} has no optimizer {name!r}.")
        _require_same_class(checkpoint.optimizers[name].name, optimizer)
        return _OfModel(checkpoint, name)
    if isinstance(checkpoint, KerasWeightsCheckpoint):
        return _ByPosition(model, name, checkpoint)
    return _ByName(name, optimizer, checkpoint, slots)


def _assignment(variable: keras.Variable, key: str, checkpoint: Checkpoint) -> Assignment:
    if not key:
        raise _UnmatchedError(
            f"{checkpoint.location!r} contains no {_scoped_name(variable.path)} for "
            f"{variable.path!r}."
        )
    if checkpoint.shape(key) != tuple(variable.shape):
        raise _UnmatchedError(
            f"{variable.path!r} has shape {tuple(variable.shape)}, but {checkpoint.shape(key)} "
            f"under key {key!r}."
        )
    return Assignment(variable.path, variable, [key])


class _OfModel:
    """The optimizer state of another model."""

    def __init__(self, checkpoint: ModelCheckpoint, name: str) -> None:
        self._checkpoint, self._name = checkpoint, name

    def counter(self) -> str:
        return self._checkpoint.counters[self._name]

    def slot(self, slot: _Slot) -> str:
        return self._checkpoint.slots.get((slot.weight.keys[0], slot.attribute), "")


class _ByPosition:
    """The optimizer state of a weights file by a model with equal layers and an equal optimizer.

    The file stores the slots of a weight at the positions where this model's optimizer keeps the
    slots of the weight of the same name.
    """

    def __init__(self, model: Any, name: str, checkpoint: KerasWeightsCheckpoint) -> None:
        _require_same_class(checkpoint.owners.get("optimizer", "unnamed"), model.optimizer)
        walk = keras_private.saving_walk(model)
        _require_same_layers(walk, checkpoint)
        variables = keras_private.named_optimizers(model.optimizer)[name].variables
        keys = _keys_by_position(variables, name, checkpoint)
        key_of = {id(v): key for key, v in zip(keys, variables, strict=True)}
        self._weight_of = dict(names_in_weights_file(walk, checkpoint))
        optimizer = _innermost(model, name)
        self._counter = key_of[id(optimizer.iterations)]
        self._slots = {
            (slot.attribute, id(slot.weight)): key_of.get(id(slot.variable), "")
            for slot in keras_private.slots(optimizer)
        }

    def counter(self) -> str:
        return self._counter

    def slot(self, slot: _Slot) -> str:
        return self._slots.get((slot.attribute, self._weight_of.get(slot.weight.keys[0], 0)), "")


def _require_same_layers(
    walk: keras_private.SavingWalk, checkpoint: KerasWeightsCheckpoint
) -> None:
    ours = {entry.group: walk.owners.get(entry.group) for entry in walk.entries if entry.group}
    if {group: checkpoint.owners.get(group) for group in ours} != ours:
        raise _UnmatchedError(
            f"{checkpoint.location!r} stores optimizer variables by position and was written by a "
            "model with different layers, so they cannot be matched."
        )


def _keys_by_position(
    variables: Sequence[keras.Variable], name: str, checkpoint: KerasWeightsCheckpoint
) -> list[str]:
    """Return the keys of an optimizer's variables in a weights file, which must fit by shape.

    Args:
        variables: The variables.
        name: The optimizer's name among several; "" for the only one.
        checkpoint: The file.
    """
    start = f"optimizer/{name}." if name else "optimizer/"
    keys = [f"{start}{i}" for i in range(len(variables))]
    stored = [key for key in checkpoint.training_state if key.startswith(start)]
    if name:  # next to the variables of one optimizer, those of a group have other state
        stored = [key for key in stored if key.removeprefix(start).isdigit()]
    if len(stored) != len(keys) or any(
        checkpoint.shape(key) != tuple(v.shape) for key, v in zip(keys, variables, strict=True)
    ):
        raise _UnmatchedError(
            f"{checkpoint.location!r} stores {len(stored)} variables of an optimizer by position, "
            f"which do not fit the {len(keys)} of this one: different variables were trained."
        )
    return keys


class _ByName:
    """Optimizer state named as Keras names an optimizer's variables: after their weights."""

    def __init__(
        self,
        name: str,
        optimizer: keras.optimizers.Optimizer,
        checkpoint: Checkpoint,
        slots: Sequence[_Slot],
    ) -> None:
        self._scope = stem(optimizer.name)
        self._keys: dict[str, list[str]] = {}
        for key in _keys_of(name, checkpoint.training_state):
            self._keys.setdefault(_scoped_name(key), []).append(key)
        scope = f"{self._scope}/"
        leaves = [name.removeprefix(scope) for name in self._keys if name.startswith(scope)]
        if not leaves:
            found = sorted({name.partition("/")[0] for name in self._keys if "/" in name})
            _require_same_class(" or ".join(found) or "unnamed", optimizer)
        self._prefix = _common_prefix([_name_in_source(slot) for slot in slots], leaves)

    def counter(self) -> str:
        return self._only("iteration")

    def slot(self, slot: _Slot) -> str:
        return self._only(f"{self._prefix}{_name_in_source(slot)}")

    def _only(self, name: str) -> str:
        keys = self._keys.get(f"{self._scope}/{name}", [])
        if len(keys) > 1:
            raise _UnmatchedError(
                f"{' and '.join(map(repr, sorted(keys)))} could both be {self._scope}/{name}."
            )
        return keys[0] if keys else ""


def _keys_of(name: str, keys: Iterable[str]) -> list[str]:
    """Return the keys of one of several optimizers.

    The slots of each are in a scope of its name: `critic/adam_1/kernel_momentum`. Its counter has
    only the scope of the optimizer: `adam_1/iteration`.

    Args:
        name: The optimizer's name among several; "" for the only one.
        keys: The keys of all training state.
    """
    parts = {key: key.split("/") for key in keys}
    scopes = {path[-2] for path in parts.values() if len(path) > 2 and path[-3] == name}
    if not name or not scopes:
        return list(parts)
    return [k for k, path in parts.items() if path[-2:-1] and path[-2] in scopes]


def _name_in_source(slot: _Slot) -> str:
    """Return the name of a slot if its weight has the name of its key."""
    own = f"{slot.weight.variable.path.replace('/', '_')}_"
    return f"{slot.weight.keys[0].replace('/', '_')}_{slot.variable.name.removeprefix(own)}"


def _common_prefix(slots: Sequence[str], leaves: Sequence[str]) -> str:
    """Return the prefix of all slots in a checkpoint: empty, or the name of the saved model.

    Args:
        slots: Names of slots without the prefix.
        leaves: Names in the checkpoint.
    """
    if not slots:
        return ""
    known = set(leaves)
    prefixes = {leaf.removesuffix(slots[0]) for leaf in leaves if leaf.endswith(slots[0])}
    fitting = sorted(p for p in prefixes if all(f"{p}{slot}" in known for slot in slots))
    return fitting[0] if fitting else ""  # an empty prefix comes first


def _scoped_name(path: str) -> str:
    """Return the last two components: `optimizer_weights/adam_1/iteration` -> `adam/iteration`."""
    *_, scope, leaf = f"/{path}".split("/")
    return f"{stem(scope)}/{leaf}"


def _require_same_class(found: str, optimizer: keras.optimizers.Optimizer) -> None:
    if stem(found) != stem(optimizer.name):
        raise _UnmatchedError(
            f"the state belongs to {found}, but the model's optimizer is {optimizer.name}. State "
            "is only restored between optimizers of the same class and name."
        )
