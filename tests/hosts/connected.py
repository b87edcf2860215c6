"""The sample's base images, as ``scripts/connected-build`` makes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.script import load

__all__ = ["save_debian_base"]


def save_debian_base(kind: str, archive: Path) -> str:
    """Saves the base image ``python`` or ``node``, made from Debian's packages where it is not there yet.

    :returns: its name.
    """
    builder = load("connected-build")
    builder.debian_bases(builder.Docker())
    name = str(builder.DEBIAN_BASES[kind])
    subprocess.run(["docker", "save", "-o", str(archive), name], check=True)
    return name
