# SPDX-License-Identifier: Apache-2.0
"""Runs the module of the same name: sends it the images that other hosts made, and keeps off the screen what only the
report needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

#: Ansible prints no key of a result that begins so, and hands it to the callbacks.
DETAILS = "_ansible_offline_rebuild_details"


class ActionModule(ActionBase):
    """The action ``compose_rebuild``."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; of a failed result, put ``details`` where only callbacks see it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        sent = [dict(item) for item in arguments.get("sent") or ()]
        archives = sorted({str(item["archive"]) for item in sent if item.get("archive")})
        if archives and not self._task.check_mode:
            there = self._send(archives)
            arguments["sent"] = [{**item, "archive": there.get(str(item.get("archive")), "")} for item in sent]
            result["sent_bytes"] = sum(Path(path).stat().st_size for path in archives)
        try:
            result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)  # noqa: SLF001
        if "details" in result:
            result[DETAILS] = result.pop("details")
        return result

    def _send(self, archives: list[str]) -> dict[str, str]:
        """:returns: path here to path on the host, in the folder that Ansible makes there for a task."""
        folder = self._make_tmp_path()
        shell = self._connection._shell  # noqa: SLF001
        there = {path: shell.join_path(folder, Path(path).name) for path in archives}
        for path, remote in there.items():
            self._transfer_file(path, remote)
        self._fixup_perms2([folder, *there.values()], execute=False)
        return there
