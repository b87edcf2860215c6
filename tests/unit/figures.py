"""Figures that tests print and keep: results/<name>.json."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

ENGINES = ("bookworm", "trixie", "testing")
STORES = ("classic", "containerd")
RESULTS = Path(__file__).resolve().parents[2] / "results"


def record(name: str, **figures: float | str) -> None:
    """Print ``figures`` and merge them into ``results/<name>.json``; other keys of the file stay.

    :param name: the file's name without ``.json``.
    """
    _merge(name, lambda _known: figures)
    print(f"{name}: " + ", ".join(f"{key}={value}" for key, value in figures.items()))


def record_combination(name: str, engine: str, store: str, **counts: int) -> None:
    """Record counts of one engine and image store: ``<key>_<engine>_<store>``, and ``<key>``: the sum over all."""

    def summed(known: dict[str, Any]) -> dict[str, Any]:
        own = {f"{key}_{engine}_{store}": value for key, value in counts.items()}
        all_of = {**known, **own}
        pairs = list(product(ENGINES, STORES))
        return {**own, **{key: sum(all_of.get(f"{key}_{e}_{s}", 0) for e, s in pairs) for key in counts}}

    _merge(name, summed)
    print(f"{name} on {engine} {store}: " + ", ".join(f"{key}={value}" for key, value in counts.items()))


def _merge(name: str, figures_of: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    with (RESULTS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            known = json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            known = {}
        known.update(figures_of(known))
        part = path.with_suffix(".part")
        part.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", "utf-8")
        os.replace(part, path)
