"""`rename="auto"`: the suggested rules, applied if they are certain."""

from __future__ import annotations

import keras

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.restoring.guessing.guess import Guess, guess
from keras_trainops.restoring.naming.auto import pair
from keras_trainops.restoring.naming.rules import Address, Renamed, Renaming
from keras_trainops.restoring.naming.table import NameTable
from keras_trainops.restoring.naming.target import Target


def rename_automatically(model: keras.Model, table: NameTable, checkpoint: Checkpoint) -> Renaming:
    """Return the renaming of `rename="auto"`, and give variables the adapters that it needs.

    Args:
        model: The model.
        table: Its variables.
        checkpoint: The source.
    """
    guessed = guess(model, table, checkpoint)
    addresses: dict[str, list[Address]] = {}
    order: dict[str, int] = {}
    for lead in guessed.leads:
        target = guessed.targets[lead.path]
        if target.adapter is None or target.adapter.yields_to_user_rules:
            target.adapter = lead.adapter
        for place, key in enumerate(lead.keys):
            addresses.setdefault(key, []).append(target.variable)
            order[key] = place
    for key, target in _same_ends(guessed).items():  # so that a difference in shape is reported
        addresses[key], order[key] = [target.variable], 0
    # A key that names a variable by coincidence alone leads nowhere.
    renamed = [
        Renamed(key, addresses[key], "heuristic", order=order[key])
        if key in addresses
        else Renamed(key, [] if key in guessed.by_own_name else [key])
        for key in checkpoint
    ]
    return Renaming(renamed, _doubts(guessed))


def _same_ends(guessed: Guess) -> dict[str, Target]:
    """Return the variables that only keys of other shapes end like, by key."""
    led = {lead.path for lead in guessed.leads}
    used = {key for lead in guessed.leads for key in lead.keys}
    shapes = {name: t.shape for name, t in guessed.targets.items() if name not in led}
    left = {key: shape for key, shape in guessed.keys.items() if key not in used}
    pairs = pair(shapes, left).key_of
    return {key: guessed.targets[name] for name, key in pairs.items() if shapes[name] != left[key]}


def _doubts(guessed: Guess) -> list[str]:
    """Return a line with the whole suggestion if anything in it is not certain."""
    if not (guessed.doubtful or guessed.found.open or guessed.found.questions):
        return []
    suggestion = guessed.suggestion()
    code = "\n".join(f"    {line}" for line in str(suggestion).splitlines())
    return [
        '`rename="auto"` restores only what names and shapes leave no doubt about. Here '
        f"{_counted(guessed)}. Check these rules and adapters, and pass them instead:\n{code}"
    ]


def _counted(guessed: Guess) -> str:
    parts = []
    if guessed.doubtful:
        parts.append(f"{len(guessed.doubtful)} variables rest on order or likeness")
    if guessed.found.open:
        count = sum(len(unit.tensors) for _, ours in guessed.found.open for unit in ours)
        parts.append(f"{count} variables are ambiguous")
    if guessed.found.questions:
        parts.append(f"there are {len(guessed.found.questions)} questions")
    return " and ".join(parts)
