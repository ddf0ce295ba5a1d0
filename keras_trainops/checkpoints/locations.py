"""What a user gives as a path, as the path of something on this machine."""

from __future__ import annotations

import os
import re
import urllib.request

from keras_trainops.errors import RestoreError

# `pathlib` makes one slash of two; a single letter is a drive of Windows.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/+)(.*)", re.DOTALL)
_DOWNLOADS = {
    "gs": "`gcloud storage cp`",
    "s3": "`aws s3 cp`",
    "hf": "`huggingface_hub.snapshot_download`",
    "http": "`keras.utils.get_file`",
    "https": "`keras.utils.get_file`",
}


def location_of(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    """The path as text, with `~` expanded, a `file://` URL decoded, and no `/` behind a file.

    Args:
        path: What the user gave. A prefix of a TensorFlow checkpoint is no file by itself.

    Raises:
        RestoreError: If it is empty, no path at all, or one of another machine (`gs://…`).

    Example:
        >>> location_of(b"run/model.keras")
        'run/model.keras'
    """
    text = os.fsdecode(path)
    if not text or "\0" in text:
        raise RestoreError(f"A checkpoint needs a path. Received: {path!r}")
    if not os.path.lexists(text):
        text = os.path.expanduser(_without_scheme(text))
    bare = text.rstrip("/" if os.sep == "/" else "/\\")
    is_file = bare != text and os.path.exists(bare) and not os.path.isdir(bare)
    return bare if is_file else text


def _without_scheme(text: str) -> str:
    url = _URL.fullmatch(text)
    if url is None:
        return text
    scheme, slashes, rest = url.groups()
    if scheme.lower() == "file":
        host = "" if len(slashes) != 2 else rest.partition("/")[0]
        if host in ("", "localhost"):
            return urllib.request.url2pathname("/" + rest.removeprefix(host).lstrip("/"))
    with_what = _DOWNLOADS.get(scheme.lower())
    raise RestoreError(
        f"'{scheme}://{rest}' is not on this machine, and remote paths are not read. Download it "
        f"first{f' (with {with_what}, say)' if with_what else ''}, and pass the path of the copy."
    )
