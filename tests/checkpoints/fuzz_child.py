"""Restore from damaged files; `test_fuzz.py` runs this as a process.

Each line of standard input is a case in JSON: the format, a list of pairs (byte, value to xor it
with), and the length to truncate the file to. Each line of standard output is a result: `right`,
`other values`, `refused`, or `wrong: …`, for example if memory grew.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import keras
import numpy as np

import keras_trainops as kt
from tests.checkpoints.fuzz_formats import FORMATS, Format
from tests.helpers import assert_same, two_layers, values


def outcome(form: Format, model: keras.Model, before: list[np.ndarray]) -> str:
    """Restore from the damaged file and compare the values with those before and expected."""
    try:
        report = kt.restore(model, form.path, rename=form.rename)
    except kt.RestoreError:
        assert_same(values(model), before)
        return "refused"
    assert len(report.restored) == len(model.weights)
    after = values(model)
    assert all(np.isfinite(array).all() for array in after)
    good = values(two_layers(seed=5))
    same = all(np.array_equal(a, b) for a, b in zip(after, good, strict=True))
    return "right" if same else "other values"


def peak() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Process cases until the input ends."""
    for form in FORMATS.values():  # lets libraries allocate their own memory
        kt.open_checkpoint(form.path).close()
    bound = peak() + 256 * 2**20
    model = two_layers(seed=1)
    before = values(model)
    for line in sys.stdin:
        name, flips, size = json.loads(line)
        form = FORMATS[name]
        whole = Path(form.whole).read_bytes()
        data = bytearray(whole[:size])
        for place, mask in flips:
            if place < len(data):
                data[place] ^= mask
        # A new file each time: a mapped file must not change.
        os.remove(form.damaged)
        Path(form.damaged).write_bytes(data)
        try:
            answer = outcome(form, model, before)
        except Exception as error:
            answer = f"wrong: {type(error).__name__}: {error}".replace("\n", " ")
        if peak() > bound:
            answer = f"wrong: {peak():,} bytes of memory after {answer}"
        for variable, old in zip(model.variables, before, strict=True):
            variable.assign(old)
        Path(form.damaged).write_bytes(whole)  # other formats share the file
        print(answer, flush=True)


if __name__ == "__main__":
    main()
