"""The words of names: of tensors in their layer, and of layers in their block.

Libraries write the same word in many ways: `attn` and `SelfAttention`, `ln_1` and `LayerNorm`,
`fc` and `Linear`. `words` spells them alike, `meaning_of` does so for the last component of a name.
"""

from __future__ import annotations

import functools
import re
from typing import Literal, NamedTuple, TypeAlias

Meaning: TypeAlias = Literal["weight", "recurrent", "bias", "mean", "variance", "reverse"]

# The last component of a name -> what it means in its layer.
_MEANINGS: dict[str, Meaning] = {
    **dict.fromkeys(("weight", "weights", "w", "kernel", "gamma", "scale", "g"), "weight"),
    **dict.fromkeys(("embedding", "embeddings", "alpha", "weight_v"), "weight"),
    **dict.fromkeys(("depthwise_weights", "pointwise_weights"), "weight"),
    **dict.fromkeys(("depthwise_kernel", "pointwise_kernel"), "weight"),
    **dict.fromkeys(("bias", "biases", "b", "beta", "offset"), "bias"),
    **dict.fromkeys(("mean", "running_mean", "moving_mean"), "mean"),
    **dict.fromkeys(("var", "variance", "running_var", "moving_variance"), "variance"),
    **dict.fromkeys(("weight_hh", "recurrent_kernel"), "recurrent"),
    "reverse_embeddings": "reverse",
}
# Components that end in the name of a tensor: `in_proj_weight`, `weight_ih_l0_reverse`, `q_bias`.
_RECURRENT = re.compile(r"(?P<leaf>weight|bias)_(?P<of>[ih]h)(?:_(?P<layer>l\d+(?:_reverse)?))?")
_NAMED = re.compile(r"(?P<owner>.*[a-z\d])_(?P<leaf>weight|bias|kernel|scale|gamma|beta)")
_SEPARABLE = re.compile(r"(?P<owner>depthwise|pointwise)_(?P<leaf>weights|kernel)")
_COLLECTIONS = re.compile(r"(?:params|batch_stats)/")  # of Flax
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_LONG: dict[str, str] = {
    **dict.fromkeys(("attn", "mha", "atten"), "attention"),
    **dict.fromkeys(("bn", "ln", "layernorm", "layrnorm", "rmsnorm", "batchnorm"), "norm"),
    **dict.fromkeys(("normalization", "groupnorm", "gn"), "norm"),
    **dict.fromkeys(("emb", "embeds", "embd", "embed", "embeddings", "embedder"), "embedding"),
    **dict.fromkeys(("fc", "linear", "lin", "dense"), "dense"),
    **dict.fromkeys(("mlp", "ffn", "ffw", "feedforward"), "ff"),
    **dict.fromkeys(("proj", "projector", "projection"), "proj"),
    **dict.fromkeys(("pos", "positions", "positional"), "position"),
    **dict.fromkeys(("tok", "tokens"), "token"),
    **dict.fromkeys(("k", "keys"), "key"),
    **dict.fromkeys(("q", "queries"), "query"),
    **dict.fromkeys(("v", "values"), "value"),
    **dict.fromkeys(("out", "o"), "output"),
    **dict.fromkeys(("cls",), "class"),
    **dict.fromkeys(("dw", "dwconv"), "depthwise"),
    **dict.fromkeys(("pw",), "pointwise"),
    **dict.fromkeys(("pwl",), "project"),
    **dict.fromkeys(("exp",), "expand"),
    "crossattention": "cross attention",
    "dwbn": "depthwise norm",
    "skipbn": "skip norm",
    "selfattn": "self attention",
    "sepconv": "separable",
    "wq": "query",
    "wk": "key",
    "wv": "value",
}
_PHRASES = (
    (re.compile(r"\b(?:layer|rms|batch|group) norm"), "norm"),
    (re.compile(r"\bfeed forward\b"), "ff"),
    (re.compile(r"\bconv [123] d\b"), "conv"),
    (re.compile(r"\b(?:depthwise|separable) conv\b"), "depthwise"),
    (re.compile(r"\btoken and position embedding\b"), "embedding"),
    (re.compile(r"\bself attention layer\b"), "self attention"),
    (re.compile(r"\bsqueeze (?:and )?excit(?:e|ation)\b"), "se"),
)


class SplitName(NamedTuple):
    """A name in two: of a layer, and of a tensor in it.

    Attributes:
        owner: The name of the layer.
        leaf: The name of the tensor; empty for a parameter that belongs to no layer (`cls_token`),
            whose owner is the whole name.
        meaning: The meaning of the tensor.
    """

    owner: str
    leaf: str
    meaning: Meaning


def split_name(name: str) -> SplitName:
    """Split a name at the layer, whatever the library writes between layer and tensor.

    Example:
        >>> split_name("encoder.0.fc.weight")
        SplitName(owner='encoder.0.fc', leaf='weight', meaning='weight')
        >>> split_name("attn.in_proj_bias")
        SplitName(owner='attn.in_proj', leaf='bias', meaning='bias')
        >>> split_name("rnn.weight_hh_l1_reverse")
        SplitName(owner='rnn.l1_reverse', leaf='weight_hh', meaning='recurrent')
        >>> split_name("vit/class_token")
        SplitName(owner='vit/class_token', leaf='', meaning='weight')
    """
    leaf = re.split("[./]", name)[-1]
    above = name[: len(name) - len(leaf)]
    recurrent = _RECURRENT.fullmatch(leaf)
    if recurrent is not None:
        layer = recurrent["layer"]
        owner = f"{above}{layer}" if layer else above[:-1]
        kind = f"{recurrent['leaf']}_{recurrent['of']}"
        return SplitName(_shown(owner), kind, _meaning_of_recurrent(kind))
    inner = _SEPARABLE.fullmatch(leaf)
    if inner is None and leaf not in _MEANINGS:
        inner = _NAMED.fullmatch(leaf)
    if inner is not None:
        return SplitName(_shown(above + inner["owner"]), inner["leaf"], _MEANINGS[inner["leaf"]])
    if leaf == "reverse_embeddings":
        return SplitName(_shown(f"{above}reverse"), leaf, "weight")
    if leaf in _MEANINGS and above:
        return SplitName(_shown(above[:-1]), leaf, _MEANINGS[leaf])
    return SplitName(_shown(name), "", "weight")


def _meaning_of_recurrent(kind: str) -> Meaning:
    if kind.startswith("bias"):
        return "bias"
    return "recurrent" if kind == "weight_hh" else "weight"


def _shown(owner: str) -> str:
    return _COLLECTIONS.sub("", owner, count=1)


@functools.lru_cache(maxsize=1 << 16)
def words(name: str) -> str:
    """Return the words and numbers of a name, spelt alike for all libraries.

    Example:
        >>> words("encoder.SelfAttention.q_proj"), words("self_attn/ln_1")
        ('encoder self attention query proj', 'self attention norm 1')
    """
    found: list[str] = [word.lower() for word in _WORD.findall(name)]
    text = " ".join(_LONG.get(word, word) for word in found)
    for pattern, replacement in _PHRASES:
        text = pattern.sub(replacement, text)
    return text
