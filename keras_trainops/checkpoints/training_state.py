"""Which names are no weights: optimizer slots, counters, averages and seeds."""

from __future__ import annotations

import re
from collections.abc import Iterable

_COUNTERS = re.compile(
    r"(?:.*/)?(?:global_step|save_counter|beta\d?_power(?:_\d+)?|seed_generator_state"
    r"|current_loss_scale|good_steps|num_batches_tracked)"
)
# TF1 names a slot after its variable (`conv/weights/Adam`), and so an average.
_OPTIMIZER = (
    r"(?:AdamW?|Adamax|Adagrad|AdagradDA|Adadelta|Ftrl|Momentum|RMS[Pp]rop|LARSOptimizer|LAMB"
    r"|Nadam|SGD)(?:_\d+)?"
)
_SLOT = re.compile(rf"{_OPTIMIZER}|ExponentialMovingAverage(?:_\d+)?|adam_[mv]")
# An optimizer of Keras in a graph, as Estimators have it, the other way round:
# `training/Adam/conv/weights/m`, and its numbers as `training/Adam/beta_1`.
_IN_GRAPH = re.compile(rf"((?:.*/)?{_OPTIMIZER}/)(.+)/\w+")
# The counter of updates by which an optimizer of Keras is found among named tensors.
OPTIMIZER_COUNTERS = frozenset({"_iterations", "iterations", "iter", "iteration"})
# Where training programs keep their own state beside the weights.
_PLACES = re.compile(
    r"(?:optimizers?|opt|opt_state|optim|optimizer_(?:state|states|state_dict|variables|weights)"
    r"|metrics_variables|lr_schedulers?|scheduler|scaler|amp|rng_state|random_state)"
)


def is_counter(name: str) -> bool:
    """Whether a tensor of this name counts steps, scales a loss or seeds random numbers."""
    return _COUNTERS.fullmatch(name) is not None


def by_name(names: Iterable[str]) -> frozenset[str]:
    """The names that are training state, as far as names tell.

    That is: counters; what hangs on a variable as its slot or average does; what lies beside an
    optimizer's counter of updates or beside its slots; what lies in a place that training programs
    keep for it.

    Example:
        >>> sorted(by_name(["w", "w/Adam", "w/bias", "global_step", "optimizer/0/exp_avg"]))
        ['global_step', 'optimizer/0/exp_avg', 'w/Adam']
    """
    known = set(names)
    optimizers = {
        f"{parent}/"
        for parent, _, leaf in (name.rpartition("/") for name in known)
        if parent and leaf in OPTIMIZER_COUNTERS
    }
    below = (_IN_GRAPH.fullmatch(name) for name in known)
    optimizers |= {match[1] for match in below if match and match[2] in known}
    return frozenset(
        name
        for name in known
        if is_counter(name.replace(".", "/"))  # PyTorch's names are dotted
        or _is_slot(name, known)
        or name.startswith(tuple(optimizers))
        or _PLACES.fullmatch(name.partition("/")[0])
    )


def _is_slot(name: str, known: set[str]) -> bool:
    owner, _, leaf = name.rpartition("/")
    return owner in known and _SLOT.fullmatch(leaf) is not None
