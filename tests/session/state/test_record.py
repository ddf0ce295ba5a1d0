from __future__ import annotations

import json
import re
import shutil
from typing import Any

import pytest

from keras_trainops.processes import Processes
from keras_trainops.session.state.record import DataState, Position
from keras_trainops.session.storage.store import DamagedCheckpointError
from tests.session.checkpoints import edit, folder, newest, rewrite, save

DEEP = "[" * 100_000 + "]" * 100_000
TOO_FAR = {"python": [3, [0] * 625, None], "numpy": ["MT19937", [0] * 624, 10**6, 0, 0.0]}
POSITION = {"epoch": 0, "batch": 3, "goes_on": True, "passes": 0, "taken": 0}
WRONG: dict[str, tuple[str, Any, str]] = {
    "an empty object": ("session.json", "{}", r"session\.json has no 'step'"),
    "a list": ("session.json", "[]", r"session\.json is not a JSON object"),
    "no JSON": ("session.json", "{", r"session\.json: Expecting property name"),
    "no text": ("session.json", b"\xff", r"session\.json: 'utf-8' codec"),
    "deep": ("session.json", DEEP, r"session\.json is nested too deeply"),
    "a key twice": (
        "session.json",
        '{"step": 3, "step": 3}',
        r"session\.json: an object has a key twice",
    ),
    "a string as step": (
        "session.json",
        {"step": "3"},
        r"'step' must be a whole number\. Rec.*'3'",
    ),
    "true as step": ("session.json", {"step": True}, r"'step' must be a whole number"),
    "another step": ("session.json", {"step": 4}, r"session\.json is for step 4"),
    "NaN as epoch": ("session.json", {"epoch": float("nan")}, r"'epoch' must be a whole number"),
    "a negative epoch": ("session.json", {"epoch": -1}, r"'epoch' must be a whole number"),
    "a huge epoch": ("session.json", {"epoch": 10**400}, r"'epoch' must be a whole .*1000+…"),
    "a list as reason": ("session.json", {"ended": []}, r"'ended' must be a string"),
    "a rate": ("session.json", {"learning_rates": "0.1"}, r"'learning_rates' must be a list of n"),
    "no callbacks": (
        "session.json",
        {"callbacks": []},
        r"session\.json, callbacks is not a JSON obj",
    ),
    "no state": (
        "session.json",
        {"callbacks": {"A/0": 3}},
        r"'A/0' is not the state of a callback",
    ),
    "a method": (
        *("session.json", {"callbacks": {"A/0": {"on_epoch_end": 3}}}),
        r"'A/0' is not the state of a callback",
    ),
    "an unknown array": (
        *("session.json", {"callbacks": {"A/0": {"best": {"array": "callbacks/x"}}}}),
        r"names the array 'callbacks/x', which does not exist",
    ),
    "a forgotten array": ("session.json", {"callbacks": {}}, r"omits 'callbacks/b'"),
    "deep callbacks": (
        *("session.json", {"callbacks": {"A/0": {"a": json.loads("[" * 300 + "]" * 300)}}}),
        r"session\.json is nested too deeply",
    ),
    "no data": ("data.json", "[]", r"data\.json is not a JSON object"),
    "empty data": ("data.json", "{}", r"data\.json has no 'position'"),
    "no position": ("data.json", {"position": {}}, r"data\.json, position has no 'epoch'"),
    "another moment": (
        *("data.json", {"position": {**POSITION, "epoch": 9}}),
        r"data\.json and session\.json disagree on the epoch or batch",
    ),
    "a whole as flag": (
        *("data.json", {"position": {**POSITION, "goes_on": 1}}),
        r"'goes_on' must be true or false",
    ),
    "others that are no list": ("data.json", {"others": 3}, r"data\.json: 'others' must be a list"),
    "others without states": ("data.json", {"others": [{}]}, r"data\.json, random has no 'fit'"),
    "a number of processes": (
        *("session.json", {"processes": "2"}),
        r"'processes' must be a whole number",
    ),
    "no random states": ("data.json", {"random": {}}, r"data\.json, random has no 'fit'"),
    "a string as state": (
        *("data.json", {"random": dict.fromkeys(("fit", "made", "used", "now"), "x")}),
        r"'fit' is not a state of random generators",
    ),
    "a state too far": (
        *("data.json", {"random": dict.fromkeys(("fit", "made", "used", "now"), TOO_FAR)}),
        r"'fit' is not a state of random generators \(the state of NumPy's generator has the wro",
    ),
    "an object as list": ("variables.json", "{}", r"variables\.json is not a list of keys"),
    "numbers as keys": ("variables.json", "[1]", r"variables\.json is not a list of keys"),
    "an unknown variable": (
        *("variables.json", '["net/w", "seed", "net/x"]'),
        r"variables\.json lists a key twice, or one without an array",
    ),
    "a variable twice": (
        "variables.json",
        '["net/w", "net/w"]',
        r"lists a key twice, or one without an array",
    ),
    "no variables": ("variables.json", "[]", r"variables\.json omits 'net/w'"),
    "no arrays": ("state.safetensors", b"{}", r"state\.safetensors cannot be read"),
}


@pytest.mark.parametrize("case", WRONG)
def test_rejects_documents_with_wrong_contents(case: str) -> None:
    name, change, reason = WRONG[case]
    save(2)
    save(3)
    if isinstance(change, dict):
        edit(folder(3), name, **change)
    else:
        rewrite(folder(3), name, change)
    checkpoint, (message,) = newest()
    assert checkpoint is not None
    assert checkpoint.path == folder(2)
    assert re.search(
        rf"step-0000000003' is damaged: .*{reason}.*The one before it is used", message
    )
    assert len(message) < 1000
    shutil.rmtree(folder(2))
    with pytest.raises(DamagedCheckpointError, match=rf"{reason}.*There is no other"):
        newest()


def test_reads_files_of_earlier_versions() -> None:
    save(2)
    for name in ("session.json", "data.json"):
        document = json.loads((folder(2) / name).read_text(encoding="utf-8"))
        for later in ("batches", "learning_rates", "batch_size"):
            document.pop(later, None)
        rewrite(folder(2), name, json.dumps(document))
    checkpoint, warnings = newest()
    assert checkpoint is not None
    assert not warnings
    assert checkpoint.record.batches is None
    assert checkpoint.record.learning_rates == ()
    assert checkpoint.record.data is not None
    assert checkpoint.record.data.batch_size is None


def test_each_process_gets_its_own_random_states_back() -> None:
    data = DataState(Position(0, 1, True, 0, 1), {"fit": 0}, 4, ({"fit": 1}, {"fit": 2}))

    def drawn(index: int, count: int) -> Any:
        processes = Processes()
        processes.index, processes.count = index, count
        return data.of_process(processes).random["fit"]

    assert [drawn(index, 3) for index in range(3)] == [0, 1, 2]
    assert [drawn(index, 2) for index in range(2)] == [0, 0]  # another number: those of process 0
    assert drawn(0, 1) == 0
