"""The report of a run, as a value: from what Ansible's callbacks tell, host by host, to what docs/report.md describes.

Pure: no file, no clock, no Ansible. Secrets are masked on the hosts, by their values; here once more, by their names
(``NAME=value``, ``"name": "value"``, passwords in URLs), since messages of other tools come along.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from module_utils.offline_rebuild.advice import Advice, merge
from module_utils.offline_rebuild.release import is_secret_name, mask

__all__ = ["PHASES", "SCHEMA", "STATES", "HostRun", "Run", "build", "hidden"]

SCHEMA = 1
#: The states of a host with the words that say them, the gravest first.
STATES: Mapping[str, str] = {
    "failed": "failed",
    "rolled_back": "rolled back",
    "unreachable": "not reachable",
    "blocked": "blocked",
    "not_reached": "not reached",
    "refused": "refused",
    "planned": "would change",
    "done": "changed",
    "unchanged": "nothing to do",
}
#: States in which a run did not do what it was asked for.
BAD = ("failed", "rolled_back", "unreachable", "blocked", "not_reached", "refused")
#: The phases of the picture, with the names that the hosts' timings have for them.
PHASES: Sequence[tuple[str, Sequence[str]]] = (
    ("plan", ("plan",)),
    ("make", ("making", "make")),
    ("pregate", ("pregate",)),
    ("swap", ("swap",)),
    ("gate", ("gate",)),
    ("rollback", ("rollback swap", "rollback gate")),
)
MOST_FILES = 200
MOST_LINES = 200
#: Codes of refusals that come from the control node.
REFUSALS = (
    "outside-window",
    "window-invalid",
    "change-id-missing",
    "variable-invalid",
    "plan-not-confirmed",
    "plan-stale",
)
#: A name, its sign, and (looked ahead at: it may hold the next pair) its value.
_PAIR = re.compile(r"""(["']?[\w.-]*\w["']?)\s*[=:]\s*(?=("[^"]*"|'[^']*'|[^\s,;"'<>]+))""")
_CODE = re.compile(r"\[([a-z]+(?:-[a-z]+)+)\]")


@dataclass
class HostRun:
    """What happened on one host.

    :param batch: number of its batch, from 1; 0 before any task ran there.
    :param began: epoch seconds of the task that worked on the host; 0.0 if none did.
    :param status: ``ok``, ``failed``, ``unreachable``, or ``""`` where nothing was heard.
    :param result: the result of ``compose_rebuild``, or of the task that failed.
    :param check: whether it was only a plan.
    """

    name: str
    batch: int = 0
    began: float = 0.0
    ended: float = 0.0
    status: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""
    check: bool = False


@dataclass
class Run:
    """One run of a playbook.

    :param id: the folder's name, ``<UTC time>-<six hex digits>``.
    :param hosts: in the order of the play.
    :param check: whether the run was one of check mode.
    :param complete: false where the run was broken off.
    :param extra: advice of other tools, as mappings like the modules'.
    """

    id: str
    playbook: str = ""
    started: float = 0.0
    ended: float = 0.0
    check: bool = False
    complete: bool = True
    operator: str = ""
    change_id: str = ""
    hosts: dict[str, HostRun] = field(default_factory=dict)
    extra: Sequence[Mapping[str, Any]] = ()


def hidden(text: str) -> str:
    """:returns: the text with values of what is named like a secret, and passwords in URLs, as ``***``."""
    parts: list[str] = []
    at = 0
    for found in _PAIR.finditer(text) if "=" in text or ":" in text else ():
        begin, end = found.span(2)
        if begin < at or not is_secret_name(found[1].strip("\"'")):
            continue
        quote = text[begin] if text[begin] in "\"'" else ""
        parts += [text[at:begin], quote, "***", quote]
        at = end
    return str(mask("".join(parts) + text[at:]))


def _clean(value: Any) -> Any:
    """:returns: JSON-ready, every text masked."""
    if isinstance(value, str):
        return hidden(value)
    if isinstance(value, Mapping):
        return {
            str(key): "***" if isinstance(item, str) and item and is_secret_name(str(key)) else _clean(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value


def build(run: Run) -> dict[str, Any]:
    """:returns: the report, in the schema of docs/report.md, JSON-ready, secrets masked."""
    hosts = [_host(host) for host in run.hosts.values()]
    groups = _grouped(hosts)
    counts = Counter(host["state"] for host in hosts)
    outcome = next((state for state in STATES if counts.get(state)), "unchanged")
    summary = ", ".join(f"{counts[state]} {word}" for state, word in STATES.items() if counts.get(state))
    releases = sorted({host["release"] for host in hosts if host["release"] and host["state"] == "done"})
    report = {
        "schema": SCHEMA,
        "kind": "plan" if run.check else "run",
        "id": run.id,
        "playbook": run.playbook,
        "started": _stamp(run.started),
        "ended": _stamp(run.ended),
        "seconds": round(max(0.0, run.ended - run.started), 1),
        "complete": run.complete,
        "operator": run.operator,
        "change_id": run.change_id,
        "projects": sorted({group["project"] for group in groups if group["project"]}),
        "outcome": outcome,
        "ok": run.complete and outcome not in BAD,
        "summary": summary or "no host",
        "counts": {state: counts[state] for state in STATES if counts.get(state)},
        "hosts": [_row(host, run.started) for host in hosts],
        "groups": groups,
        "advice": _advice(run),
        "rollback": [
            {"release": release, "hosts": names, "command": _rollback(names)}
            for release in releases
            if (names := [h["host"] for h in hosts if h["release"] == release and h["state"] == "done"])
        ],
    }
    cleaned: dict[str, Any] = _clean(report)
    return cleaned


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds else ""


def _rollback(hosts: Sequence[str]) -> str:
    return f"ansible-playbook playbooks/rollback.yml -l {shlex.quote(','.join(hosts))}"


def _host(host: HostRun) -> dict[str, Any]:
    result, details = host.result, host.details
    plan = result.get("plan") or details.get("plan") or {}
    release = {**(result.get("release") or {}), **(details.get("release") or {})}
    timings = {**(result.get("timings") or {}), **(details.get("timings") or {}), **(release.get("timings") or {})}
    error = result.get("error") or {}
    message = str(result.get("msg") or "")
    code = str(error.get("code") or "") or next(iter(_CODE.findall(message)), "")
    text, _, remedy = message.partition(" Remedy: ")
    return {
        "host": host.name,
        "batch": host.batch,
        "began": host.began,
        "ended": host.ended,
        "state": _state(host, plan, release, code),
        "code": code if host.status == "failed" else "",
        "message": (str(error.get("message") or "") or text) if host.status in ("failed", "unreachable") else text,
        "remedy": str(error.get("remedy") or "") or remedy,
        "place": f"{error.get('file') or ''}" + (f":{error['line']}" if error.get("line") else ""),
        "task": host.task,
        "release": str(release.get("id") or ""),
        "phases": [
            (name, sum(float(timings[key]) for key in keys if key in timings))
            for name, keys in _phase_keys(timings)
            if any(key in timings for key in keys)
        ],
        "estimate": _estimate(plan),
        "project": str(plan.get("project") or release.get("project") or ""),
        "engine": str(plan.get("engine") or ""),
        "store": str(plan.get("store") or ""),
        "services": _services(plan, release),
        "gate": _gate(release.get("gate")),
        "rollback_gate": _gate(release.get("rollback_gate")),
        "logs": list(_logs(release.get("evidence") or ())),
    }


def _estimate(plan: Mapping[str, Any]) -> dict[str, Any] | None:
    """How long it was to take, from the host's own past; ``None`` where nothing was to be done or no one asked."""
    if not plan.get("estimated"):
        return None
    services = {
        service["service"]: dict(service["times"]) for service in plan.get("services") or () if service.get("times")
    }
    return {"all": plan.get("time"), "services": services}


def _phase_keys(timings: Mapping[str, Any]) -> Iterable[tuple[str, Sequence[str]]]:
    """The first of two names for the same phase that is there; all of a rollback's."""
    for name, keys in PHASES:
        yield name, keys if name == "rollback" else next(([key] for key in keys if key in timings), ())


def _state(host: HostRun, plan: Mapping[str, Any], release: Mapping[str, Any], code: str) -> str:
    if not host.status:
        return "not_reached"
    if host.status == "unreachable":
        return "unreachable"
    if host.status == "failed":
        if release.get("state") == "rolled_back":
            return "rolled_back"
        if any(service.get("action") == "blocked" for service in plan.get("services") or ()):
            return "blocked"
        return "refused" if code in REFUSALS else "failed"
    if not host.result.get("changed"):
        return "unchanged"
    return "planned" if host.check else "done"


def _services(plan: Mapping[str, Any], release: Mapping[str, Any]) -> list[dict[str, Any]]:
    made = release.get("services") or {}
    found = []
    for service in plan.get("services") or ():
        record = made.get(service.get("service")) or {}
        start = service.get("start") or {}
        files = service.get("files") or ()
        found.append(
            {
                "service": service.get("service"),
                "image": service.get("image"),
                "action": service.get("action"),
                "way": service.get("way") or "",
                "reasons": list(service.get("reasons") or ()),
                "start": f"{service.get('dockerfile')}:{start['line']} {start.get('text')}" if start else "",
                "evidence": service.get("evidence") or "",
                "assumed": list(service.get("assumed") or ()),
                "before": record.get("before") or service.get("image_before") or "",
                "after": record.get("after") or "",
                "file_count": len(files),
                "files": [
                    {
                        "path": item.get("path"),
                        "kind": item.get("kind"),
                        "what": ", ".join(item.get("what") or ()),
                        "note": item.get("note") or "",
                    }
                    for item in files[:MOST_FILES]
                ],
            }
        )
    planned = {service["service"] for service in found}
    for service_name, record in made.items():  # services that use a rebuilt image without building it
        if service_name not in planned:
            found.append(
                {
                    **dict.fromkeys(("way", "start", "evidence"), ""),
                    **{name: [] for name in ("reasons", "assumed", "files")},
                    "file_count": 0,
                    "service": service_name,
                    "image": record.get("image"),
                    "action": record.get("action"),
                    "before": record.get("before") or "",
                    "after": record.get("after") or "",
                }
            )
    return found


def _gate(gate: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if not gate:
        return []
    rows = [
        {"what": f"service {name}", "ok": one.get("verdict") == "ok", "detail": str(one.get("detail") or "")}
        for name, one in (gate.get("services") or {}).items()
    ]
    rows += [
        {"what": str(one.get("name")), "ok": bool(one.get("ok")), "detail": str(one.get("detail") or "")}
        for one in gate.get("checks") or ()
    ]
    return rows


def _logs(evidence: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    for entry in evidence:
        phase = str(entry.get("phase") or "")
        if entry.get("compose"):
            yield {"title": f"docker compose up ({phase})", "lines": list(map(str, entry["compose"]))[-MOST_LINES:]}
        if phase == "build":
            lines = list(map(str, entry.get("logs") or ()))[-MOST_LINES:]
            yield {
                "title": f"build of {entry.get('service')}; all of it on the host: {entry.get('log')}",
                "lines": lines,
            }
        if entry.get("container"):
            state = entry.get("state") or {}
            health = [str(one.get("output") or "").rstrip() for one in entry.get("health_log") or ()]
            lines = list(map(str, entry.get("logs") or ()))[-MOST_LINES:]
            lines += [f"health check: {text}" for text in health if text]
            said = f", exit code {state.get('ExitCode')}" if state.get("Status") == "exited" else ""
            yield {"title": f"{entry['container']} ({phase}; {state.get('Status')}{said})", "lines": lines}


#: What makes two hosts' stories the same: all but the host itself, its times and its release.
_SAME = (
    "state", "code", "message", "remedy", "place", "project", "engine", "store", "services", "gate", "rollback_gate",
    "logs",
)  # fmt: skip


def _without_host(value: Any, name: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return name.sub("HOST", value)
    if isinstance(value, Mapping):
        return {key: _without_host(item, name) for key, item in value.items()}
    return [_without_host(item, name) for item in value] if isinstance(value, (list, tuple)) else value


def _grouped(hosts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The hosts' stories, each told once, with the hosts that share it. Each host gets its group's number."""
    found: dict[str, dict[str, Any]] = {}
    for host in hosts:
        story = {key: host[key] for key in _SAME}
        name = re.compile(rf"(?<![\w.-]){re.escape(host['host'])}(?![\w.-])")
        key = json.dumps(_without_host(story, name), sort_keys=True)
        group = found.setdefault(key, {"number": len(found) + 1, "hosts": [], **story})
        group["hosts"].append(host["host"])
        host["group"] = group["number"]
    order = list(STATES)
    made = sorted(found.values(), key=lambda group: (order.index(group["state"]), group["number"]))
    numbers = {group["number"]: place for place, group in enumerate(made, 1)}
    for host in hosts:
        host["group"] = numbers[host["group"]]
    for group in made:
        group["number"] = numbers[group["number"]]
    return made


def _row(host: Mapping[str, Any], started: float) -> dict[str, Any]:
    at = max(0.0, host["began"] - started) if host["began"] else 0.0
    phases = []
    place = at
    for name, seconds in host["phases"]:
        phases.append({"name": name, "start": round(place, 2), "seconds": round(seconds, 2)})
        place += seconds
    total = max(0.0, host["ended"] - host["began"]) if host["began"] else 0.0
    kept = {key: host[key] for key in ("host", "state", "group", "batch", "release", "message", "estimate")}
    return {**kept, "start": round(at, 2), "seconds": round(total, 2), "phases": phases}


def _advice(run: Run) -> list[dict[str, Any]]:
    """Each piece once, with the number of hosts that it came from (0: a tool on the control node said it)."""
    counts: Counter[Advice] = Counter()
    for host in run.hosts.values():
        counts.update(_piece(one) for one in host.result.get("advice") or ())
    merged = merge(counts, map(_piece, run.extra))
    return [{**one.to_dict(), "hosts": counts[one]} for one in merged]


def _piece(one: Mapping[str, Any]) -> Advice:
    return Advice(**{name: one[name] for name in Advice.__dataclass_fields__})
