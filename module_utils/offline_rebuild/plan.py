"""Plans: what a run would do, per service, and why. Pure values; nothing here touches a host.

Schema (``Plan.to_dict``), version 1::

    {"schema": 1, "project": str, "engine": str, "store": str, "changed": bool,
     "services": [{"service", "image", "action", "way", "reasons": [str], "files": [{"path", "kind", "what": [str],
       "note", "mend"}], "dockerfile", "reused", "total", "start": {"line", "text"} | null, "evidence",
       "assumed": [str], "ancestor", "ancestor_digest", "inputs", "image_before", "stages": [...], "mend",
       "image_modes": [str], "image_modes_total", "not_run": [str], "run_again": [str], "swap", "swap_why",
       "pregate": bool, "pregate_why", "times": {"make": span | null, "away": span | null} | null}],
     "estimated": bool, "time": span | null}

``times`` and ``time`` are estimates (estimate.py), ``null`` where none was made or the host has no history; a span is
``{"seconds", "least", "most", "releases"}``: the median of so many releases and its bounds, in seconds. The last three
keys came later: a reader finds them missing in the record of an older release.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

__all__ = ["ACTIONS", "FileChange", "Plan", "ServicePlan", "Span", "StagePlan", "Start", "Times", "mend_command"]

SCHEMA = 1
#: Files that are shown to an operator; the plan itself has them all.
MOST_FILES = 20
#: A command longer than this many characters is in the plan and not shown.
MOST_COMMAND = 8000
#: In the order of weight.
ACTIONS = ("unchanged", "restart", "rebuild", "blocked")


@dataclass(frozen=True)
class FileChange:
    """A path of the build context that is not as the image has it.

    :param path: relative to the context, ``/``-separated.
    :param kind: ``added``, ``changed`` or ``deleted``.
    :param what: of ``content``, ``mode``, ``owner``, ``type``, ``link``, ``xattrs``.
    :param note: ``only the mode differs``, ``only the line ends differ`` or nothing.
    :param mend: the command, less the path, that gives the file the mode or the line ends that the image has.
    """

    path: str
    kind: str
    what: Tuple[str, ...] = ()
    note: str = ""
    mend: str = ""


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
class Span:
    """Seconds that something took: the median of so many ``releases``, the ``least`` and the ``most``."""

    seconds: float
    least: float
    most: float
    releases: int

    def __str__(self) -> str:
        if self.releases == 1:
            return f"about {self.seconds:.1f} s (once before)"
        return f"about {self.seconds:.1f} s ({self.least:.1f} to {self.most:.1f} s in {self.releases} releases)"


@dataclass(frozen=True)
class Times:
    """What is known of a service's times: ``make`` its image, and how long it is ``away``; ``None``: no history yet, or
    it is neither made nor away."""

    make: Optional[Span] = None
    away: Optional[Span] = None


@dataclass(frozen=True)
class ServicePlan:
    """What becomes of one service.

    :param action: one of :data:`ACTIONS`.
    :param way: how the image is made: ``assemble``, ``thin graft``, ``graft``, ``build`` (nothing to reuse, the base
        image is present), ``overlay`` (not exact), ``delta`` (another host makes it) or ``""``.
    :param reasons: sentences for the operator, the weightiest first; for ``blocked`` the remedy is among them.
    :param evidence: the weakest evidence that the plan rests on: ``recorded``, ``observed`` or ``assumed``; ``overlay``
        where the result is not exact.
    :param assumed: what was assumed, in words.
    :param ancestor_digest: config digest of the ancestor.
    :param inputs: digest of all that goes into the image: FROM's name, instructions, build arguments, files, labels.
    :param not_run: with ``overlay``, the RUNs that are not run again; ``run_again``: those that are.
    :param image_before: id of the image that the service's name stands for now, ``""`` if there is none.
    :param mend: one shell command that gives all files the modes and line ends that the image has; it concerns those
        that differ by mode, or by their line ends alone.
    :param image_modes: the first of the ``image_modes_total`` paths whose mode is taken from the image.
    :param swap: ``rolling``, ``recreate`` or ``""``; ``swap_why`` says why it is not rolling.
    :param pregate: whether the new image is tried beside the old container first; ``pregate_why`` says why not.
    :param times: the estimate; ``None`` where none was made.
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
    mend: str = ""
    image_modes: Tuple[str, ...] = ()
    image_modes_total: int = 0
    ancestor_digest: str = ""
    inputs: str = ""
    not_run: Tuple[str, ...] = ()
    run_again: Tuple[str, ...] = ()
    swap: str = ""
    swap_why: str = ""
    pregate: bool = False
    pregate_why: str = ""
    times: Optional[Times] = None

    @property
    def changed(self) -> bool:
        """:returns: whether a run would change something for this service."""
        return self.action in ("restart", "rebuild")


@dataclass(frozen=True)
class Plan:
    """What a run on one host would do. ``services`` are in dependency order.

    :param time: how long all of it takes, where it was ``estimated`` and there is a history.
    """

    project: str
    engine: str
    store: str
    services: Tuple[ServicePlan, ...] = field(default_factory=tuple)
    estimated: bool = False
    time: Optional[Span] = None

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
            "estimated": self.estimated,
            "time": asdict(self.time) if self.time is not None else None,
        }

    def time_line(self) -> List[str]:
        """:returns: one line on how long all takes, none where that was not estimated."""
        return [f"in all: {self.time or 'no history yet'}"] if self.estimated else []

    def diff(self) -> Mapping[str, str]:
        """:returns: ``before`` and ``after`` texts for Ansible's ``--diff``, one block per service that is touched."""
        before: List[str] = []
        after: List[str] = []
        for service in self.services:
            if service.action == "unchanged":
                continue
            before.append(f"{service.service}: image {short(service.image_before)}")
            after.extend(describe(service))
        after += self.time_line()
        return {
            "before": "".join(line + "\n" for line in before),
            "after": "".join(line + "\n" for line in after),
            "before_header": f"{self.project} (running)",
            "after_header": f"{self.project} (planned)",
        }


def mend_command(root: str, wanted: Iterable[Tuple[str, str]]) -> str:
    """One shell command for many files.

    :param root: the build context.
    :param wanted: command without a file's name, and path in the context; a pair without a command is left out.
    """
    by_command: Dict[str, List[str]] = {}
    for command, path in wanted:
        if command:
            by_command.setdefault(command, []).append(shlex.quote(path))
    parts = [f"{command} {' '.join(paths)}" for command, paths in sorted(by_command.items())]
    return " && ".join([f"cd {shlex.quote(root)}", *parts]) if parts else ""


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
    if len(service.mend) > MOST_COMMAND:
        lines.append("  to give the files what the image has: the command is long, see mend in the plan")
    elif service.mend:
        lines.append(f"  to give the files what the image has: {service.mend}")
    if service.image_modes_total:
        shown = ", ".join(service.image_modes[:3]) + (", ..." if service.image_modes_total > 3 else "")
        lines.append(f"  modes taken from the image: {service.image_modes_total} ({shown})")
    if service.start is not None:
        lines.append(
            f"  reuses {service.reused} of {service.total} instructions; starts at "
            f"{service.dockerfile}:{service.start.line} {service.start.text}"
        )
    elif service.way and service.way != "delta":
        lines.append(f"  reuses {service.reused} of {service.total} instructions")
    if service.way == "overlay":
        lines.append("  NOT EXACT: new sources are laid over the image as it is")
        lines += [f"  not run again: {text}" for text in service.not_run]
        lines += [f"  run again: {text}" for text in service.run_again]
    if service.evidence:
        lines.append(f"  evidence: {service.evidence}")
    lines += [f"  assumed: {text}" for text in service.assumed]
    if service.swap:
        lines.append(f"  swap: {service.swap}" + (f", since {service.swap_why}" if service.swap_why else ""))
        lines.append("  pre-gate: " + (f"no, since {service.pregate_why}" if service.pregate_why else "yes"))
    if service.times is not None:
        lines += _time_lines(service, service.times)
    return lines


def _time_lines(service: ServicePlan, times: Times) -> List[str]:
    lines = []
    if service.action == "rebuild":
        lines.append(f"  time to make: {times.make or 'no history yet'}")
    if service.swap:
        away = "not at all (rolling)" if service.swap == "rolling" else f"{times.away or 'no history yet'}"
        lines.append(f"  away: {away}")
    return lines
