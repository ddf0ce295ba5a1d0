"""Reasons why a resumed run may not see its data in the same order."""

from __future__ import annotations

from collections.abc import Callable

from keras_trainops import keras_private
from keras_trainops.backends import backend


def order_warning(epochs: keras_private.EpochData) -> str | None:
    """Return why the order of the data may not be repeatable, None if it is."""
    warnings: dict[str, Callable[[keras_private.EpochData], str | None]] = {
        "ArrayDataAdapter": _array_warning,
        "TFDatasetAdapter": _dataset_warning,
        "TorchDataLoaderAdapter": _loader_warning,
        "PyDatasetAdapter": lambda epochs: None,  # the user's code alone decides the order
    }
    return warnings.get(epochs.kind, _generator_warning)(epochs)


def _array_warning(epochs: keras_private.EpochData) -> str | None:
    if not epochs.shuffled or not backend().shuffles_arrays:
        return None
    if keras_private.random_seed() is not None:
        return None
    return (
        "arrays are shuffled without a seed: call `keras.utils.set_random_seed`, or use "
        "`shuffle=False`"
    )


def _dataset_warning(epochs: keras_private.EpochData) -> str | None:
    if keras_private.has_unseeded_shuffle(epochs.source):
        return "the dataset is shuffled without a seed"
    return None


def _loader_warning(epochs: keras_private.EpochData) -> str | None:
    if getattr(epochs.source, "generator", None) is not None:
        return "the data loader shuffles with its own generator"
    if epochs.source.num_workers:
        return "workers of the data loader may draw random numbers"
    return None


def _generator_warning(epochs: keras_private.EpochData) -> str | None:
    return "a generator must yield the same batches again"
