# SPDX-License-Identifier: Apache-2.0
"""Runs the module of the same name; with ``action=ask``, makes what has to be sent to the host then."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from control_node.actions import answered
from control_node.bundle_read import open_bundle
from control_node.bundle_send import lacking, pack, report
from module_utils.offline_rebuild.errors import OfflineRebuildError

#: Arguments that the module does not know: the verified bundle on the control node, and a folder for archives there.
OWN = ("path", "index_sha256", "folder")


class ActionModule(ActionBase):
    """The action ``bundle_import``."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the host, and of what it lacks make the files to send; or let it take in what was sent."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = {key: value for key, value in self._task.args.items() if key not in OWN}
        answer = self._execute_module(module_args=args, task_vars=task_vars)
        if answer.get("failed") or args.get("action", "ask") != "ask" or "holdings" not in answer:
            result.update(answer)
            return result
        host = str((task_vars or {}).get("inventory_hostname") or "")
        result.update(answered(lambda: self._lacking(answer), host))
        return result

    def _lacking(self, answer: dict[str, Any]) -> dict[str, Any]:
        given = self._task.args
        bundle = open_bundle(given["path"], unsigned=True)  # it was verified: it must be the same still
        if bundle.index_sha256 != given["index_sha256"]:
            raise OfflineRebuildError(
                "bundle-invalid", "the bundle has changed since it was verified", "run again", str(given["path"])
            )
        lack = lacking(bundle.index, answer)
        rows, told = report(lack)
        wanted = bool(told) or answer["imported"] != bundle.index.id
        check = bool(self._task.check_mode)
        send = pack(bundle, lack, Path(given["folder"])) if wanted and not check else {}
        words = told or ("no more than its name" if wanted else "")
        return {
            "changed": wanted and check,
            "wanted": wanted,
            "send": send,
            "images": rows,
            "msg": f"{'would take' if check else 'lacks'}: {words}" if wanted else "all of the bundle is there",
        }
