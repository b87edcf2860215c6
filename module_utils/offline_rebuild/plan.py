"""Plans: what a run would do, per service, and why. Pure values; nothing here touches a host.

Schema (``Plan.to_dict``), version 1::

    {"schema": 1, "project": str, "engine": str, "store": str, "changed": bool,
     "services": [{"service", "image", "action", "way", "reasons": [str], "files": [{"path", "kind", "what": [str],
       "note"}], "dockerfile", "reused", "total", "start": {"line", "text"} | null, "evidence", "assumed": [str],
       "ancestor", "image_before", "stages": [...]}]}
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple

__all__ = ["ACTIONS", "FileChange", "Plan", "ServicePlan", "StagePlan", "Start"]

SCHEMA = 1
#: Files that are shown to an operator; the plan itself has them all.
MOST_FILES = 20
#: In the order of weight.
ACTIONS = ("unchanged", "restart", "rebuild", "blocked")


@dataclass(frozen=True)
class FileChange:
    """A path of the build context that is not as the image has it.

    :param path: relative to the context, ``/``-separated.
    :param kind: ``added``, ``changed`` or ``deleted``.
    :param what: of ``content``, ``mode``, ``owner``, ``type``, ``link``, ``xattrs``.
    :param note: ``only the mode differs``, ``only the line ends differ`` or nothing.
    """

    path: str
    kind: str
    what: Tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Start:
    """The instruction where the build starts: 1-based ``line`` in the Dockerfile and its ``text``."""

    line: int
    text: str


@dataclass(frozen=True)
class StagePlan:
    """How far one stage is already inside an image.

    ``reused`` of ``total`` instructions (FROM not counted) are proven to be inside ``ancestor`` (name or id);
    ``start`` is the first that is not, ``None`` if all are; ``reason`` says why it is not.
    """

    stage: str
    ancestor: str
    reused: int
    total: int
    start: Optional[Start]
    reason: str
    evidence: str


@dataclass(frozen=True)
class ServicePlan:
    """What becomes of one service.

    :param action: one of :data:`ACTIONS`.
    :param way: how the image is made: ``assemble``, ``thin graft``, ``graft``, ``build`` (nothing to reuse, the base
        image is present) or ``""``.
    :param reasons: sentences for the operator, the weightiest first; for ``blocked`` the remedy is among them.
    :param evidence: the weakest evidence that the plan rests on: ``recorded``, ``observed`` or ``assumed``.
    :param assumed: what was assumed, in words.
    :param image_before: id of the image that the service's name stands for now, ``""`` if there is none.
    """

    service: str
    image: str
    action: str
    way: str = ""
    reasons: Tuple[str, ...] = ()
    files: Tuple[FileChange, ...] = ()
    dockerfile: str = ""
    reused: int = 0
    total: int = 0
    start: Optional[Start] = None
    evidence: str = ""
    assumed: Tuple[str, ...] = ()
    ancestor: str = ""
    image_before: str = ""
    stages: Tuple[StagePlan, ...] = ()

    @property
    def changed(self) -> bool:
        """:returns: whether a run would change something for this service."""
        return self.action in ("restart", "rebuild")


@dataclass(frozen=True)
class Plan:
    """What a run on one host would do. ``services`` are in dependency order."""

    project: str
    engine: str
    store: str
    services: Tuple[ServicePlan, ...] = field(default_factory=tuple)

    @property
    def changed(self) -> bool:
        """:returns: whether a run would change something."""
        return any(s.changed for s in self.services)

    @property
    def blocked(self) -> Tuple[ServicePlan, ...]:
        """:returns: the services that cannot be rebuilt here."""
        return tuple(s for s in self.services if s.action == "blocked")

    def to_dict(self) -> Dict[str, Any]:
        """:returns: the plan in the schema of this file, JSON-ready."""
        return {
            "schema": SCHEMA,
            "project": self.project,
            "engine": self.engine,
            "store": self.store,
            "changed": self.changed,
            "services": [asdict(s) for s in self.services],
        }

    def diff(self) -> Mapping[str, str]:
        """:returns: ``before`` and ``after`` texts for Ansible's ``--diff``, one block per service that is touched."""
        before: List[str] = []
        after: List[str] = []
        for service in self.services:
            if service.action == "unchanged":
                continue
            before.append(f"{service.service}: image {short(service.image_before)}")
            after.extend(describe(service))
        return {
            "before": "".join(line + "\n" for line in before),
            "after": "".join(line + "\n" for line in after),
            "before_header": f"{self.project} (running)",
            "after_header": f"{self.project} (planned)",
        }


def short(image_id: str) -> str:
    """``sha256:0123456789abcdef...`` -> ``0123456789ab``; nothing -> ``none``."""
    return image_id.rsplit(":", maxsplit=1)[-1][:12] if image_id else "none"


def describe(service: ServicePlan) -> List[str]:
    """:returns: the lines that tell an operator what happens to one service."""
    lines = [f"{service.service}: {service.action}" + (f" by {service.way}" if service.way else "")]
    lines += [f"  reason: {reason}" for reason in service.reasons]
    lines += [
        f"  file: {change.path} ({', '.join((change.kind,) + change.what)}"
        + (f"; {change.note}" if change.note else "")
        + ")"
        for change in service.files[:MOST_FILES]
    ]
    if len(service.files) > MOST_FILES:
        lines.append(f"  and {len(service.files) - MOST_FILES} more files")
    if service.start is not None:
        lines.append(
            f"  reuses {service.reused} of {service.total} instructions; starts at "
            f"{service.dockerfile}:{service.start.line} {service.start.text}"
        )
    elif service.way:
        lines.append(f"  reuses {service.reused} of {service.total} instructions")
    if service.evidence:
        lines.append(f"  evidence: {service.evidence}")
    lines += [f"  assumed: {text}" for text in service.assumed]
    return lines
