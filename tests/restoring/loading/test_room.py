from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_trainops as kt
from keras_trainops.restoring.loading.room import free_memory, has_room
from tests.helpers import run, two_layers

MB = 1 << 20
MEMINFO = "MemTotal: 8192 kB\nMemFree: 1024 kB\nMemAvailable: 4096 kB\n"
V2 = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "38 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


def tree(root: Path, files: Mapping[str, Any]) -> Path:
    for name, content in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content), "utf-8")
    return root


def v2(path: str, group: str, most: object, used: int, files: int = 0) -> dict[str, Any]:
    stat = f"anon 1\ninactive_file {files}\nactive_file {files}\n"
    folder = f"sys/fs/cgroup{group}"
    return {
        "proc/self/cgroup": f"0::{path}\n",
        "proc/self/mountinfo": V2,
        f"{folder}/memory.max": f"{most}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": stat,
    }


def v1(root: str, path: str, group: str, most: int) -> dict[str, Any]:
    folder = f"sys/fs/cgroup/memory{group}"
    return {
        "proc/self/cgroup": f"5:devices:/\n4:cpu,memory:{path}\n0::/\n",
        "proc/self/mountinfo": V1.format(root=root),
        f"{folder}/memory.limit_in_bytes": most,
        f"{folder}/memory.usage_in_bytes": MB,
        f"{folder}/memory.stat": "active_file 9\ntotal_inactive_file 100\ntotal_active_file 20\n",
    }


@pytest.mark.once
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4 * MB),
        (v2("/", "", 3 * MB, MB), 2 * MB),
        (v2("/", "", 3 * MB, MB, 1000), 2 * MB + 2000),
        (v2("/job/step", "/job/step", 3 * MB, MB), 2 * MB),
        (v2("/job/step", "/job", 3 * MB, MB), 2 * MB),  # a limit of the group above
        (v2("/job", "/other", 3 * MB, MB), 4 * MB),
        (v2("/job", "/job", "max", MB), 4 * MB),
        (v2("/job", "/job", "broken", MB), 4 * MB),
        (v2("/job", "/job", MB, 2 * MB), 0),
        (v2("/../job", "/job", MB, MB), 4 * MB),  # a group that is not mounted here
        (v1("/", "/job", "/job", 3 * MB), 2 * MB + 120),
        (v1("/docker/a", "/docker/a", "", 3 * MB), 2 * MB + 120),
        (v1("/docker/a", "/docker/a/b", "/b", 3 * MB), 2 * MB + 120),
        (v1("/", "/job", "/job", 9223372036854771712), 4 * MB),
    ],
)
def test_the_tightest_limit_counts(tmp_path: Path, files: Any, expected: int) -> None:
    assert free_memory(tree(tmp_path, files)) == expected


@pytest.mark.once
def test_without_figures_nothing_is_known(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    assert not has_room("auto", [], tmp_path)
    assert has_room("once", [], tmp_path)


@pytest.mark.once
def test_there_must_be_room_for_twice_the_values(tmp_path: Path) -> None:
    variables = [keras.Variable(np.zeros((MB // 4,), "float32")) for _ in range(2)]
    assert has_room("auto", variables, tree(tmp_path, {}))
    assert not has_room("bounded", variables, tmp_path)
    assert not has_room("auto", [*variables, keras.Variable(0.0)], tmp_path)


IN_LITTLE_ROOM = """
import resource
import keras, numpy as np
import keras_trainops as kt
from keras_trainops.restoring.loading import assign
inputs = keras.Input((1024,))
model = keras.Model(inputs, keras.layers.Dense(4096, name="d", use_bias=False)(inputs))
array, checked = np.ones((1024, 4096), "f4"), []
check = assign.check_all
assign.check_all = lambda *arguments: checked.append(1) or check(*arguments)
used = int(open("/proc/self/status").read().partition("VmSize:")[2].split()[0]) << 10
for room, expected in ((24, 1), (512, 0)):
    del checked[:]
    resource.setrlimit(resource.RLIMIT_AS, (used + (room << 20), resource.RLIM_INFINITY))
    kt.restore(model, {"d/kernel": array})
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert len(checked) == expected, room
print("as it should be")
"""


@pytest.mark.once
def test_a_restore_reads_twice_in_little_room() -> None:
    run(IN_LITTLE_ROOM)


def test_the_argument_is_checked() -> None:
    model = two_layers()
    with pytest.raises(ValueError, match=r"`memory` must be one of .*'once'.*Received: 'twice'"):
        kt.restore(model, {}, memory="twice")  # type: ignore[arg-type]


def test_variables_are_in_host_memory_here() -> None:
    assert has_room("auto", two_layers().weights)
