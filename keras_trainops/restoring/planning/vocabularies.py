"""Compare the vocabularies of both sides, because rows of embeddings belong to words.

A lookup layer's vocabulary is not a weight, so it is never restored. If both sides know it and it
differs, the rows of an embedding after the layer would belong to other words.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from keras_trainops import keras_private
from keras_trainops.adapt.base import Adapter, ArrayFunction, Chain
from keras_trainops.adapt.vocabulary import Rows
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.keras.weights import KerasWeightsCheckpoint
from keras_trainops.restoring.planning.assignment import Assignment
from keras_trainops.restoring.sources import ModelCheckpoint

if TYPE_CHECKING:
    import keras

Words: TypeAlias = tuple[str, ...]


def vocabulary_problems(
    model: keras.Model, checkpoint: Checkpoint, assignments: Sequence[Assignment]
) -> tuple[list[str], list[str], list[str]]:
    """Compare vocabularies and, with equal vocabularies, tf-idf weights.

    In a functional model, the variables that have a slice for each word are those after the
    lookup layer in the graph. In other models, they are all embeddings with as many rows as the
    layer has words.

    Args:
        model: The model.
        checkpoint: The source. Only models and `.keras` files have vocabularies.
        assignments: The planned assignments.

    Returns:
        Lines for the report, the paths of the variables that they are about, and warnings.
    """
    layers = {layer.name: layer for layer in keras_private.vocabulary_layers(model)}
    theirs = _vocabularies(checkpoint) if layers else {}
    problems: list[str] = []
    failing: list[str] = []
    warnings: list[str] = []
    for name, other in _paired_layers(list(layers), list(theirs)):
        layer, old = layers[name], theirs[other]
        rows = _assigned_rows(model, layer, len(old), assignments)
        if not rows or not old:
            continue
        if not keras_private.vocabulary_of(layer):
            warnings.append(_no_vocabulary_yet(model, layer, old))
            continue
        problem = _vocabulary_problem(layer, old, rows) or _idf_problem(
            layer, checkpoint, other, rows
        )
        if problem:
            problems.append(problem)
            failing += [assignment.path for assignment in rows]
    return problems, failing, warnings


def _vocabularies(checkpoint: Checkpoint) -> Mapping[str, Words]:
    if isinstance(checkpoint, ModelCheckpoint):
        layers = keras_private.vocabulary_layers(checkpoint.model)
        return {layer.name: keras_private.vocabulary_of(layer) for layer in layers}
    if isinstance(checkpoint, KerasWeightsCheckpoint):
        return checkpoint.vocabularies
    return {}


def _paired_layers(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str]]:
    """Pair layers of equal names, and the one left on each side: automatic numbers may differ."""
    pairs = [(name, name) for name in ours if name in theirs]
    our_rest = [name for name in ours if name not in theirs]
    their_rest = [name for name in theirs if name not in ours]
    if len(our_rest) == len(their_rest) == 1:
        pairs.append((our_rest[0], their_rest[0]))
    return pairs


def _assigned_rows(
    model: keras.Model, layer: keras.layers.Layer, size: int, assignments: Sequence[Assignment]
) -> list[Assignment]:
    """Return the assignments of variables with a slice per word that no adapter reorders.

    Args:
        model: The model.
        layer: The lookup layer.
        size: The number of words in the source.
        assignments: The planned assignments.
    """
    sizes = {size, len(keras_private.vocabulary_of(layer))}
    indexed = {id(variable) for variable in _indexed(model, layer, sizes)}
    return [a for a in assignments if id(a.variable) in indexed and not _reorders(a.adapter)]


def _indexed(model: keras.Model, layer: keras.layers.Layer, sizes: set[int]) -> list[object]:
    """Return the variables that have a slice for each word of a lookup layer.

    Args:
        model: The model.
        layer: The lookup layer.
        sizes: The numbers of words in the source and in the model.
    """
    after = keras_private.first_variables_after(layer)
    if after is None:
        layers = keras_private.all_layers(model)
        return _own_variables([e for e in layers if getattr(e, "input_dim", None) in sizes])
    return [variable for variable in _own_variables(after) if len(variable.shape) > 1]  # no biases


def _own_variables(layers: Sequence[keras.layers.Layer]) -> list[keras.Variable]:
    return list(itertools.chain.from_iterable(map(keras_private.own_variables, layers)))


def _reorders(adapter: Adapter | None) -> bool:
    """Return True if an adapter takes care of the order of slices, or is the user's own."""
    if isinstance(adapter, Chain):
        return any(map(_reorders, adapter.adapters))
    return isinstance(adapter, (Rows, ArrayFunction))


def _no_vocabulary_yet(model: keras.Model, layer: keras.layers.Layer, old: Words) -> str:
    shown = f"{', '.join(map(repr, old[:4]))}{', …' if len(old) > 4 else ''}"
    return (
        f"the layer {layer.name!r} of {model.name!r} has no vocabulary yet, and vocabularies are "
        f"not restored. The rows are in the order of the source's vocabulary: {shown}."
    )


def _vocabulary_problem(layer: keras.layers.Layer, old: Words, rows: Sequence[Assignment]) -> str:
    """Return a line about the first word that differs; empty if none does.

    Args:
        layer: The lookup layer of the model.
        old: The vocabulary of the source.
        rows: The assignments of the variables with a slice per word.
    """
    new = keras_private.vocabulary_of(layer)
    at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
    if at is None:
        return ""
    more = int(rows[0].variable.shape[0]) - len(new)
    oov = f", oov={more}" if more > 0 else ""
    return (
        f"! {_paths(rows)}: the vocabulary of {layer.name!r} differs, first at index "
        f"{at}: {new[at]!r} in the model, {old[at]!r} in the source. Move the rows "
        f'with adapt={{"{rows[0].path}": kt.adapt.Rows(old, new{oov})}}, both from '
        "`get_vocabulary()`, or give the layer the source's vocabulary, which is not a weight and "
        "is not restored."
    )


def _idf_problem(
    layer: keras.layers.Layer, checkpoint: Checkpoint, other: str, rows: Sequence[Assignment]
) -> str:
    """Return a line about tf-idf weights that differ; empty if they agree or are unknown.

    Args:
        layer: The lookup layer of the model.
        checkpoint: The source.
        other: Name of the lookup layer in the source.
        rows: The assignments of the variables with a slice per word.
    """
    ours = keras_private.idf_of(layer)
    theirs = None if ours is None else _idf_in(checkpoint, other)
    if ours is None or theirs is None:
        return ""
    shared = min(len(ours), len(theirs))
    if np.allclose(ours[:shared], theirs[:shared], rtol=1e-5):
        return ""
    return (
        f"! {_paths(rows)}: the tf-idf weights of {layer.name!r} differ. They are not weights of "
        "the model and are not restored: give the layer those of the source with "
        "`set_vocabulary(vocabulary, idf_weights=...)`."
    )


def _idf_in(checkpoint: Checkpoint, layer: str) -> np.ndarray | None:
    if isinstance(checkpoint, ModelCheckpoint):
        layers = {found.name: found for found in keras_private.vocabulary_layers(checkpoint.model)}
        return keras_private.idf_of(layers[layer])
    return checkpoint.get(f"{layer}/idf_weights")


def _paths(rows: Sequence[Assignment]) -> str:
    return ", ".join(assignment.path for assignment in rows)
