"""Which images a project needs, and whether this host has them."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from .image import pull_remedy
from .planner import Planner
from .reuse import Analyzer, same_platform

__all__ = ["Need", "needs"]

#: In the order of trouble.
STATUSES = ("present", "recoverable", "wrong_platform", "missing")


@dataclass(frozen=True)
class Need:
    """An image that a build or a service needs.

    :param status: ``present``; ``recoverable`` (its layers are inside an image that is present, so a graft takes its
        place); ``wrong_platform``; or ``missing``.
    :param needed_by: service names and ``Dockerfile:line`` places.
    :param remedy: the command that mends it, for a connected machine and this host; empty when nothing is to be done.
    """

    name: str
    platform: str
    status: str
    needed_by: Tuple[str, ...]
    remedy: str

    def to_dict(self) -> Dict[str, Any]:
        """:returns: the fields, JSON-ready."""
        return asdict(self)


def needs(planner: Planner) -> List[Need]:
    """:returns: every image that the planner's services need, each once, sorted by trouble and name."""
    found: Dict[Tuple[str, str], Tuple[List[str], bool]] = {}

    def add(name: str, platform: str, who: str, inside: bool = False) -> None:
        places, recoverable = found.setdefault((name, platform), ([], True))
        if who not in places:
            places.append(who)
        found[(name, platform)] = (places, recoverable and inside)

    for service in planner.services:
        if service.build is None:
            add(service.image, str(service.raw.get("platform") or planner.store.info.platform), service.name)
        else:
            _of_build(planner.analyzer(service), service.name, planner.project.src, add)
    made = [_judge(planner, *key, places, inside) for key, (places, inside) in found.items()]
    return sorted(made, key=lambda need: (-STATUSES.index(need.status), need.name))


def _of_build(analyzer: Analyzer, service: str, src: str, add: Any) -> None:
    dockerfile = analyzer.build.dockerfile
    name = os.path.relpath(dockerfile.file, src)
    syntax = dockerfile.directives.get("syntax")
    if syntax:
        # The derived Dockerfile goes without it where the frontend is not here (DESIGN.md, fact 5).
        add(syntax.split()[0], analyzer.build.host_platform, f"{service} ({name}:1, # syntax)", inside=True)
    for index in analyzer.needed():
        timeline = analyzer.timelines[index]
        if timeline.base != "scratch":
            inside = analyzer.stage(index).alignment is not None
            add(timeline.base, timeline.platform, f"{service} ({name}:{timeline.from_line})", inside)
        for place, step in enumerate(timeline.steps):
            for kind, value in [*step.mounts, (step.kind, step.source)]:
                if kind == "image":
                    inside = place < analyzer.stage(index).proven
                    add(value, timeline.platform, f"{service} ({name}:{step.instruction.line})", inside)


def _judge(planner: Planner, name: str, platform: str, places: Sequence[str], inside: bool) -> Need:
    image = planner.store.find(name)
    status: Optional[str] = None
    if image is not None:
        status = "present" if same_platform(image.platform, platform) else "wrong_platform"
    if status != "present" and inside:
        status = "recoverable"
    status = status or "missing"
    remedy = "" if status in ("present", "recoverable") else pull_remedy(name, platform)
    return Need(name, platform, status, tuple(places), remedy)
