"""Something done from time to time, beside a block that takes long."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def beats(beat: Callable[[], object], seconds: float) -> Iterator[None]:
    """Call a function in a thread, again and again while a block runs; never after it.

    Args:
        beat: The function. After an exception it is not called again.
        seconds: The pause before each call.

    Raises:
        Exception: What `beat` has raised, unless the block itself raises.
    """
    is_over, errors = threading.Event(), list[Exception]()

    def run() -> None:
        try:
            while not is_over.wait(seconds):
                beat()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="beats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        try:
            thread.join()
        finally:
            thread.join()  # after an interruption, too
    if errors:
        raise errors[0]
