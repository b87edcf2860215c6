# SPDX-License-Identifier: Apache-2.0
"""Runs the module of the same name, and keeps off the screen what only the report needs."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

#: Ansible prints no key of a result that begins so, and hands it to the callbacks.
DETAILS = "_ansible_offline_rebuild_details"


class ActionModule(ActionBase):
    """The action ``compose_rebuild``."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; of a failed result, put ``details`` where only callbacks see it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        result.update(self._execute_module(task_vars=task_vars))
        if "details" in result:
            result[DETAILS] = result.pop("details")
        return result
