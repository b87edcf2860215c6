"""A build that failed: the instruction, its log, and the last good state as an image to look into.

BuildKit leaves no image of a build that failed, but its cache holds the instructions that went well. So the derived
Dockerfile, cut before the one that failed, is built once more: from the same graft, nothing runs again as long as the
cache is there. That is done only when it is asked for; the image keeps its name until ``prune`` takes it away.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from .dockerfile import Dockerfile, parse
from .errors import OfflineRebuildError

__all__ = ["BuildFailed", "Debugged", "Failing", "cut", "debug", "failing", "image_name", "last_failure", "line_of"]

TAG = "offline-rebuild-debug"
#: Label of the image: the release whose build failed.
LABEL = "offline-rebuild.debug"
#: Lines of the log that are shown.
MOST_LINES = 50
#: BuildKit numbers FROM and these (frontend/dockerfile/dockerfile2llb, cmdTotal).
_NUMBERED = frozenset(("RUN", "COPY", "ADD", "WORKDIR"))
#: Without the stage's name where there is one stage only.
_SAID = re.compile(r"^ > \[(?:(\S+) +)? *(\d+)/\d+\] ", re.MULTILINE)


def image_name(project: str, service: str) -> str:
    """:returns: the name of the image that debug.yml keeps of a service's failed build."""
    return f"{project}-{service}:{TAG}".lower()


@dataclass(frozen=True)
class Failing:
    """The instruction that failed.

    :param stage: its stage in the derived Dockerfile; ``place`` among the numbered ones of that stage, from 0 on.
    :param line: where it begins in the derived Dockerfile; ``text`` in one line.
    :param later: how many instructions with the same text follow it.
    """

    stage: str
    place: int
    line: int
    text: str
    later: int = 0


class BuildFailed(OfflineRebuildError):
    """``build-failed``, with all that the build said.

    :param about: what is kept with the release, see :func:`last_failure`.
    """

    def __init__(self, message: str, remedy: str, file: str, line: Optional[int], log: str, about: Mapping[str, Any]):
        super().__init__("build-failed", message, remedy, file, line)
        self.log = log
        self.about = dict(about)


def failing(log: str, derived: str) -> Optional[Failing]:
    """:returns: the instruction that a build's plain log names last as the one that failed; ``None`` for none.

    :param derived: the Dockerfile that was built; all its stages have names.
    """
    said = _SAID.findall(log)
    if not said:
        return None
    name, number = said[-1][0], int(said[-1][1])
    stages = parse(derived.encode("utf-8", "surrogateescape")).stages
    found = [s for s in stages if s.name == name.lower() or (not name and len(stages) == 1)]
    numbered = [i for s in found[-1:] for i in s.instructions if i.keyword in _NUMBERED]
    if not 0 <= number - 2 < len(numbered):
        return None
    one = numbered[number - 2]
    same = [i for s in stages for i in s.instructions if i.text == one.text]
    later = sum(1 for i in same if i.line > one.line)
    return Failing(found[-1].name, number - 2, one.line, " ".join(one.text.split()), later)


def line_of(found: Failing, dockerfile: Dockerfile) -> Optional[int]:
    """:returns: the line in the Dockerfile as it was written; ``None`` where its text is not there word for word."""
    every = [i for stage in dockerfile.stages for i in stage.instructions]
    lines = [i.line for i in every if " ".join(i.text.split()) == found.text]
    return lines[-1 - found.later] if len(lines) > found.later else None


def cut(derived: str, stage: str, place: int) -> str:
    """:returns: the derived Dockerfile up to the numbered instruction of a stage, without it.

    :raises OfflineRebuildError: ``dockerfile-syntax``.
    """
    stages = parse(derived.encode("utf-8", "surrogateescape")).stages
    (found,) = [s for s in stages if s.name == stage.lower()][-1:]
    line = [i for i in found.instructions if i.keyword in _NUMBERED][place].line
    return "".join(derived.splitlines(keepends=True)[: line - 1])


@dataclass(frozen=True)
class Debugged:
    """What is known of a failed build.

    :param file: the Dockerfile; ``line`` and ``text`` of the instruction, 0 and ``""`` where they are not known.
    :param log: path of the whole log on the host; ``lines``, its last.
    :param image: the name of the last good state; ``""`` where it is not made, ``why_not`` says why.
    :param command: enters it.
    """

    changed: bool
    msg: str
    service: str
    release: str
    file: str
    line: int
    text: str
    log: str
    tail: Tuple[str, ...]
    image: str = ""
    command: str = ""
    why_not: str = ""

    def to_dict(self) -> Dict[str, Any]:
        """:returns: the module's result, JSON-ready."""
        return asdict(self)

    def lines(self) -> List[str]:
        """:returns: the same for an operator."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        lines = [f"{self.service}: the build of release {self.release} failed at {place} {self.text}".rstrip()]
        lines += [f"  {line}" for line in self.tail]
        lines.append(f"whole log: {self.log}")
        if self.image:
            lines.append(f"to enter the state before that instruction: {self.command}")
        return [*lines, self.msg]


def last_failure(
    releases: Sequence[Any], services: Sequence[str] = (), release_id: str = ""
) -> Optional[Tuple[Any, Dict[str, Any]]]:
    """:returns: the newest release with a failed build, and what it has of it: ``phase`` ``build``, ``service``,
    ``file``, ``line``, ``text``, ``stage``, ``place``, ``run_time``, ``log``, ``logs``; ``None`` for none.

    :param releases: oldest first.
    :param services: only of these; ``release_id``: only of this release.
    """
    for release in reversed(releases):
        for entry in release.evidence:
            wanted = not services or entry.get("service") in services
            if entry.get("phase") == "build" and wanted and release_id in ("", release.id):
                return release, entry
    return None


def debug(request: Any, make: bool = True) -> Debugged:
    """Tell of the last failed build, and make the image of the last good state, under the project's lock.

    :param request: as for a rebuild; ``services`` and ``release`` choose the failure.
    :param make: whether the image is wanted; with ``request.check`` it is only said whether it would be made.
    :raises OfflineRebuildError: ``debug-nothing``, ``locked``, ``build-failed``, for bad input.
    """
    from . import transaction
    from .cli import Docker
    from .release import Journal
    from .run import open_project, options_of

    docker = Docker()
    docker.require()
    project = open_project(docker, request)
    found = last_failure(Journal(request.state_dir, project.name).all(), request.services, request.release)
    if found is None:
        raise OfflineRebuildError(
            "debug-nothing",
            f"no kept release of {project.name} on this host has a build that failed",
            "name the service or the release of a failed build (status.yml lists the releases)",
        )
    told = _told(*found)
    if not make:
        return replace(told, msg="the image was not asked for")
    if request.check:
        return _made(told, docker, project, request, found, None)
    with transaction.locked(project, replace(options_of(request), why="debug")) as lock:
        docker.guard = lock.guard
        return _made(told, docker, project, request, found, lock)


def _told(release: Any, entry: Mapping[str, Any]) -> Debugged:
    tail = tuple(str(line) for line in entry.get("logs") or ())[-MOST_LINES:]
    head = (str(entry["service"]), release.id, str(entry.get("file") or ""), int(entry.get("line") or 0))
    return Debugged(False, "", *head, str(entry.get("text") or ""), str(entry.get("log") or ""), tail)


def _made(
    told: Debugged, docker: Any, project: Any, request: Any, found: Tuple[Any, Mapping[str, Any]], lock: Any
) -> Debugged:
    """The answer with the image, made unless it is there or this is check mode."""
    from .planner import Planner
    from .run import settings_of

    release, entry = found
    name = image_name(project.name, told.service)
    command = f"docker run --rm -it --network none --entrypoint /bin/sh {shlex.quote(name)}"
    there = docker.inspect("image", [name])
    labels = ((there[0].get("Config") or {}).get("Labels") or {}) if there else {}
    if labels.get(LABEL) == release.id:
        return replace(told, msg=f"{name} is there", image=name, command=command)
    settings = replace(settings_of(request), run_time=int(entry.get("run_time") or 0))
    planner = Planner(docker, project, settings, {told.service})
    why_not = _why_not(planner.plan(), release, entry)
    if why_not:
        return replace(told, msg=f"the image is not made: {why_not}", why_not=why_not)
    if lock is None:
        return replace(told, changed=True, msg=f"would make {name}", image=name, command=command)
    try:
        planner.keep_last_good(told.service, str(entry["stage"]), int(entry["place"]), name, {LABEL: release.id})
    finally:
        planner.clean()
    return replace(told, changed=True, msg=f"made {name}; prune.yml takes it away", image=name, command=command)


def _why_not(plan: Any, release: Any, entry: Mapping[str, Any]) -> str:
    """:returns: why the state before the failure cannot be made again; ``""`` if it can."""
    if not entry.get("stage"):
        return "the log does not tell which instruction failed"
    now = {s.service: s for s in plan.services}.get(str(entry["service"]))
    then = {s.get("service"): s for s in release.plan.get("services") or ()}.get(entry["service"], {})
    if now is None or now.action != "rebuild" or (now.inputs, now.way) != (then.get("inputs"), then.get("way")):
        return "the tree or the images have changed since; run the rebuild again"
    if now.way in ("overlay", "delta"):
        return f"it was made by {now.way}"
    return ""


def of_build(
    service: str, log: str, derived: str, dockerfile: Dockerfile, src: str, run_time: int
) -> Tuple[Dict[str, Any], Optional[int], str]:
    """What is kept of a failed build. :returns: that, and the failing instruction's line and text where known."""
    found = failing(log, derived)
    line = line_of(found, dockerfile) if found is not None else None
    about: Dict[str, Any] = {
        "phase": "build",
        "service": service,
        "file": os.path.relpath(dockerfile.file, src) if os.path.isabs(dockerfile.file) else dockerfile.file,
        "line": line or 0,
        "text": found.text if found else "",
        "stage": found.stage if found else "",
        "place": found.place if found else 0,
        "run_time": run_time,
        "logs": [part for part in log.splitlines() if part.strip() and "transferring" not in part][-MOST_LINES:],
    }
    return about, line, about["text"]
