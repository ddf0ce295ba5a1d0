"""Tensors that fit and mean something else: norms stored as w - 1, rotary pairs in another order.

Neither names nor shapes show this; the `config.json` of the source tells which model it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from keras_trainops import keras_private
from keras_trainops.restoring.guessing.fitting import Lead
from keras_trainops.restoring.guessing.search import Found

# Models of transformers whose normalizations multiply by 1 + w.
_ONE_PLUS = {
    *("gemma", "gemma2", "gemma3", "gemma3_text", "t5gemma", "recurrent_gemma", "vaultgemma"),
    *("qwen3_next", "qwen3_5", "qwen3_5_moe"),
}
# Models whose rotary embeddings rotate neighbours, not halves.
_INTERLEAVED = {
    *("gptj", "codegen", "roformer", "cohere", "cohere2", "glm", "glm4", "ernie4_5", "helium"),
    *("llama4", "moonshine"),
}


def withdraw_other_meanings(
    model: keras.Model,
    variables: Mapping[str, keras.Variable],
    config: Mapping[str, Any],
    found: Found,
) -> None:
    """Make questions of leads whose tensors mean something else than their variables.

    Args:
        model: The model.
        variables: The variables by path.
        config: The configuration beside the checkpoint.
        found: The leads; changed in place.
    """
    model_type = config.get("model_type")
    layers = list(keras_private.all_layers(model))
    if model_type in _ONE_PLUS:
        _withdraw_plain_norms(str(model_type), layers, variables, found)
    if model_type in _INTERLEAVED and any(_rotates_halves(layer) for layer in layers):
        found.questions.append(
            f"{model_type!r} rotates neighbouring elements of queries and keys (0 and 1, 2 and 3). "
            "If the model rotates halves, add an entry to `adapt=` for each query and key, weight "
            "and bias, that moves the even elements of each head before the odd ones"
        )


def _withdraw_plain_norms(
    model_type: str,
    layers: Iterable[keras.layers.Layer],
    variables: Mapping[str, keras.Variable],
    found: Found,
) -> None:
    plain = {
        id(layer.scale)
        for layer in layers
        if type(layer) is keras.layers.RMSNormalization and layer.built
    }
    withdrawn: list[Lead] = []
    for reason, leads in found.leads.items():
        withdrawn += [lead for lead in leads if id(variables[lead.path]) in plain]
        found.leads[reason] = [lead for lead in leads if id(variables[lead.path]) not in plain]
    if withdrawn:
        found.questions.append(
            f"{model_type!r} stores the weights of its norms minus 1, but the model has plain "
            f"`RMSNormalization` layers. Lead {_shown(withdrawn)} there with rules of your own, "
            "and give these variables `kt.adapt.Add(1)` in `adapt=`"
        )


def _shown(leads: Sequence[Lead]) -> str:
    first = f"{leads[0].keys[0]!r} to {leads[0].path!r}"
    return f"{first} and {len(leads) - 1} more" if len(leads) > 1 else first


def _rotates_halves(layer: keras.layers.Layer) -> bool:
    """Return True for the rotary embedding of keras_hub, which pairs halves."""
    return type(layer).__name__ == "RotaryEmbedding"
