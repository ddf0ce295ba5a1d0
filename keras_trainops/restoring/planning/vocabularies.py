"""Rows that belong to words: vocabularies on both sides of a restore are compared.

A lookup layer's vocabulary is no weight, so it is never restored. Where both sides know it and it
differs, rows of an embedding behind the layer would be those of other words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

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

Words = tuple[str, ...]


def vocabulary_problems(
    model: keras.Model, checkpoint: Checkpoint, assignments: Sequence[Assignment]
) -> tuple[list[str], list[str], list[str]]:
    """Compares vocabularies, and the weights of tf-idf, which go with them.

    Which variables have a slice for each word, the graph of a functional model tells: those behind
    the lookup layer. Elsewhere all embeddings count that have as many rows as it has words.

    Args:
        model: The model.
        checkpoint: The source; vocabularies are known of models and `.keras` files.
        assignments: What is to be assigned.

    Returns:
        Lines for the report, the paths that they are about, and warnings.
    """
    layers = {layer.name: layer for layer in keras_private.vocabulary_layers(model)}
    theirs = _vocabularies(checkpoint) if layers else {}
    problems: list[str] = []
    failing: list[str] = []
    warnings: list[str] = []
    for name, other in _same_layers(list(layers), list(theirs)):
        layer, old = layers[name], theirs[other]
        new = keras_private.vocabulary_of(layer)
        behind = {id(v) for v in _indexed(model, layer, {len(new), len(old)})}
        rows = [a for a in assignments if id(a.variable) in behind and not _moves(a.adapter)]
        if not rows or not old:
            continue
        if not new:
            warnings.append(
                f"the layer {name!r} of {model.name!r} has no vocabulary yet, and vocabularies are "
                f"not restored. The rows are those of the source: {_shown(old)}"
            )
            continue
        at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
        paths = [assignment.path for assignment in rows]
        if at is not None:
            more = int(rows[0].variable.shape[0]) - len(new)
            oov = f", oov={more}" if more > 0 else ""
            problems.append(
                f"! {', '.join(paths)}: the vocabulary of {name!r} has another order, first at "
                f"{at}: {new[at]!r} in the model, {old[at]!r} in the source. Carry the rows over "
                f'with adapt={{"{paths[0]}": kt.adapt.Rows(old, new{oov})}}, both as of '
                "`get_vocabulary()`, or give the layer the vocabulary of the source: it is no "
                "weight and is not restored."
            )
            failing += paths
        elif not _same_idf(layer, checkpoint, other):
            problems.append(
                f"! {', '.join(paths)}: the tf-idf weights of {name!r} differ. They are no weights "
                "of the model, and not restored: give the layer those of the source with "
                "`set_vocabulary(vocabulary, idf_weights=...)`."
            )
            failing += paths
    return problems, failing, warnings


def _vocabularies(checkpoint: Checkpoint) -> Mapping[str, Words]:
    if isinstance(checkpoint, ModelCheckpoint):
        layers = keras_private.vocabulary_layers(checkpoint.model)
        return {layer.name: keras_private.vocabulary_of(layer) for layer in layers}
    if isinstance(checkpoint, KerasWeightsCheckpoint):
        return checkpoint.vocabularies
    return {}


def _same_layers(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[str, str]]:
    """Layers of one name, or the only ones that there are besides: numbers differ by accident."""
    pairs = [(name, name) for name in ours if name in theirs]
    rest = [[name for name in side if (name, name) not in pairs] for side in (ours, theirs)]
    if len(rest[0]) == len(rest[1]) == 1:
        pairs.append((rest[0][0], rest[1][0]))
    return pairs


def _indexed(model: keras.Model, layer: keras.layers.Layer, sizes: set[int]) -> list[object]:
    """The variables that have a slice for each word of a lookup layer."""
    behind = keras_private.first_variables_behind(layer)
    if behind is not None:
        found = [v for below in behind for v in keras_private.own_variables(below)]
        return [v for v in found if len(v.shape) > 1]  # a bias has nothing for a word
    return [
        variable
        for other in keras_private.all_layers(model)
        for variable in keras_private.own_variables(other)
        if getattr(other, "input_dim", None) in sizes
    ]


def _moves(adapter: Adapter | None) -> bool:
    """Whether an adapter looks after the order of slices, or is the user's own."""
    if isinstance(adapter, Chain):
        return any(map(_moves, adapter.adapters))
    return isinstance(adapter, (Rows, ArrayFunction))


def _same_idf(layer: keras.layers.Layer, checkpoint: Checkpoint, other: str) -> bool:
    ours = keras_private.idf_of(layer)
    theirs = None
    if isinstance(checkpoint, ModelCheckpoint):
        layers = {found.name: found for found in keras_private.vocabulary_layers(checkpoint.model)}
        theirs = keras_private.idf_of(layers[other])
    elif (key := f"{other}/idf_weights") in checkpoint:
        theirs = checkpoint[key]
    if ours is None or theirs is None:
        return True
    shared = min(len(ours), len(theirs))
    return bool(np.allclose(ours[:shared], theirs[:shared], rtol=1e-5))


def _shown(words: Words) -> str:
    return f"{', '.join(map(repr, words[:4]))}{', …' if len(words) > 4 else ''}."
