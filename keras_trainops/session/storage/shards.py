"""Arrays that no process has whole: each process writes its parts of them, through Orbax.

Parts are copied to the host before training continues, and written in the background. Orbax gives
the directory its name once all processes have written theirs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.session import names_of_shards
from keras_trainops.checkpoints.open import open_checkpoint

DIRECTORY = "shards"
_INSTALL = (
    "The variables of this model are divided among processes, so a session saves them with Orbax: "
    "pip install 'keras-trainops[orbax]'"
)


class ShardedArray(NamedTuple):
    """A saved array, which each process reads in parts.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        part: Reads the elements at an index, a slice for each axis.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    part: Callable[[tuple[slice, ...]], np.ndarray]


def require_orbax() -> None:
    """Check that Orbax can be used.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import orbax.checkpoint  # noqa: F401
    except ImportError as error:
        raise ImportError(_INSTALL) from error


class ShardsWriter:
    """Copies this process's parts of arrays to the host, and writes them in the background.

    All processes create one at the same time, and close it.

    Args:
        directory: The directory to write, on a file system that all share.
        arrays: JAX arrays by name, the same names on all processes.

    Raises:
        OSError: If that cannot begin.
    """

    def __init__(self, directory: Path, arrays: Mapping[str, Any]) -> None:
        import jax
        import orbax.checkpoint as ocp

        jax.block_until_ready(list(arrays.values()))  # processes talk on devices only between steps
        self._checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        try:
            with _os_errors():
                tree = ocp.args.PyTreeSave(dict(arrays))
                self._checkpointer.save(directory.absolute(), args=tree)
        except BaseException:
            self.close()
            raise

    def wait(self) -> None:
        """Wait until all processes have written their parts.

        Raises:
            OSError: If that fails.
        """
        with _os_errors():
            self._checkpointer.wait_until_finished()

    def close(self) -> None:
        """Wait until nothing is written any more, and end the threads of Orbax."""
        with contextlib.suppress(Exception):  # `wait` is there to report errors
            self._checkpointer.close()

    def job(self, run: Callable[[], object]) -> Callable[[], None]:
        """Return a function that calls `run`, and closes this writer however that ends."""

        def run_and_close() -> None:
            with contextlib.closing(self):
                run()

        return run_and_close


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Turn the errors of Orbax, JAX and TensorStore, which raise their own kinds, into one."""
    try:
        yield
    except Exception as error:
        raise OSError(f"the parts of variables could not be written: {error}") from error


def read(step: Path) -> dict[str, ShardedArray]:
    """Return the arrays in the directory of a step by key, to be read later.

    Raises:
        RestoreError: If it is damaged.
    """
    checkpoint = open_checkpoint(str(step / DIRECTORY))
    names = names_of_shards(checkpoint, step)
    return {key: _array(checkpoint, name) for key, name in names.items()}


def _array(checkpoint: Checkpoint, name: str) -> ShardedArray:
    def part(index: tuple[slice, ...]) -> np.ndarray:
        return checkpoint.part(name, index)

    return ShardedArray(checkpoint.shape(name), checkpoint.dtype(name), part)
