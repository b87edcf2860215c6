"""Test hosts: a container per host with a Docker engine of its own, reached by SSH over a network with no way out."""

from __future__ import annotations

from .fleet import Host, Hosts
from .images import COMBINATIONS, ENGINES, STORES, ensure_image

__all__ = ["COMBINATIONS", "ENGINES", "STORES", "Host", "Hosts", "ensure_image"]
