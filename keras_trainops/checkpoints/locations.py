"""Turn what a user passes as a path into the path of something on this machine."""

from __future__ import annotations

import os
import re
import urllib.request

from keras_trainops.errors import RestoreError

# One slash is enough, as `pathlib` merges two. A single letter would be a Windows drive.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/+)(.*)", re.DOTALL)
_DOWNLOADS = {
    "gs": "`gcloud storage cp`",
    "s3": "`aws s3 cp`",
    "hf": "`huggingface_hub.snapshot_download`",
    "http": "`keras.utils.get_file`",
    "https": "`keras.utils.get_file`",
}


def location_of(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    """Return the path as text.

    Expands `~`, decodes `file://` URLs, and removes a slash after the name of a file.

    Args:
        path: The user's path. It need not exist: it may be the prefix of a TensorFlow checkpoint.

    Returns:
        A local path or prefix.

    Raises:
        RestoreError: If it is empty, not a valid path, or on another machine (`gs://…`).

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
    tool = _DOWNLOADS.get(scheme.lower())
    hint = f" (for example with {tool})" if tool else ""
    raise RestoreError(
        f"'{scheme}://{rest}' is not on this machine, and remote paths are not read. Download it "
        f"first{hint}, and pass the path of the copy."
    )
