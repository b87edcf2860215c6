# SPDX-License-Identifier: Apache-2.0
"""Runs the module of the same name: says first what can be said without asking the host, sends the images that other
hosts made, and keeps off the screen what only the report needs.

Beside the module's options it takes ``control``: ``role``, the path of the role whose variables are to be right;
``refusal`` and ``unmade``, why the run may not be or cannot be; ``only``, to say that and no more; ``looked``, what a
look at this host found in the same run: where that was nothing to do, the host is not asked again.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

#: The run's time, the same for all of its hosts: Ansible loads this file once, in the process of which those that work
#: for a host are copies.
RUN_TIME = int(time.time())
#: Ansible prints no key of a result that begins so, and hands it to the callbacks.
DETAILS = "_ansible_offline_rebuild_details"


class ActionModule(ActionBase):
    """The action ``compose_rebuild``."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; of a failed result, put ``details`` where only callbacks see it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        control = dict(arguments.pop("control", None) or {})
        why_not = self._wrong(control, task_vars or {}) or control.get("refusal") or control.get("unmade")
        if why_not or control.get("only"):
            return {**result, "failed": True, "msg": str(why_not)} if why_not else {**result, "changed": False}
        looked = dict(control.get("looked") or {})
        if looked.pop("idle", False):
            return {**result, **looked, "changed": False, "msg": "nothing changed"}
        arguments["run_time"] = arguments.get("run_time") or RUN_TIME
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

    def _wrong(self, control: dict[str, Any], task_vars: dict[str, Any]) -> str:
        """:returns: what is wrong with the role's variables. The playbooks switch Ansible's own validation off, since a
        failure of it prints the whole specification, once a host."""
        if not control.get("role"):
            return ""
        text = (Path(str(control["role"])) / "meta" / "argument_specs.yml").read_text(encoding="utf-8")
        spec = yaml.safe_load(text)["argument_specs"]["main"]["options"]
        given = self._templar.template({name: task_vars[name] for name in spec if name in task_vars})
        errors = ArgumentSpecValidator(spec).validate(given).error_messages
        told = "Remedy: mend the variable; README.md lists them all"
        return f"{'; '.join(errors)} [variable-invalid] {told}" if errors else ""

    def _send(self, archives: list[str]) -> dict[str, str]:
        """:returns: path here to path on the host, in the folder that Ansible makes there for a task."""
        folder = self._make_tmp_path()
        shell = self._connection._shell  # noqa: SLF001
        there = {path: shell.join_path(folder, Path(path).name) for path in archives}
        for path, remote in there.items():
            self._transfer_file(path, remote)
        self._fixup_perms2([folder, *there.values()], execute=False)
        return there
