"""What the processes of a run must have in common before they train."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.numbering import without_automatic
from keras_trainops.processes import Processes, checksum_of
from keras_trainops.training.optimizers.group import all_transformed_in

_TO_TRAIN = "to start training"
# Parts of configurations that are facts of their own, and names, which Keras may have numbered.
_LEFT_OUT = ("inner_optimizer", "optimizers", "transforms", "name")


def require_same(model: Any) -> None:
    """Check that all processes are about to train the same model in the same way.

    All of them must call it, before the first step: of each `fit`, or of the first
    `train_on_batch` after `compile`. It does nothing in one process.

    Args:
        model: A compiled model.

    Raises:
        ValueError: On all processes if something differs, or if nothing connects them; the message
            names it.
    """
    state, processes = model.train_ops, Processes(model)
    agreed = state.fit.agreed if state.fit.runs else state.agreed is state.compiled
    if agreed or not processes.several:
        return
    backend().require_distribution()
    state.agreed, state.fit.agreed, state.fit.state_unchecked = state.compiled, True, True
    processes.require_same(
        {**_facts(model), **_order_of_data(model, processes)},
        _TO_TRAIN,
        "All processes must run the same program, each on its part of the data.",
    )


def require_same_state(model: Any, batch: Any) -> None:
    """Check before the first step that all processes have the same weights, but other data.

    Args:
        model: The model.
        batch: The batch of this process.

    Raises:
        ValueError: On all processes if the values of a variable differ.
    """
    fit = model.train_ops.fit
    if not fit.state_unchecked:
        return
    fit.state_unchecked = False
    processes = Processes(model)
    values = {
        f"the value of {name!r} ({i})": checksum_of(backend().host_view(variable))
        for i, (name, variable) in enumerate(_shared(model))
    }
    processes.require_same(
        values,
        _TO_TRAIN,
        "Call `keras.utils.set_random_seed` with the same seed on all processes before the model "
        "is made, or restore the same weights on all of them.",
    )
    batches = processes.gather(_sum_of_batch(batch), _TO_TRAIN)
    if all(each == batches[0] for each in batches) and processes.is_first:
        warnings.warn(
            f"All {processes.count} processes got the same first batch. Each should get its part "
            "of the data, for example by `torch.utils.data.DistributedSampler`: otherwise they do "
            "the same work, and training is no faster than in one process.",
            stacklevel=2,
        )


def _order_of_data(model: Any, processes: Processes) -> dict[str, Any]:
    """Return what decides the order of a dataset that the engine divides among processes."""
    dataset = model.train_ops.fit.dataset
    if dataset is None or not backend().divides(dataset, model):
        return {}
    texts, seeds = keras_private.order_of_dataset(dataset)
    if [0, 0] in seeds and processes.is_first:
        warnings.warn(
            "The dataset is shuffled without a seed, so each process has another order of it: some "
            "examples are seen by several processes and some by none. Call "
            "`keras.utils.set_random_seed`, or pass a `seed` to `shuffle` and `list_files`.",
            stacklevel=2,
        )
    names = [os.path.basename(text) for text in texts]  # each may have them in another directory
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()
    files = "the files of the dataset, or their order (the first, and a digest of all)"
    return {"the seeds of the dataset's shuffles": seeds, files: [*names[:3], digest[:12]]}


def _facts(model: Any) -> dict[str, Any]:
    """Return what must be the same, by a name for the message; the plainest reasons come first."""
    state, optimizer = model.train_ops, model.optimizer
    transformed = all_transformed_in(optimizer)
    optimizers = [] if optimizer is None else keras_private.all_of(optimizer)
    facts: dict[str, Any] = {
        **state.fit.facts,
        "the number of steps per execution": model.steps_per_execution,
        "`check_numerics`": state.numerics is not None,
    }
    several = {
        "gradient transform": [each for one in transformed for each in one.chain.transforms],
        "optimizer": [each for each in optimizers if each not in transformed],
        "update": state.policy.after_weights,
        "source of gradients": [] if state.gradients is None else [state.gradients],
    }
    for kind, things in several.items():
        facts[f"the classes of each {kind}"] = [type(thing).__name__ for thing in things]
        for i, thing in enumerate(things):
            facts.update(_leaves(_config(thing), f"{kind} {i}"))
    return {**facts, **_facts_of_variables(model)}


def _facts_of_variables(model: Any) -> dict[str, Any]:
    trained = {id(v) for v in model.trainable_variables}
    facts: dict[str, Any] = {"the number of variables": len(model.variables)}
    for i, v in enumerate(model.variables):
        to_train = "trained" if id(v) in trained else "not trained"
        name = without_automatic(v.path)  # Keras may have numbered the layers differently
        facts[f"variable {i}"] = [name, list(v.shape), str(v.dtype), to_train]
    return facts


def _config(thing: Any) -> Any:
    """Return what tells an object from others of its class; {} if it does not say."""
    try:
        config = thing.get_config()
    except Exception:  # a user's class need not be serialisable to train
        return {}
    return {name: value for name, value in config.items() if name not in _LEFT_OUT}


def _leaves(tree: Any, name: str) -> dict[str, Any]:
    """Return the numbers and texts of a configuration, by their places in it.

    Code and other objects count by their class alone: they may contain addresses and file names.
    """
    if isinstance(tree, Mapping) and tree.get("class_name") != "__lambda__":
        children = [(f"{name}, {key}", value) for key, value in tree.items()]
    elif isinstance(tree, (list, tuple)):
        children = [(f"{name}, {i}", value) for i, value in enumerate(tree)]
    elif isinstance(tree, np.generic):
        return {name: tree.item()}
    else:
        plain = isinstance(tree, (str, int, float, bool, type(None)))
        return {name: tree if plain else type(tree).__name__}
    found: dict[str, Any] = {}
    for place, value in children:
        found.update(_leaves(value, place))
    return found


def _shared(model: Any) -> list[tuple[str, keras.Variable]]:
    """Return the variables that have the same values on all processes, with names for messages.

    Those of seeds in layers need not, and sums of gradients are of each process.
    """
    optimizer = model.optimizer
    apart = {id(v) for v in keras_private.gradient_sums(optimizer)}
    of_optimizer = [] if optimizer is None else optimizer.variables
    others = [*of_optimizer, *model.train_ops.policy.variables]
    found = [(without_automatic(v.path), v) for v in model.weights]
    others = [v for v in others if id(v) not in apart]
    return found + [(without_automatic(v.name), v) for v in others]


def _sum_of_batch(batch: Any) -> list[int]:
    leaves = [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]
    return [checksum_of(keras.ops.convert_to_numpy(leaf)) for leaf in leaves]
