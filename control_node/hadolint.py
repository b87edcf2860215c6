"""What hadolint says of Dockerfiles, where it is installed on the control node."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

__all__ = ["ask"]

_TIMEOUT = 30.0


def ask(texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """Ask hadolint about each Dockerfile.

    :param texts: name to text.
    :returns: advice in the form of module_utils/offline_rebuild/advice.py; nothing where there is no hadolint, or where
        it cannot read a file (it refuses a heredoc of COPY).
    """
    binary = shutil.which("hadolint")
    if binary is None:
        return []
    found: list[dict[str, Any]] = []
    for name, source in sorted(texts.items()):
        try:
            done = subprocess.run(
                (binary, "--no-fail", "--format", "json", "-"),
                input=source.encode("utf-8", "surrogateescape"),
                capture_output=True,
                timeout=_TIMEOUT,
                check=False,
            )
            answer = json.loads(done.stdout or b"[]")
        except (OSError, subprocess.TimeoutExpired, ValueError):
            continue
        for one in answer:
            code = str(one.get("code") or "")
            if code.startswith(("DL", "SC")) and code != "DL1000":
                place = {"file": name, "line": int(one.get("line") or 0), "code": code}
                found.append(
                    {**place, "text": str(one.get("message") or ""), "fix": "", "size": 0, "source": "hadolint"}
                )
    return found
