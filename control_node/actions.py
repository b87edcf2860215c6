"""What action plugins share: errors as results, and a folder for what one run makes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from module_utils.offline_rebuild.errors import OfflineRebuildError, of_system

__all__ = ["answered", "run_folder"]

ROOT = Path(__file__).resolve().parents[1]


def answered(work: Callable[[], dict[str, Any]], host: str = "") -> dict[str, Any]:
    """:returns: what the work gives; of an error, a failed result as the modules have it."""
    try:
        return work()
    except OfflineRebuildError as error:
        known = error
    except OSError as error:
        known = of_system(error)
    known.host = host or known.host
    return {"failed": True, "msg": str(known), "error": known.to_dict()}


def run_folder(fresh: bool = False) -> Path:
    """The folder of this run of ansible-playbook; those of runs that are gone are removed.

    :param fresh: it must be empty.
    """
    parent, run = ROOT / ".cache" / "bundles", os.getppid()  # actions run in processes that Ansible forks
    for folder in parent.glob("[0-9]*"):
        if not Path("/proc", folder.name).exists() or (fresh and folder.name == str(run)):
            shutil.rmtree(folder, ignore_errors=True)
    return parent / str(run)
