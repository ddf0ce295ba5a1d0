"""In nested models, owners identify a variable, whatever path Keras gives it."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import keras
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, refused, value, weights
from tests.restoring.nested_models import (
    FORMATS,
    NAMES,
    WRITTEN,
    Spec,
    made,
    net,
    places,
    random_spec,
)

pytestmark = pytest.mark.once


def paths(variable: keras.Variable, model: keras.Model) -> tuple[str, str]:
    """Return the path with and without the model's name."""
    return variable.path, variable.path.removeprefix(f"{model.name}/")


def holds(place: tuple[str, ...], theirs: tuple[str, ...], ours: Any, source: Any) -> bool:
    """Return True if the value at `theirs` in the source may go to `place`.

    They are the same place; or neither side has the other's, and only `theirs` has the same path.
    """
    if place == theirs:
        return True
    alike = [[o for o, path in source.items() if path[i] == ours[place][i]] for i in (0, 1)]
    return place not in source and theirs not in ours and [theirs] in alike


def altered(rng: random.Random, spec: Spec) -> Spec:
    """Change the model's name, or rename or remove a part somewhere."""
    kind, name, parts = spec
    choice = rng.randrange(4)
    if choice == 0:
        return (kind, rng.choice(["net", "other", *NAMES]), parts)
    at = rng.randrange(len(parts))
    part = parts[at]
    if choice == 1 and len(part) == 3:
        part = altered(rng, part)
        if part[1] in {p[-2] if len(p) == 3 else p[0] for p in parts[:at] + parts[at + 1 :]}:
            return spec
    elif choice == 2 and len(parts) > 1:
        return (kind, name, parts[:at] + parts[at + 1 :])
    else:
        part = (part[0], "new", part[2]) if len(part) == 3 else ("new",)
    return (kind, name, (*parts[:at], part, *parts[at + 1 :]))


def check(spec: Spec, other: Spec, written: str, report_on: Counter[str]) -> None:
    source, target = made(spec), made(other, 1000)
    theirs, ours = places(source), places(target)
    before = weights(target)
    names = [
        {place: paths(v, model) for place, v in found.items()}
        for found, model in ((ours, target), (theirs, source))
    ]
    place_of = {float(value(v).flat[0]): place for place, v in theirs.items()}
    try:
        kt.restore(target, FORMATS[written](source), on_missing="ignore", on_unexpected="ignore")
    except kt.RestoreError:
        report_on["refused"] += 1
        assert_same(weights(target), before)
        return
    report_on["restored"] += 1
    for place, variable in ours.items():
        now = float(value(variable).flat[0])
        if now < 1000:
            assert holds(place, place_of[now], *names), (spec, other, place, place_of[now])


@pytest.mark.parametrize("written", WRITTEN)
def test_restored_values_are_always_right(written: str) -> None:
    rng = random.Random(11)
    report_on: Counter[str] = Counter()
    for _ in range(40):
        spec = random_spec(rng, 2)
        check(spec, altered(rng, spec), written, report_on)
    assert report_on["restored"] >= 10


KINDS = ["sequential", "functional", "subclassed"]
NAMED = ["model", ".keras", ".weights.h5", ".npz", ".safetensors"]


@pytest.mark.parametrize("written", NAMED)
@pytest.mark.parametrize("inner", ["sequential", "functional"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["net", "other", "dense", "backbone"])
def test_identically_built_models_restore(kind: str, inner: str, name: str, written: str) -> None:
    source, target = made(net(kind, inner)), made(net(kind, inner, name), 1000)
    if name == "backbone" and kind != "functional" and written in (".npz", ".safetensors"):
        with refused(target, "'backbone/dense/kernel' .* names 2 variables", kt.RestoreError):
            kt.restore(target, FORMATS[written](source))
        return
    report = kt.restore(target, FORMATS[written](source))
    assert_same(weights(target), weights(source))
    assert len(report.restored) == 4
    assert report.unexpected == ()


@pytest.mark.parametrize("rename", [None, "auto"])
@pytest.mark.parametrize("written", NAMED)
@pytest.mark.parametrize("inner", ["sequential", "functional"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_head_leaves_the_old_head_out(
    kind: str, inner: str, written: str, rename: str | None
) -> None:
    source, target = made(net(kind, inner)), made(net(kind, inner, head="new_head"), 1000)
    head = weights(target)[2:]
    file = FORMATS[written](source)
    report = kt.restore(target, file, exclude=["new_head"], rename=rename)
    assert_same(weights(target)[:2], weights(source)[:2])
    assert_same(weights(target)[2:], head)
    assert len(report.restored) == 2
