"""Roles of layers, derived from their names: the query of an attention, a final norm, a head.

The words of some forty architectures of transformers, timm, torchvision, Flax and keras_hub. A name
that says nothing has no role; whoever pairs layers must find other evidence then.
"""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from keras_trainops.layouts.words import words

# The first pattern that is found in the words of a name gives its role.
_CROSS = re.compile(r"\bcross\b|encoder attention|enc dec attention|encoder decoder attention")
_SHARED = re.compile(r"shared expert")
_EXPERT = re.compile(r"\bexperts?\b")
_LOW_RANK = re.compile(r"\blora\b")  # factors beside a kernel: they are not the layer themselves
_IN_BLOCK = (
    # norms of an attention's projections
    ("query_norm", r"\bquery(?: proj| dense)? norm"),
    ("key_norm", r"\bkey(?: proj| dense)? norm"),
    ("value_norm", r"\bvalue(?: proj)? norm"),
    # norms of a block
    ("post_feedforward_norm", r"post (?:ff|moe).* norm"),
    ("post_attention_norm", r"post (?:self )?attention.* norm"),
    ("pre_feedforward_norm", r"pre (?:ff|moe).* norm"),
    ("feedforward_norm", r"(?<!attention )\boutput(?: layer)? norm|\bfull layer norm"),
    (
        "attention_norm",
        r"(?:attention|\bsa)(?: layer)?(?: output)?(?: pre)? norm|input norm|norm before"
        r"|norm attention|operator norm",
    ),
    ("feedforward_norm", r"ff.* norm$|norm after|final norm|norm ff|full norm"),
    ("layer_scale_1", r"layer scale 1|\bls 1|^gamma 1$|^lambda 1$"),
    ("layer_scale_2", r"layer scale 2|\bls 2|^gamma 2$|^lambda 2$"),
    ("layer_scale", r"layer scale|\bls$"),
    # attention
    ("sinks", r"\bsinks?\b"),
    ("relative_bias", r"relative attention bias|relative position bias|attention embedding$"),
    ("qkv", r"query key value|qkv|\bc attention$|in proj$|\batt proj$"),
    ("kv", r"\bkv\b"),
    ("query", r"\bquery\b"),
    ("key", r"\bkey\b"),
    ("value", r"\bvalue\b"),
    (
        "attention_output",
        r"(?:attention|\bself|\bcross).*\b(?:output|output proj|output dense|c proj|proj|dense|wo"
        r"|post proj)$",
    ),
    # mixtures of experts
    ("expert_gate", r"shared expert gate(?: dense)?$"),
    ("router", r"router|(?:moe|experts?).* gate$|sparse ff gate dense$|^ff gate$"),
    # feed-forward
    ("gate_up", r"gate up|weights in$|^ff wi$"),
    ("gate", r"gate proj|gate dense$|ff gating$|\bw 1$|\bwi 0$|\bc dense 0$|\bgate$"),
    ("up", r"up proj|\bw 3$|\bwi 1$|\bwi$|ff gating 2$|intermediate dense$"),
    ("up", r"^ff$|\bc dense$|h to 4 h|dense in$|\bintermediate$"),
    ("down", r"down proj|\bw 2$|\bwo$|\bff dense$|output dense$|4 h to h"),
    ("down", r"dense output$|ff (?:c )?proj$|ff output$"),
    ("shortcut", r"downsample|shortcut|\bskip"),
)
_OUTSIDE = (
    ("head", r"reverse$"),
    ("relative_norm", r"\brel embedding.* norm"),
    ("relative_embedding", r"\brel embedding$"),
    ("final_norm", r"embedding norm after$"),
    ("embedding_norm", r"embedding.* norm|norm embedding|input norm$|\bpre norm|norm pre$"),
    ("position_embedding", r"position.* embedding|embedding position|\bwpe\b"),
    ("segment_embedding", r"token type|segment embedding"),
    ("class_token", r"class token|class embedding"),
    ("distillation_token", r"dist(?:illation)? token"),
    ("mask_token", r"mask token|mask embedding"),
    ("register_tokens", r"register"),
    ("patch_embedding", r"patch.* (?:proj|embedding|conv)|conv proj$"),
    (
        "token_embedding",
        r"\bwte\b|word embedding|token embedding|embedding token|\bshared$|embedding in$"
        r"|token embedder",
    ),
    ("pooler", r"\bpool(?:er|ed)\b"),
    ("head", r"\bhead\b|\blogits\b|predictions|classifier|embedding output$|\blm\b"),
    ("final_norm", r"\bnorm$|norm f$|norm post$"),
)
_SIDES = ("encoder", "decoder", "vision", "text")


def roles_in_block(names: Sequence[str]) -> dict[str, str]:
    """Return the roles of the layers of a block, by their names in it.

    Some words mean different things: `post_attention_layernorm` comes before the feed-forward in
    Llama, after the attention in Gemma 2, whose blocks have a `pre_feedforward_layernorm` too. So
    all names of a block are read together.

    Args:
        names: The names of the layers, relative to the block.

    Example:
        >>> roles_in_block(["input_layernorm", "self_attn.q_proj", "post_attention_layernorm"])
        {'input_layernorm': 'attention_norm', 'self_attn.q_proj': 'query', \
'post_attention_layernorm': 'feedforward_norm'}
    """
    texts = {name: words(name) for name in names}
    roles = {name: role for name, text in texts.items() if (role := _role_in_block(text))}
    _give_norms_the_role_of_their_sublayer(names, roles)
    roles |= _roles_of_numbered_dense_layers(texts)
    roles |= _roles_of_numbered_norms(texts, set(roles.values()))
    have = set(roles.values())
    named = set(texts.values())
    return {
        name: _in_context(texts[name], role, have, named)
        for name, role in {**dict.fromkeys(names, ""), **roles}.items()
    }


def _role_in_block(text: str) -> str:
    for role, pattern in _compiled(_IN_BLOCK):
        if pattern.search(text):
            if _LOW_RANK.search(text):
                return f"lora_{role}"
            if _CROSS.search(text):
                return f"cross_{role}"
            if _SHARED.search(text) and role != "expert_gate":
                return f"shared_{role}"
            is_expert = _EXPERT.search(text) and role in ("gate", "up", "down", "gate_up")
            return f"expert_{role}" if is_expert else role
    return ""


def _give_norms_the_role_of_their_sublayer(names: Sequence[str], roles: dict[str, str]) -> None:
    """Derive the role of a norm from the attention or feed-forward beside it, as in T5."""
    having = {
        part: sorted(name for name, role in roles.items() if role == part) for part in _SUBLAYERS
    }
    for name in names:
        parent = re.match(r"(.+)[./][^./]*norm[^./]*$", name, re.IGNORECASE)
        if name in roles or parent is None:
            continue
        for part, role in _SUBLAYERS.items():
            place = bisect.bisect_left(having[part], parent[1])
            if place < len(having[part]) and having[part][place].startswith(parent[1]):
                roles[name] = role
                break


_SUBLAYERS = {
    "cross_query": "cross_attention_norm",
    "query": "attention_norm",
    "qkv": "attention_norm",
    "down": "feedforward_norm",
}


def _in_context(text: str, role: str, have: Collection[str], named: Collection[str]) -> str:
    """Return the role of a layer among the other layers of its block.

    Args:
        text: The words of its name.
        role: Its role by its own name alone.
        have: The roles of all layers of the block.
        named: The words of all their names.
    """
    has_cross = "cross_query" in have or "cross_qkv" in have
    if role == "post_attention_norm" and has_cross and "feedforward_norm" in have:
        return "cross_attention_norm"
    if text == "ff dense" and "gate" not in have:
        return ""  # the output in Gemma, the input elsewhere
    if role == "post_attention_norm" and "pre_feedforward_norm" not in have:
        return "feedforward_norm" if "attention_norm" in have else "attention_norm"
    if role == "pre_feedforward_norm":
        return "feedforward_norm"
    if text == "norm" and "attention_norm" in have and "feedforward_norm" not in have:
        return "feedforward_norm"
    if {"input proj", "gate proj"} <= set(named) and text in ("input proj", "gate proj"):
        return "gate" if text == "input proj" else "up"  # T5 of keras_hub activates the former
    if text == "input proj":
        return "up"
    if text == "output proj":
        return "down"
    return role


def roles_outside(names: Iterable[str]) -> dict[str, str]:
    """Return the roles of the layers that belong to no block.

    Args:
        names: The names of the layers.

    Example:
        >>> roles_outside(["transformer.wte", "transformer.ln_f", "lm_head"])
        {'transformer.wte': 'token_embedding', 'transformer.ln_f': 'final_norm', 'lm_head': 'head'}
    """
    roles = {}
    for name in names:
        text = words(name)
        for role, pattern in _compiled(_OUTSIDE):
            if pattern.search(text):
                roles[name] = f"lora_{role}" if _LOW_RANK.search(text) else role
                break
    if "relative_embedding" in roles.values():  # DeBERTa normalises its table of distances
        for name, role in roles.items():
            if role == "final_norm" and words(name).endswith("encoder norm"):
                roles[name] = "relative_norm"
    return roles


def _roles_of_numbered_dense_layers(texts: Mapping[str, str]) -> dict[str, str]:
    """Return the roles of pairs such as `fc1` and `fc2`, or `Dense_0` and `Dense_1` in Flax."""
    pairs: dict[str, dict[int, str]] = {}
    for name, text in texts.items():
        found = re.fullmatch(r"(.*\bdense) (\d)", text)
        if found is not None and not re.search(r"\battention\b", text):
            pairs.setdefault(found[1], {})[int(found[2])] = name
    roles: dict[str, str] = {}
    for numbered in pairs.values():
        first, *rest = sorted(numbered)
        if rest == [first + 1]:
            roles |= {numbered[first]: "up", numbered[first + 1]: "down"}
    return roles


def _roles_of_numbered_norms(texts: Mapping[str, str], have: Collection[str]) -> dict[str, str]:
    """Return the roles of the norms of a transformer's block that are only numbered."""
    numbered = {name: text for name, text in texts.items() if re.fullmatch(r"norm \d", text)}
    in_order = sorted(numbered, key=lambda name: numbered[name])
    if not set(have) & {"query", "qkv", "attention_output", "down"}:
        return {}
    if len(in_order) == 2:
        return dict(zip(in_order, ("attention_norm", "feedforward_norm"), strict=True))
    if len(in_order) == 3 and set(have) & {"cross_query", "cross_qkv"}:
        roles = ("attention_norm", "cross_attention_norm", "feedforward_norm")
        return dict(zip(in_order, roles, strict=True))
    return {}


def attention_roles(names: Iterable[str]) -> dict[str, str]:
    """Return the roles of the projections of attentions that belong to no block, as in a head.

    Example:
        >>> attention_roles(["head.attention.in_proj", "head.fc"])
        {'head.attention.in_proj': 'qkv'}
    """
    attentions = [
        name
        for name in names
        if "attention" in words(name).split() or _PROJECTION.search(name.lower())
    ]
    return {
        name: role
        for name in attentions
        if (role := _role_in_block(words(name))).removeprefix("cross_") in _PROJECTIONS
    }


_PROJECTION = re.compile(r"(?:query|key|value|(?:^|[._/])[qkv]_(?:proj|lin|dense))$")
_PROJECTIONS = {"query", "key", "value", "qkv", "kv", "attention_output"}


def side_of(name: str) -> str:
    """Return the side of a network that a name belongs to: "encoder", "text", …, or ""."""
    found = [side for side in _SIDES if side in words(name).split()]
    return found[0] if found else ""


@functools.cache
def _compiled(table: tuple[tuple[str, str], ...]) -> list[tuple[str, re.Pattern[str]]]:
    return [(role, re.compile(pattern)) for role, pattern in table]
