"""The plan of all hosts before any is touched: its digest, and what an operator is shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .report import hidden

__all__ = ["grouped", "plan_digest", "plan_text"]

_MOST_FILES = 10
#: Hosts with the same line that are all named.
_MOST_NAMES = 4


def grouped(lines: Mapping[str, str]) -> list[str]:
    """:returns: each line once, in the order of its first host: ``40 hosts (app1 ... app40): text``.

    :param lines: host to what is to be said of it.
    """
    groups: dict[str, list[str]] = {}
    for host, text in lines.items():
        groups.setdefault(text, []).append(host)
    return [f"{_named(hosts)}: {text}" for text, hosts in groups.items()]


def _named(hosts: Sequence[str]) -> str:
    if len(hosts) == 1:
        return hosts[0]
    names = ", ".join(hosts) if len(hosts) <= _MOST_NAMES else f"{hosts[0]} ... {hosts[-1]}"
    return f"{len(hosts)} hosts ({names})"


def plan_digest(plans: Mapping[str, Mapping[str, Any]]) -> str:
    """The digest of a plan for these hosts, by name.

    :param plans: each host's plan, in the schema of module_utils/offline_rebuild/plan.py.
    :returns: twelve hex digits; any difference in hosts, services, files, instructions or images gives others.
        Estimates do not count: they move with every release.
    """
    text = json.dumps(
        {host: _without_times(plan) for host, plan in plans.items()}, sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _without_times(plan: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in plan.items() if key not in ("time", "estimated")}
    services = [{k: v for k, v in service.items() if k != "times"} for service in plan.get("services") or ()]
    return {**kept, "services": services} if "services" in plan else kept


def plan_text(plans: Mapping[str, Mapping[str, Any]]) -> str:
    """:returns: the plan for an operator; hosts with the same plan are named together."""
    groups: dict[str, list[str]] = {}
    for host, plan in plans.items():
        groups.setdefault("\n".join(_lines(plan)), []).append(host)
    parts = [f"{len(hosts)} host(s): {', '.join(hosts)}\n{text}" for text, hosts in groups.items()]
    return hidden("\n".join([*parts, f"plan {plan_digest(plans)}"]))


def _lines(plan: Mapping[str, Any]) -> Sequence[str]:
    lines = []
    for service in plan.get("services") or ():
        way = f" by {service['way']}" if service.get("way") else ""
        lines.append(f"  {service.get('service')}: {service.get('action')}{way}")
        lines += [f"    reason: {reason}" for reason in service.get("reasons") or ()]
        files = [str(file.get("path")) for file in service.get("files") or ()]
        if files:
            more = f" and {len(files) - _MOST_FILES} more" if len(files) > _MOST_FILES else ""
            lines.append(f"    files: {', '.join(files[:_MOST_FILES])}{more}")
    return lines or ["  nothing to do"]
