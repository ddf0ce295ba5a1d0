"""Rules suggested for real architectures restore all variables, and the models compute the same.

Written back, every file has the bytes of its source. With all restored variables doubled, the file
restores the doubled values.

Writing and judging all cases takes about twelve minutes. `ARCHITECTURES` may name a directory that
keeps the files, for the next run or for `python -m tests.real.architectures --cache`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.architectures import CASES
from tests.real.architectures.case import Case
from tests.real.architectures.scoring import AMBIGUOUS, MISSING, WRONG, score
from tests.real.architectures.store import TOLERANCE, Prepared, prepare

PACKAGES = ("torch", "torchvision", "safetensors", "transformers", "timm", "keras_hub", "flax")
ABSENT = [name for name in PACKAGES if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore:.*not built yet"),  # layers without variables, of keras_hub
    pytest.mark.filterwarnings("ignore:.*config.json has"),  # random configurations differ
    pytest.mark.skipif(bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)}"),
]

RULES = 25
MORE_RULES = {  # running numbers that no pattern follows
    "timm-inception_v3": 36,
    "tv-inception_v3": 100,
}

QKV = "a question: the order of a fused kernel of the model is unknown"
TABLE = "a second table of positions is computed from the first"
INCOMPLETE = {
    "dinov2": TABLE,
    "dinov2-gated": TABLE,
    "swin": QKV,
    "swin-memory": QKV,
    "timm-inception_v3": "layers have running numbers, and the file sorts its keys as text",
    "timm-legacy_xception": "the last normalisations, bn3 and bn4, are not in a numbered block",
    "xlnet": "no name tells its three biases of attention apart",
}


@pytest.fixture
def prepared(case: Case, tmp_path: Path) -> Iterator[Prepared]:
    """A case's file and right values. Other libraries may warn, of what is theirs."""
    kept = os.environ.get("ARCHITECTURES")
    directory = (Path(kept) if kept else tmp_path) / case.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ready = prepare(case, directory)
    yield ready
    if not kept:
        shutil.rmtree(directory)  # hundreds of megabytes


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_suggested_rules_are_right(case: Case, prepared: Prepared) -> None:
    result = score(case, prepared)
    assert not result.error
    assert result.unlike == result.lost == []
    assert result.count(WRONG) == 0
    assert result.rules <= MORE_RULES.get(case.name, RULES)
    left = [f for f in result.findings if f.verdict in (AMBIGUOUS, MISSING)]
    if case.name in INCOMPLETE:
        assert left, "complete: no longer an exception"
        return
    assert not left
    assert result.complete
    assert result.difference is None or result.difference <= TOLERANCE


def test_exceptions_are_cases() -> None:
    assert {*INCOMPLETE, *MORE_RULES} <= {case.name for case in CASES}
