# SPDX-License-Identifier: Apache-2.0
"""Writes the report of each run on the control node."""

from __future__ import annotations

DOCUMENTATION = r"""
name: offline_rebuild_report
type: notification
short_description: Writes a report of each run of offline-rebuild on the control node
description:
  - Listens to the plays that have the variable C(__offline_rebuild_report), and writes C(report.html), C(report.json)
    and C(report.md) when the run ends. It asks no host anything and prints one line.
  - Where to, the role's variable C(offline_rebuild_report_dir) says; empty switches it off.
requirements:
  - it is named in C(callbacks_enabled), as in the ansible.cfg of this project
"""

import atexit
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase
from ansible.template import Templar, trust_as_template

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from control_node import hadolint, render, report

#: The variable of a play that is listened to: ``all``, or ``failures`` for a play that only looks.
MARK = "__offline_rebuild_report"
DETAILS = "_ansible_offline_rebuild_details"
ACTIONS = ("compose_rebuild",)


class CallbackModule(CallbackBase):
    """Gathers what the hosts' results say and writes it once."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "offline_rebuild_report"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.run = report.Run("", started=time.time())
        self.play: Any = None
        self.mark = ""
        self.batch = 0
        self.folder = ""
        self.resolved = False
        self.written = False
        self.starts: dict[tuple[str, str], float] = {}

    # -- what Ansible tells -------------------------------------------------------------------------------------------

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Remember the playbook's name."""
        self.run.playbook = Path(str(playbook._file_name)).name  # noqa: SLF001
        self.run.check = bool(context.CLIARGS.get("check"))

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Begin to listen, or stop to."""
        self.play = play
        self.mark = str(play.get_vars().get(MARK) or "")
        if not self.mark:
            return
        if not self.run.id:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.run.started))
            self.run.id = f"{stamp}-{uuid.uuid4().hex[:6]}"
            atexit.register(self._broken_off, os.getpid())
        if self.mark == "all":
            self.batch += 1
        for name in play.get_variable_manager().get_vars(play=play).get("ansible_play_hosts_all") or ():
            self.run.hosts.setdefault(str(name), report.HostRun(str(name)))

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Remember when a task began on a host."""
        if self.mark:
            self._resolve(host, task)
            self.starts[host.get_name(), str(task._uuid)] = time.time()  # noqa: SLF001

    def v2_runner_on_ok(self, result: Any) -> None:
        """Keep the module's result."""
        if self.mark == "all" and result.task.action in ACTIONS:
            self._keep(result, "ok")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Keep the result of any task that ends a host's run."""
        if self.mark and not ignore_errors:
            self._keep(result, "failed")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Keep that a host did not answer."""
        if self.mark:
            self._keep(result, "unreachable")

    def v2_playbook_on_stats(self, stats: Any) -> None:  # noqa: ARG002
        """The end: write."""
        self._write()

    # -- the report ---------------------------------------------------------------------------------------------------

    def _keep(self, result: Any, status: str) -> None:
        now = time.time()
        name = result.host.get_name()
        values = dict(result.result)
        host = self.run.hosts.setdefault(name, report.HostRun(name))
        host.batch = self.batch
        host.began = self.starts.get((name, str(result.task._uuid)), now)  # noqa: SLF001
        host.ended = now
        host.status = status
        host.task = result.task.get_name()
        host.check = bool(result.task.check_mode)
        host.details = values.pop(DETAILS, None) or values.pop("details", None) or {}
        values.pop("invocation", None)
        host.result = values

    def _resolve(self, host: Any, task: Any) -> None:
        """Take the role's variables from the first of its tasks; all hosts of a run have the same."""
        if self.resolved or getattr(task, "_role", None) is None:
            return
        self.resolved = True
        manager = self.play.get_variable_manager()
        variables = manager.get_vars(play=self.play, host=host, task=task)
        templar = Templar(loader=manager._loader, variables=variables)  # noqa: SLF001

        def value(name: str) -> str:
            return str(templar.template(trust_as_template("{{ " + name + " | default('', true) }}")) or "")

        self.folder = value("offline_rebuild_report_dir")
        self.run.operator = value("__offline_rebuild_operator")
        self.run.change_id = value("offline_rebuild_change_id")

    def _broken_off(self, pid: int) -> None:
        """The run ended without an end: an interrupt, an internal error."""
        if os.getpid() == pid and not self.written:
            self.run.complete = False
            self._write()

    def _write(self) -> None:
        if self.written or not self.run.id or not self.folder:
            return
        self.written = True
        self.run.ended = time.time()
        texts: dict[str, str] = {}
        for host in self.run.hosts.values():
            texts.update(host.result.get("dockerfiles") or {})
        self.run.extra = hadolint.ask(texts)
        made = report.build(self.run)
        folder = ROOT / Path(self.folder).expanduser() / self.run.id
        try:
            folder.mkdir(mode=0o700, parents=True)
            for name, text in (
                ("report.json", render.to_json(made)),
                ("report.md", render.to_markdown(made)),
                ("report.html", render.to_html(made)),
            ):
                with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(text.encode("utf-8", "replace"))
        except OSError as error:
            self._display.warning(f"the report cannot be written: {error}")
            return
        self._display.display(f"Report: {folder / 'report.html'}")
