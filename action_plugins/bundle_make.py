# SPDX-License-Identifier: Apache-2.0
"""Makes a bundle on the connected side. The arguments are the fields of MakeRequest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from control_node.actions import answered
from control_node.bundle_make import MakeRequest, make


class ActionModule(ActionBase):
    """The action ``bundle_make``."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Make it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        request = MakeRequest(check=bool(self._task.check_mode), **self._task.args)
        result.update(answered(lambda: make(request)))
        return result
