"""Recognise training state by name: optimizer slots, counters, averages and seeds."""

from __future__ import annotations

import re
from collections.abc import Iterable

_COUNTERS = re.compile(
    r"(?:.*/)?(?:global_step|save_counter|beta\d?_power(?:_\d+)?|seed_generator_state"
    r"|current_loss_scale|good_steps|num_batches_tracked)"
)
# TF1 names a slot or an average after its variable (`conv/weights/Adam`).
_OPTIMIZER = (
    r"(?:AdamW?|Adamax|Adagrad|AdagradDA|Adadelta|Ftrl|Momentum|RMS[Pp]rop|LARSOptimizer|LAMB"
    r"|Nadam|SGD)(?:_\d+)?"
)
_SLOT = re.compile(rf"{_OPTIMIZER}|ExponentialMovingAverage(?:_\d+)?|adam_[mv]")
# Keras optimizers in a graph (Estimators) put the variable's name second
# (`training/Adam/conv/weights/m`), and their hyperparameters beside it (`training/Adam/beta_1`).
_IN_GRAPH = re.compile(rf"((?:.*/)?{_OPTIMIZER}/)(.+)/\w+")
# A Keras optimizer among named tensors is recognised by its counter of updates.
_OPTIMIZER_COUNTERS = frozenset({"_iterations", "iterations", "iter", "iteration"})
# Top-level names under which training programs save their own state beside the weights.
_PLACES = re.compile(
    r"(?:optimizers?|opt|opt_state|optim|optimizer_(?:state|states|state_dict|variables|weights)"
    r"|metrics_variables|lr_schedulers?|scheduler|scaler|amp|rng_state|random_state)"
)


def is_counter(name: str) -> bool:
    """Return True for names of step counters, loss scales and random seeds."""
    return _COUNTERS.fullmatch(name) is not None


def is_part_of_layer(name: str) -> bool:
    """Return True for counters that the layers of a library keep among their weights.

    PyTorch's batch normalization counts its batches. Loading weights into its modules needs the
    counter, although it says nothing about the network.
    """
    return name.replace(".", "/").rpartition("/")[2] == "num_batches_tracked"


def by_name(names: Iterable[str]) -> frozenset[str]:
    """Return the names that are recognisably training state.

    These are: counters; names below a variable that are named like a slot or an average; names
    beside an optimizer's counter of updates or its slots; and names below a top-level name that
    training programs use for their state.

    Args:
        names: All names of a checkpoint.

    Returns:
        A subset of the names.

    Example:
        >>> sorted(by_name(["w", "w/Adam", "w/bias", "global_step", "optimizer/0/exp_avg"]))
        ['global_step', 'optimizer/0/exp_avg', 'w/Adam']
    """
    known = set(names)
    optimizers = tuple(optimizer_scopes(known) | _graph_optimizer_scopes(known))
    return frozenset(
        name
        for name in known
        if is_counter(name.replace(".", "/"))  # PyTorch's names are dotted
        or _is_slot(name, known)
        or name.startswith(optimizers)
        or _PLACES.fullmatch(name.partition("/")[0])
    )


def optimizer_scopes(names: Iterable[str]) -> set[str]:
    """Return the scopes, ending in `/`, that contain an optimizer's counter of updates."""
    split = (name.rpartition("/") for name in names)
    return {f"{scope}/" for scope, _, leaf in split if scope and leaf in _OPTIMIZER_COUNTERS}


def _graph_optimizer_scopes(names: set[str]) -> set[str]:
    matches = map(_IN_GRAPH.fullmatch, names)
    return {match[1] for match in matches if match is not None and match[2] in names}


def _is_slot(name: str, known: set[str]) -> bool:
    owner, _, leaf = name.rpartition("/")
    return owner in known and _SLOT.fullmatch(leaf) is not None
