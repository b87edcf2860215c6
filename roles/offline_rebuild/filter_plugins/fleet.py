# SPDX-License-Identifier: Apache-2.0
"""Compares the hosts of a run, on the control node, by what compose_rebuild returned for each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Results = Mapping[str, Mapping[str, Any]]


def compare(results: Results) -> dict[str, list[str]]:
    """Say where the hosts differ that should not.

    :param results: host to the result of compose_rebuild; hosts without one (failed, not reached) do not count.
    :returns: ``images``: sentences on hosts where the same inputs, on the same ancestor, were assembled to another
        image, or that took another one than their builder made (neither is ever to be seen); ``trees``: sentences on
        hosts whose tree is not that of most.
    """
    return {"images": list(_images(results)), "trees": list(_trees(results))}


def _images(results: Results) -> Iterator[str]:
    groups: dict[tuple[str, ...], dict[tuple[str, ...], list[str]]] = defaultdict(lambda: defaultdict(list))
    for host, result in results.items():
        for made in (result or {}).get("images") or ():
            if made["way"] in ("assemble", "delta"):
                ancestor = made["ancestor_digest"] if made["way"] == "assemble" else ""  # a delta's hosts may differ
                same = (made["service"], made["inputs"], ancestor)
                groups[same][(made["config_digest"], *made["layers"])].append(host)
    for (service, *_), found in groups.items():
        if len(found) > 1:
            told = " and ".join(f"{_short(image[0])} on {', '.join(hosts)}" for image, hosts in found.items())
            yield f"{service}: the same tree and ancestor gave different images: {told}"


def _trees(results: Results) -> Iterator[str]:
    services: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for host, result in results.items():
        for planned in ((result or {}).get("plan") or {}).get("services") or ():
            if planned.get("inputs"):
                services[planned["service"]][planned["inputs"]].append(host)
    for service, trees in services.items():
        usual = max(trees.values(), key=len)  # the first among equals
        others = [host for hosts in trees.values() if hosts is not usual for host in hosts]
        if others:
            told = "most hosts'" if len(usual) > len(others) else f"the one on {', '.join(usual)}"
            yield f"{service}: the tree on {', '.join(others)} is not {told}"


def _short(digest: str) -> str:
    return digest.rpartition(":")[2][:12]


class FilterModule:
    """The filters of the role."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """:returns: the filters by name."""
        return {"fleet_compare": compare}
