"""Values as plain lines for an operator: for a terminal, a pipe and a playbook's output alike. Pure functions."""

from __future__ import annotations

import re
import time
from typing import List, Optional, Sequence

from .plan import Plan, ServicePlan, describe, short
from .presence import Need
from .release import Release
from .status import ContextLine, Disk, LogText, ReleaseLine, ServiceLayers, ServiceStatus, Status

__all__ = [
    "context_lines",
    "image_lines",
    "layer_lines",
    "log_lines",
    "plan_lines",
    "printable",
    "release_lines",
    "releases_lines",
    "size",
    "status_lines",
    "table",
]

_COLOUR = re.compile("\x1b\\[[0-9;?]*[A-Za-z]|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)")
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")
#: What a run would do with an instruction, in words.
_USES = {"reused": "reused", "thin": "thin layer", "config": "config only", "build": "runs"}


def printable(text: str) -> str:
    """:returns: one line that is safe on a terminal: colours dropped, control characters as ``\\xNN``."""
    return _CONTROL.sub(_escaped, _COLOUR.sub("", text))


def _escaped(match: "re.Match[str]") -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\x{code & 0xFF:02x}"  # a surrogate stands for one odd byte


def size(count: Optional[int]) -> str:
    """:returns: bytes as docker writes them, in powers of ten: ``0B``, ``1.5kB``, ``12MB``; ``-`` for ``None``."""
    if count is None:
        return "-"
    number, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    return f"{number:.3g}{unit}"


def moment(seconds: Optional[float]) -> str:
    """:returns: a time in UTC to the second, ``-`` for none."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds)) if seconds else "-"


def table(rows: Sequence[Sequence[str]]) -> List[str]:
    """:returns: the rows with their columns in line; the last column is as long as it is."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def plan_lines(plan: Plan, detail: bool = False) -> List[str]:
    """:returns: one line for each service, with its weightiest reason; all of it with ``detail``, and for what is
    blocked in any case."""
    lines: List[str] = []
    for service in plan.services:
        if detail or service.action == "blocked":
            lines += describe(service) if service.action != "unchanged" else [_one_line(service)]
        else:
            lines.append(_one_line(service))
    return lines + (plan.time_line() if detail else [])


def _one_line(service: ServicePlan) -> str:
    text = f"{service.service}: {service.action}" + (f" by {service.way}" if service.way else "")
    if service.action == "unchanged" or not service.reasons:
        return text
    weak = {"assumed": " (evidence: assumed)", "overlay": " (not exact)"}.get(service.evidence, "")
    return f"{text}: {service.reasons[0]}{weak}"


def status_lines(found: Status) -> List[str]:
    """:returns: the status of one host."""
    lines = [
        f"{found.project} on {found.host}: {found.src} "
        f"(Docker {found.engine}, {found.store} store, Compose {found.compose})",
        "",
        "services",
        *(f"  {line}" for line in _service_table(found.services)),
    ]
    lines += [f"  {item.service}: {item.image_note}" for item in found.services if item.image_note]
    lines += ["", f"releases ({len(found.releases)})"]
    lines += [f"  {line}" for line in releases_lines(found.releases)]
    if found.kept:
        lines += ["", "kept to go back to (sizes with shared layers)"]
        lines += [f"  {line}" for line in table([[k.name, short(k.image_id), size(k.size)] for k in found.kept])]
    lines += ["", *_trouble(found), *_disk_lines(found.disk)]
    return lines


def _service_table(services: Sequence[ServiceStatus]) -> List[str]:
    rows: List[List[str]] = []
    for item in services:
        made = {"release": item.made_by, "imported": "imported", "unknown": "no release", "": ""}[item.origin]
        if not item.containers:
            rows.append([item.service, "no container", short(item.image_id), made])
        for container in item.containers:
            state = container.state + (f", {container.health}" if container.health else "")
            if container.restarts:
                state += f", {container.restarts} restarts"
            rows.append([item.service, f"{container.name}: {state}", short(container.image_id), made])
    return table(rows)


def _trouble(found: Status) -> List[str]:
    lines: List[str] = []
    lock = found.lock
    if lock is not None:
        words = {
            "running": "a run is at work",
            "left-over": "a docker compose that an earlier run left is at work; the next run waits for it",
            "stale": f"stale ({lock.note}); the next run takes it over",
        }[lock.state]
        change = f", change {lock.change_id}" if lock.change_id else ""
        who = f"{lock.operator or 'unknown'} (pid {lock.pid or '?'}, since {moment(lock.time)}{change})"
        lines.append(f"lock: {words}: {who}: {lock.why or 'no reason given'}")
    for release_id in found.unfinished:
        busy = lock is not None and lock.state == "running"
        lines.append(
            f"unfinished: {release_id}" + (" (at work)" if busy else "; the next run finishes it or takes it back")
        )
    lines += [f"damaged: {release_id} cannot be read; the next run puts it aside" for release_id in found.damaged]
    return lines


def _disk_lines(disk: Disk) -> List[str]:
    parts = ", ".join(f"{name} {size(count)}" for name, count in sorted(disk.state_parts.items(), key=_by_count))
    return [
        f"disk: {disk.state_dir} {size(disk.state_bytes)}"
        + (f" ({parts})" if parts else "")
        + f", {size(disk.state_free)} free",
        f"disk: {disk.images} images of the project {size(disk.images_bytes)}, "
        f"{size(disk.images_free)} free under {disk.images_root}",
    ]


def _by_count(part: "tuple[str, int]") -> "tuple[int, str]":
    return (-part[1], part[0])


def releases_lines(found: Sequence[ReleaseLine]) -> List[str]:
    """:returns: one line for each release."""
    if not found:
        return ["none on this host"]
    return table(
        [
            [
                item.id,
                item.state,
                moment(item.started),
                item.operator or "-",
                item.change_id or "-",
                " ".join(item.services) + (f" ({_first(item.note)})" if item.note else ""),
            ]
            for item in found
        ]
    )


def _first(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."


def release_lines(item: Release) -> List[str]:
    """:returns: one release in full."""
    lines = [
        f"{item.id}: {item.state}",
        f"  project: {item.project} ({item.src})",
        f"  started: {moment(item.started)}, finished: {moment(item.finished)}",
        f"  operator: {item.operator or '-'}, change: {item.change_id or '-'}",
    ]
    for name, record in item.services.items():
        way = f" by {record.way}" if record.way else ""
        kept = f", kept as {record.kept_as}" if record.kept_as else ""
        lines.append(f"  {name}: {record.action}{way}: {short(record.before)} -> {short(record.after)}{kept}")
    if item.note:
        lines.append(f"  note: {' '.join(item.note.split())}")
    if item.timings:
        lines.append("  seconds: " + ", ".join(f"{name} {value:g}" for name, value in item.timings.items()))
    for entry in item.evidence:
        logs = entry.get("logs") or []
        if logs:
            lines.append(f"  log of {entry.get('service')} in the {entry.get('phase')}:")
            lines += [f"    {line}" for line in logs]
    return lines


def layer_lines(found: Sequence[ServiceLayers]) -> List[str]:
    """:returns: the instructions of each service, one a line."""
    lines: List[str] = []
    for item in found:
        if lines:
            lines.append("")
        source = f"in {item.ancestor}, evidence: {item.evidence}" if item.ancestor else "no image holds its beginning"
        lines.append(f"{item.service}: {item.dockerfile}, stage {item.stage}: {source}")
        rows = [[f":{item.base_line}", "base" if item.ancestor else "-", size(item.base_size), f"FROM {item.base}"]]
        for line in item.lines:
            place = f":{line.line}" if line.line else "ONBUILD"
            rows.append([place, _USES[line.use], size(line.size), line.text])
        if item.thin_size is not None:
            rows.append(["", "", size(item.thin_size), "(thin layer of an earlier run: what COPY and ADD wrote then)"])
        lines += [f"  {line}" for line in table(rows)]
        if item.reason:
            lines.append(f"  reason: {item.reason}")
    return lines or ["no service is built"]


def context_lines(found: Sequence[ContextLine]) -> List[str]:
    """:returns: one line for each service that is built."""
    rows = [[c.service, c.digest, f"{c.files} files", size(c.bytes), c.path] for c in found]
    return table(rows) or ["no service is built"]


def image_lines(found: Sequence[Need]) -> List[str]:
    """:returns: one line for each image, those in trouble first, each with its remedy below it."""
    rows = table([[n.status, n.name, n.platform, ", ".join(n.needed_by)] for n in found])
    lines: List[str] = []
    for row, need in zip(rows, found):
        lines.append(row)
        if need.remedy:
            lines.append(f"  remedy: {need.remedy}")
    return lines or ["no image is needed"]


def log_lines(found: Sequence[LogText]) -> List[str]:
    """:returns: the logs, each under its container's name."""
    lines: List[str] = []
    for item in found:
        lines.append(f"== {item.service}: {item.container} ({item.state})")
        lines += item.lines
    return lines or ["no container"]
