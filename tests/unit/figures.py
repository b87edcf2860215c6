"""Figures that tests print and keep: results/<name>.json."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "results"


def record(name: str, **figures: float | str) -> None:
    """Print ``figures`` and merge them into ``results/<name>.json``; other keys of the file stay.

    :param name: the file's name without ``.json``.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    with (RESULTS / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            known = json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            known = {}
        known.update(figures)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", "utf-8")
        os.replace(part, path)
    print(f"{name}: " + ", ".join(f"{key}={value}" for key, value in figures.items()))
