from __future__ import annotations

from keras_trainops.restoring.guessing.families import Family, families_of
from keras_trainops.restoring.guessing.units import units_of


def families(*names: str) -> dict[str, Family]:
    found = families_of(units_of(dict.fromkeys((f"{name}.weight" for name in names), (2,))))
    return {family.prefix: family for family in found}


def test_blocks_of_stages_are_counted_through() -> None:
    names = [f"layer{s}.{i}.{part}" for s in (1, 2) for i in (0, 1) for part in ("conv", "fc")]
    found = families(*names)
    assert [block.index for block in found["layer#.#"].blocks] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert [block.index for block in found["layer#"].blocks] == [(1,), (2,)]


def test_blocks_are_in_numeric_order() -> None:
    (family,) = families(*(f"h.{i}.{part}" for i in (10, 9) for part in ("a", "b"))).values()
    assert [block.index for block in family.blocks] == [(9,), (10,)]
    assert [unit.owner for unit in family.units] == ["h.9.a", "h.9.b", "h.10.a", "h.10.b"]


def test_letters_number_blocks_too() -> None:
    found = families(*(f"block2{i}_{part}" for i in "ba" for part in ("conv", "fc")))
    assert [block.index for block in found["block##"].blocks] == [(2, 0), (2, 1)]


def test_automatic_numbers_do_not_make_blocks_differ() -> None:
    found = families("b_0/norm_4", "b_0/norm_5", "b_1/norm_6", "b_1/norm_7")
    (first, second) = found["b_#"].blocks
    assert first.members == second.members == {"norm#0", "norm#1"}
    assert second.inner["norm#1"] == "norm_7"
    assert second.units["norm#1"].owner == "b_1/norm_7"


def test_a_block_needs_company_and_several_layers() -> None:
    assert families("h.0.fc", "h.1.fc") == {}
    found = families("h.0.a", "h.0.b", "h.0.c", "h.1.a", "h.1.b", "h.1.c", "h.2.x", "h.2.y")
    assert [block.index for block in found["h.#"].blocks] == [
        (0,),
        (1,),
    ]


def test_roles_come_from_all_names_of_a_block() -> None:
    post = families("h.0.input_norm", "h.0.post_attention_norm", "h.0.q_proj")["h.#"].blocks[0]
    assert post.roles["post_attention_norm#0"] == "feedforward_norm"
    assert post.roles["q_proj#0"] == "query"
