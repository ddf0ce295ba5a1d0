"""Cost of saves and restores on a cluster: what real processes cost here, and what N hosts would.

Measured, with real processes on 127.0.0.1: the seconds of an agreement on each backend; and, on JAX
with weights in parts (`ModelParallel`), the files and bytes of a save, and what each process reads
to resume. Simulated: an agreement of up to 512 processes on JAX, each a thread with a client of its
own, through one real service. On paper: 10, 100 and 1,000 hosts with one process each. Each
assumption is a constant below, with its source.

    python -m tests.benchmarks.cluster [--paper] [--most 512]
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.processes.launch import run

MB, GB, TB = 1e6, 1e9, 1e12

# The task
WEIGHTS, SLOTS = 1 * TB, 2 * TB  # weights, and an optimizer with two slots
VARIABLES = 1000  # assumed: weights, without slots
HOSTS = (10, 100, 1000)  # one process each

# The cluster
NETWORK = 12.5 * GB  # bytes per second of a host: assumed, 100 Gbit/s
STORAGE_OF_HOST = 2 * GB  # bytes per second of a host to and from storage: assumed
STORAGE = 200 * GB  # bytes per second of all hosts together: assumed, a parallel file system
LOOKS = 20_000  # files created or looked at per second, by all hosts: assumed, a metadata server
COPY = 10 * GB  # bytes per second from accelerators to the memory of a host: assumed, PCIe 4
LARGEST_FILE = 2 * 2**30  # bytes of a data file: the default of TensorStore's OCDBT
# Seconds of an agreement on JAX: fitted to `simulated`, which ran on two cores that others shared.
PER_PROCESS = 1e-3  # for each process: its messages
PER_BYTE = 4e-9  # for each byte that process 0 sends: it compresses the answer for each process

# The code. What does not depend on the number of processes is counted by `sharded`.
FRAME = 256  # bytes of each process in an agreement: `backends/jax.py`, `frame_bytes`
PIECE = 2**24  # bytes of a broadcast: `processes/processes.py`, `_PIECE`
GROUP = 2**26  # bytes: `from_first.py`, `_GROUP`
DIGEST = 35  # bytes, of the digest of a variable as JSON: `restoring/loading/hold.py`
TO_SAVE = 4  # agreements: `agreement.py`: it is time; `record.py`: digests of random generators, in
#              two frames; `saver.py`: the save before has ended, and the directory is made
TO_RESUME = 13  # agreements: counted, from the lock to the last variable
TO_RESTORE = 5  # agreements: `restore.py`: plan, facts, values read, digests, values assigned
BARRIERS = 6  # of Orbax in a save: counted
FILES_OF_PROCESS_0 = 5  # `store.py`: `_FILES`, and SHA256SUMS
FILES_OF_ORBAX = 6  # seen: metadata, its manifest, and the joined index
FILES_OF_PROCESS = 4  # seen, of each process: manifest, metadata, indices; without data
READS_OF_FILE = 2  # `store.py`, `_read`: for the checksum, and to load; `from_first.py`: to check
WALKS = 2  # `formats/orbax.py`: each process looks at all files, for their kinds and their sizes


def messages(hosts: int) -> int:
    """Return the messages of an agreement on JAX, all of them to or from process 0.

    `backends/jax_processes.py`: each process sets its value and gets the joined one; process 0 gets
    each value, sets the joined one, and deletes the one before.
    """
    return 3 * hosts + 2


def agreement_bytes(hosts: int, frame: int = FRAME) -> int:
    """Return the bytes of an agreement that process 0 sends: to each process those of all."""
    return frame * hosts**2


def agreement_seconds(hosts: int, frame: int = FRAME) -> float:
    """Return the seconds of an agreement on JAX."""
    return PER_PROCESS * hosts + PER_BYTE * agreement_bytes(hosts, frame)


# On paper


class Cost(NamedTuple):
    """What a save or a restore costs.

    Attributes:
        of_host: Bytes that a host writes or reads: the one with the most.
        of_all: Bytes that all hosts write or read.
        files: Files that are created or, by all hosts together, looked at.
        agreements: Agreements, and barriers of Orbax.
        pause: Seconds in which training waits; None if there is no training yet.
        seconds: Seconds until it is done, by their causes.
    """

    of_host: float
    of_all: float
    files: int
    agreements: int
    pause: float | None
    seconds: Mapping[str, float]


def causes(of_host: float, of_all: float, files: int, talk: float) -> dict[str, float]:
    """Return the seconds of what is not done at the same time."""
    a_host, all_hosts = of_host / STORAGE_OF_HOST, of_all / STORAGE
    moved = {"storage of a host": a_host} if a_host > all_hosts else {"storage of all": all_hosts}
    return {**moved, "looks at files": files / LOOKS, "agreements": talk}


def files_in_parts(hosts: int) -> int:
    """Return the number of files of a checkpoint in parts."""
    data = hosts * math.ceil((WEIGHTS + SLOTS) / hosts / LARGEST_FILE)
    return FILES_OF_PROCESS_0 + FILES_OF_ORBAX + FILES_OF_PROCESS * hosts + data


def save_in_parts(hosts: int) -> Cost:
    state, files, talk = WEIGHTS + SLOTS, files_in_parts(hosts), TO_SAVE * agreement_seconds(hosts)
    share, barriers = state / hosts, BARRIERS * PER_PROCESS * hosts
    seconds = causes(share, state, files, talk + barriers)
    return Cost(share, state, files, TO_SAVE + BARRIERS, share / COPY + talk, seconds)


def save_replicated(hosts: int) -> Cost:
    state, talk = WEIGHTS + SLOTS, TO_SAVE * agreement_seconds(hosts)
    seconds = causes(state, state, FILES_OF_PROCESS_0, talk)
    return Cost(state, state, FILES_OF_PROCESS_0, TO_SAVE, state / COPY + talk, seconds)


def resume_in_parts(hosts: int) -> Cost:
    state, looks = WEIGHTS + SLOTS, WALKS * files_in_parts(hosts) * hosts
    seconds = causes(state / hosts, state, looks, TO_RESUME * agreement_seconds(hosts))
    return Cost(state / hosts, state, looks, TO_RESUME, None, seconds)


def resume_replicated(hosts: int) -> Cost:
    read, files = READS_OF_FILE * (WEIGHTS + SLOTS), FILES_OF_PROCESS_0 * hosts
    seconds = causes(read, read * hosts, files, TO_RESUME * agreement_seconds(hosts))
    return Cost(read, read * hosts, files, TO_RESUME, None, seconds)


def restore(hosts: int, of_host: float) -> Cost:
    frame = 1 << math.ceil(math.log2(VARIABLES * DIGEST))  # `framing.py`: powers of two
    talk = TO_RESTORE * agreement_seconds(hosts) + agreement_seconds(hosts, frame)
    seconds = causes(of_host, of_host * hosts, hosts, talk)
    return Cost(of_host, of_host * hosts, hosts, TO_RESTORE, None, seconds)


def restore_from_first(hosts: int) -> Cost:
    groups = min(VARIABLES, math.ceil(WEIGHTS / GROUP))
    read, agreements = READS_OF_FILE * WEIGHTS, TO_RESTORE + groups
    seconds = causes(read, read, 1, agreements * agreement_seconds(hosts))
    sent = math.ceil(WEIGHTS / PIECE) * PIECE / NETWORK
    return Cost(read, read, 1, agreements, None, {**seconds, "network": sent})


COSTS = {
    "save, in parts": save_in_parts,
    "save, replicated": save_replicated,
    "resume, in parts": resume_in_parts,
    "resume, replicated": resume_replicated,
    "`restore`, in parts": lambda hosts: restore(hosts, WEIGHTS / hosts),
    "`restore`, replicated": lambda hosts: restore(hosts, WEIGHTS),
    '`restore`, `"first"`': restore_from_first,
}


def print_costs() -> None:
    """Print what docs/benchmarks.md shows: three values are for 10, 100 and 1,000 hosts."""
    print("\n| | a host reads or writes | all hosts | files | agreements | pause | done after |")
    print("|---|---|---|---|---|---|---|")
    for name, cost in COSTS.items():
        found = [cost(hosts) for hosts in HOSTS]
        pauses = [] if found[0].pause is None else [_seconds(each.pause or 0) for each in found]
        columns = (
            [_bytes(each.of_host) for each in found],
            [_bytes(each.of_all) for each in found],
            [f"{each.files:,}" for each in found],
            [f"{each.agreements:,}" for each in found],
            pauses,
            [_seconds(sum(each.seconds.values())) for each in found],
        )
        print(f"| {name} | {' | '.join(map(_short, columns))} |")
    print("\nSeconds at 1,000 hosts, by their causes")
    for name, cost in COSTS.items():
        by_cause = sorted(cost(HOSTS[-1]).seconds.items(), key=lambda pair: -pair[1])
        print(f"  {name:24s} {', '.join(f'{c}: {_seconds(s)}' for c, s in by_cause)}")
    print("\n| hosts | messages of an agreement | sent by process 0 | seconds |")
    print("|---|---|---|---|")
    for hosts in HOSTS:
        size, seconds = _bytes(agreement_bytes(hosts)), _seconds(agreement_seconds(hosts))
        print(f"| {hosts:,} | {messages(hosts):,} | {size} | {seconds} |")


def _short(values: Sequence[str]) -> str:
    """Return one value if all are the same."""
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def _bytes(count: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", TB), ("GB", GB), ("MB", MB)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _seconds(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.2g} h"
    return f"{seconds / 60:.2g} min" if seconds >= 100 else f"{seconds:.2g} s"


# Measured


def print_measurements(most: int) -> None:
    """Measure and print what real processes cost here.

    Args:
        most: The largest number of simulated processes.
    """
    print("Seconds of an agreement, real processes on 127.0.0.1: median (largest)")
    print("| processes | JAX | TensorFlow | PyTorch |\n|---|---|---|---|")
    for count in (2, 4):
        cells = []
        for backend in ("jax", "tensorflow", "torch"):
            seconds = _run("gather_seconds", count, backend)[0]["seconds"]
            cells.append(f"{np.median(seconds):.4f} ({seconds.max():.4f})")
        print(f"| {count} | {' | '.join(cells)} |", flush=True)
    counts = [2**i for i in range(1, 20) if 2**i <= most]
    print("\nSeconds of an agreement on JAX, a thread for each process")
    print(f"| bytes of each | {' | '.join(map(str, counts))} |\n|---|{'---|' * len(counts)}")
    for size in (FRAME, 4096):
        found = _run("simulated", 1, "jax", {"counts": counts, "bytes": size})[0]
        cells = [f"{float(found[str(count)]):.3f}" for count in counts]
        print(f"| {size} | {' | '.join(cells)} |", flush=True)
    print("\nA session with weights in parts, on JAX")
    print(
        "| processes | state | shards of each process | files | read by each to resume | looks at "
        "files | agreements to start, save at the end, resume | barriers |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for count in (2, 4):
        with tempfile.TemporaryDirectory() as folder:
            print(_saved_and_resumed(count, Path(folder)), flush=True)


def _run(function: str, count: int, backend: str, arguments: Any = None) -> list[Mapping[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        name = f"tests.benchmarks.cluster_scenes:{function}"
        return run(name, count, Path(folder), backend=backend, arguments=arguments or {})


def _saved_and_resumed(count: int, directory: Path) -> str:
    function = "tests.benchmarks.cluster_scenes:sharded"
    saved = run(function, count, directory, backend="jax")[0]
    (checkpoint,) = (directory / "log" / "checkpoints").iterdir()
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    owners = [checkpoint / "shards" / f"ocdbt.process_{i}" for i in range(count)]
    shards = [sum(p.stat().st_size for p in files if owner in p.parents) for owner in owners]
    resumed = run(function, count, directory, backend="jax")
    agreements = saved["start"], saved["agreements"] - saved["before"], resumed[0]["start"]
    cells = [
        count,
        _bytes(int(saved["state"])),
        ", ".join(map(_bytes, shards)),
        len(files),
        ", ".join(_bytes(int(each["read"])) for each in resumed),
        resumed[0]["looks"],
        ", ".join(map(str, agreements)),
        saved["barriers"],
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paper", action="store_true", help="measure nothing")
    parser.add_argument("--most", type=int, default=512, help="simulated processes")
    options = parser.parse_args()
    if not options.paper:
        print_measurements(options.most)
    print_costs()


if __name__ == "__main__":
    main()
