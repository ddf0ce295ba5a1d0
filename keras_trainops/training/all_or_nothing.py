"""What fails leaves things as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def all_or_nothing(*objects: Any) -> Iterator[None]:
    """Where the block fails, gives each object the attributes back that it had before.

    They are the same values as before, and plain lists and dictionaries among them have the same
    content.
    """
    before = [(vars(each), dict(vars(each))) for each in objects]
    values = [value for _, attributes in before for value in attributes.values()]
    contents = [(value, copy.copy(value)) for value in values if type(value) in (list, dict)]
    try:
        yield
    except BaseException:
        for now, attributes in before:
            now.clear()
            now.update(attributes)
        for container, content in contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)
        raise
