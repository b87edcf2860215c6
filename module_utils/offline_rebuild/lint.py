"""Advice on the builds of a project: our own rules, and what ``docker build --check`` of the engine says.

``docker build --check`` (Engine 27 and newer, by buildx 0.15 and newer) asks a registry for each base image, which on
an air-gapped host fails after a name look-up's time-out, and it writes into the build cache (both tried on 28.5). So
it gets the Dockerfile with each base replaced by ``scratch`` and without its ``# syntax`` line, and it is not run in
check mode. What it can then no longer know (a variable of the base image) is left out of its answer.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from typing import Any, Dict, Iterator, List, Mapping, Optional, Set, Tuple

from .advice import Advice, advise, merge
from .cli import Docker, EngineInfo, parse_version
from .dockerfile import Dockerfile
from .errors import OfflineRebuildError
from .ignorefile import IGNORE_SUFFIX
from .planner import Planner
from .release import is_secret_name, mask, secrets_of
from .reuse import Analyzer

__all__ = ["collect", "dockerfiles", "has_check", "without_bases"]

#: The first versions with ``docker build --check``: BuildKit 0.14 is in the engine, the flag in buildx.
_CHECK_ENGINE, _CHECK_BUILDX = (27,), (0, 15)
_CHECK_TIMEOUT = 60.0
#: What ``docker build --check`` cannot judge when the bases and the context are not there.
_BLIND = frozenset({"UndefinedVar", "CopyIgnoredFile", "InvalidBaseImagePlatform", "RedundantTargetPlatform"})
_TOOL = "docker build --check"

Entries = Mapping[str, Tuple[str, int]]


def collect(planner: Planner, run_check: bool) -> List[Advice]:
    """:returns: the advice on every build of the planned services, each piece once.

    :param run_check: whether ``docker build --check`` may be run; it writes into the build cache.
    """
    ours: List[Advice] = []
    theirs: List[Advice] = []
    entries: Dict[str, Entries] = {}
    asked: Set[str] = set()
    may_check = run_check and has_check(planner.store.info)
    for name, source, analyzer in _analyzers(planner):
        context = analyzer.context
        if context.given_root not in entries:
            entries[context.given_root] = {path: (e.type, e.size) for path, e in context.stat_entries()}
        build = replace(analyzer.build, dockerfile=replace(analyzer.build.dockerfile, file=name))
        ignore, write = _ignore_names(planner, analyzer, name)
        where = _shown(planner, context.given_root)
        ours += advise(build, entries[context.given_root], ignore, where, write)
        if may_check and name not in asked:
            asked.add(name)
            theirs += _docker_check(planner.docker, build.dockerfile, source)
    return merge(ours, theirs)


def dockerfiles(planner: Planner) -> Dict[str, str]:
    """For hadolint on the control node: the Dockerfiles' texts by name, values that look like secrets masked."""
    secrets = secrets_of(planner.project.raw)
    found: Dict[str, str] = {}
    for name, source, analyzer in _analyzers(planner):
        own = {value for made in analyzer.build.dockerfile.instructions for value in _secret_values(made.pairs)}
        found[name] = str(mask(source, [*secrets, *sorted(own, key=len, reverse=True)]))
    return found


def _analyzers(planner: Planner) -> Iterator[Tuple[str, str, Analyzer]]:
    """:returns: the Dockerfile's name for an operator, its text and the analysis, of each service that is built."""
    for service in planner.services:
        if service.build is not None:
            analyzer = planner.analyzer(service)
            source = planner.dockerfile(service.build).decode("utf-8", "surrogateescape")
            yield _shown(planner, analyzer.build.dockerfile.file), source, analyzer


def _shown(planner: Planner, path: str) -> str:
    return os.path.relpath(path, planner.project.src)


def _ignore_names(planner: Planner, analyzer: Analyzer, dockerfile: str) -> Tuple[str, str]:
    """:returns: the ignore file in use (``""`` for none) and the one to write where there is none."""
    file = analyzer.context.ignore.file
    write = os.path.join(_shown(planner, analyzer.context.given_root), ".dockerignore")
    if file and file.endswith(dockerfile + IGNORE_SUFFIX):
        write = dockerfile + IGNORE_SUFFIX
    return (_shown(planner, file) if file else ""), os.path.normpath(write)


def _secret_values(pairs: Any) -> Iterator[str]:
    for key, value in pairs:
        if value and len(value) >= 4 and is_secret_name(key):
            yield value


def has_check(info: EngineInfo) -> bool:
    """:returns: whether engine and CLI know ``docker build --check``."""
    buildx = parse_version(info.plugins.get("buildx", ""))
    return parse_version(info.version) >= _CHECK_ENGINE and buildx >= _CHECK_BUILDX


def without_bases(dockerfile: Dockerfile, source: str) -> Optional[str]:
    """The Dockerfile's text with every base that is no stage replaced by ``scratch``; lines keep their numbers.

    :returns: ``None`` where a FROM is written in a way that cannot be replaced with certainty.
    """
    lines = source.split("\n")
    if "syntax" in dockerfile.directive_lines:
        lines[dockerfile.directive_lines["syntax"] - 1] = "#"
    for stage in dockerfile.stages:
        made = stage.from_instruction
        if dockerfile.find_base(stage.base, stage.index) is not None or stage.base == "scratch":
            continue
        line = lines[made.line - 1]
        if made.end_line != made.line or line.split().count(stage.base) != 1:
            return None
        lines[made.line - 1] = " ".join("scratch" if word == stage.base else word for word in line.split())
    return "\n".join(lines)


def _docker_check(docker: Docker, dockerfile: Dockerfile, source: str) -> List[Advice]:
    text = without_bases(dockerfile, source)
    if text is None:
        return []
    with tempfile.TemporaryDirectory(prefix="offline-rebuild-") as folder:
        path = os.path.join(folder, "Dockerfile")
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as handle:
            handle.write(text)
        argv = ("build", "--call=check,format=json", "--network=none", "-f", path, folder)
        try:
            result = docker.run(*argv, check=False, env={"DOCKER_BUILDKIT": "1"}, timeout=_CHECK_TIMEOUT)
            warnings = result.json().get("warnings") or []
        except (OfflineRebuildError, ValueError, AttributeError):
            return []  # advice is a service: what it cannot say must not stop a run
    return list(_read_warnings(warnings, dockerfile.file))


def _read_warnings(warnings: Any, file: str) -> Iterator[Advice]:
    for warning in warnings:
        rule = str(warning.get("ruleName") or "")
        if not rule or rule in _BLIND:
            continue
        ranges = (warning.get("location") or {}).get("ranges") or [{}]
        line = int((ranges[0].get("start") or {}).get("line") or 0)
        text = str(warning.get("detail") or warning.get("description") or rule)
        yield Advice(rule, file, line, text, str(warning.get("description") or ""), source=_TOOL)
