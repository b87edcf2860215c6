"""The last good state of a build that failed, as an image to look into."""

from __future__ import annotations

__all__ = ["image_name"]

TAG = "offline-rebuild-debug"


def image_name(project: str, service: str) -> str:
    """:returns: the name of the image that debug.yml keeps of a service's failed build."""
    return f"{project}-{service}:{TAG}".lower()
