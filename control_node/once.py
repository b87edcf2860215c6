# SPDX-License-Identifier: Apache-2.0
"""Who makes which image for whom (``strategy: build_once``), decided from what the hosts' preflights said.

Hosts whose tree asks for the same inputs (instructions, build arguments, files, labels, base name, platform) form a
group, per service. A group has one builder; the others get what it made, less the layers that they have. Where
every host of a group can assemble the image from the same ancestor, nothing is sent: each makes the same image itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["batches", "expected", "plan_once", "receivers_of", "rollout_sizes", "sent_to", "stopped"]

Results = Mapping[str, Mapping[str, Any]]
Service = Mapping[str, Any]
Group = list[tuple[str, Service]]


def plan_once(results: Results, builder: str = "") -> dict[str, Any]:
    """Decide.

    :param results: host, in the order of the play, to the result of its preflight; one without a plan has none.
    :param builder: the host that makes what its group needs, where it can.
    :returns: ``builds``: host to its ``services`` and ``receivers`` (``hosts``, ``services``, ``holdings``);
        ``takes``: host to service to ``inputs`` and ``builder``; ``problems``: host to why it cannot be rebuilt.
    """
    builds: dict[str, dict[str, Any]] = {}
    takes: dict[str, dict[str, dict[str, str]]] = {}
    wanted: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (service, inputs), group in _groups(results).items():
        source = _source(group, builder)
        takers = [host for host, planned in group if planned["action"] in ("rebuild", "blocked")]
        if not source or takers == [source] or _each_for_itself(group, takers):
            continue
        builds.setdefault(source, {"services": [], "receivers": []})["services"].append(service)
        for host in takers:
            takes.setdefault(host, {})[service] = {"inputs": inputs, "builder": source}
            if host != source:
                wanted[source, host].append(service)
    for (source, host), services in wanted.items():
        _add_receiver(builds[source]["receivers"], host, services, results[host].get("holdings") or {})
    problems = {host: text for host, result in results.items() if (text := _problem(result, takes.get(host, {})))}
    return {"builds": builds, "takes": takes, "problems": problems}


def _services(result: Mapping[str, Any]) -> Sequence[Service]:
    found: Sequence[Service] = ((result or {}).get("plan") or {}).get("services") or ()
    return found


def _groups(results: Results) -> dict[tuple[str, str], Group]:
    """:returns: service and inputs to the hosts with their plans. The inputs hold the platform, too."""
    groups: dict[tuple[str, str], Group] = defaultdict(list)
    for host, result in results.items():
        for planned in _services(result):
            if planned.get("inputs") and planned.get("way") != "overlay":  # not exact: each host makes its own
                groups[planned["service"], planned["inputs"]].append((host, planned))
    return groups


def _source(group: Group, builder: str) -> str:
    """:returns: the named builder; else who has the image already; else the first that can make it."""
    able = {host: planned["action"] for host, planned in group if planned["action"] != "blocked"}
    has = [host for host, action in able.items() if action in ("unchanged", "restart")]
    return builder if builder in able else next(iter([*has, *able]), "")


def _each_for_itself(group: Group, takers: Sequence[str]) -> bool:
    plans = [planned for host, planned in group if host in takers]
    ancestors = {planned.get("ancestor_digest") for planned in plans}
    return not plans or (len(ancestors) == 1 and all(planned.get("way") == "assemble" for planned in plans))


def _add_receiver(receivers: list[dict[str, Any]], host: str, services: list[str], holdings: Mapping[str, Any]) -> None:
    for receiver in receivers:
        if receiver["services"] == services and receiver["holdings"] == holdings:
            receiver["hosts"].append(host)
            return
    receivers.append({"hosts": [host], "services": services, "holdings": holdings})


def _problem(result: Mapping[str, Any], takes: Mapping[str, Any]) -> str:
    blocked = [s for s in _services(result) if s["action"] == "blocked" and s["service"] not in takes]
    return "; ".join(f"{planned['service']} is blocked: {' '.join(planned['reasons'])}" for planned in blocked)


def sent_to(host: str, once: Mapping[str, Any], built: Results, deltas: Results) -> dict[str, Any]:
    """What a host is given.

    :param built: builder to the result of its build; ``deltas``: builder to that of its deltas.
    :returns: ``sent``: the option of compose_rebuild; ``missing``: builders that made nothing.
    """
    takes: Mapping[str, Mapping[str, str]] = once.get("takes", {}).get(host, {})
    made = {name: {i["service"]: i for i in (result or {}).get("images") or ()} for name, result in built.items()}
    sent, missing = [], []
    for service, take in takes.items():
        image = made.get(take["builder"], {}).get(service)
        if image is None:
            missing.append(take["builder"])
            continue
        keys = ("ref", "config_digest", "layers", "evidence", "assumed", "boundary")
        archive = "" if host == take["builder"] else _archive(host, image["ref"], deltas.get(take["builder"]) or {})
        sent.append({"service": service, **take, **{key: image.get(key) for key in keys}, "archive": archive})
    return {"sent": sent, "missing": sorted(set(missing))}


def _archive(host: str, ref: str, delta: Mapping[str, Any]) -> str:
    for archive in delta.get("archives") or ():
        if host in archive["hosts"] and ref in archive["refs"]:
            return str(archive["path"])
    return ""


def expected(host: str, once: Mapping[str, Any]) -> list[dict[str, str]]:
    """:returns: what a host would be given, for check mode: nothing was made."""
    return [{"service": service, **take} for service, take in once.get("takes", {}).get(host, {}).items()]


def receivers_of(host: str, once: Mapping[str, Any], built: Mapping[str, Any]) -> list[dict[str, Any]]:
    """:returns: the option ``receivers`` of image_delta on a builder."""
    refs = {image["service"]: image["ref"] for image in built.get("images") or ()}
    given: Sequence[Mapping[str, Any]] = once.get("builds", {}).get(host, {}).get("receivers") or ()
    return [
        {"hosts": r["hosts"], "images": [refs[s] for s in r["services"] if s in refs], "holdings": r["holdings"]}
        for r in given
    ]


# -- the rollout ------------------------------------------------------------------------------------------------------


def rollout_sizes(serial: Any, canary: int = 0) -> list[int | str]:
    """:returns: what Ansible's ``serial`` is given: the canaries first, then the operator's batches.

    :param serial: a number, a percentage, or a list of them; as text too, separated by commas.
    """
    given = serial.split(",") if isinstance(serial, str) else list(serial) if isinstance(serial, Sequence) else [serial]
    sizes: list[int | str] = [s if s.endswith("%") else int(s) for s in (str(item).strip() for item in given) if s]
    return [int(canary), *sizes] if int(canary) > 0 else sizes


def batches(hosts: Sequence[str], sizes: Sequence[int | str]) -> Iterator[list[str]]:
    """:returns: the batches that ``serial`` makes of the hosts: counts and percentages, the last of them again and
    again (Ansible, playbook_executor.py)."""
    rest = list(hosts)
    place = 0
    while rest:
        size = str(sizes[min(place, len(sizes) - 1)])
        count = int(int(size[:-1]) / 100 * len(hosts)) or 1 if size.endswith("%") else int(size)
        count = count if count > 0 else len(rest)
        yield rest[:count]
        rest, place = rest[count:], place + 1


def stopped(hosts: Sequence[str], failed: Sequence[str], sizes: Sequence[int | str], most: float) -> bool:
    """Whether a batch that is through has more failures than allowed.

    :param hosts: all of the play, in its order; ``failed``, those that were tried in vain.
    :param most: percent of a batch that may fail.
    """
    for batch in batches(hosts, sizes):
        bad = sum(host in failed for host in batch)
        if bad and 100.0 * bad / len(batch) > most:
            return True
    return False
