"""What fails leaves things as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def all_or_nothing(*objects: Any) -> Iterator[None]:
    """Where the block fails, gives each object the attributes back that it had before.

    Values are the same objects as before. Of those only what TensorFlow keeps of the attributes,
    in `_self_...`, is undone within, too.
    """
    before = [(vars(each), dict(vars(each))) for each in objects]
    tracked = [
        (value, copy.copy(value))
        for _, attributes in before
        for name, value in attributes.items()
        if name.startswith("_self_") and isinstance(value, (list, dict))
    ]
    try:
        yield
    except BaseException:
        for now, attributes in before:
            now.clear()
            now.update(attributes)
        for container, content in tracked:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)
        raise
