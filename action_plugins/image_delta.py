# SPDX-License-Identifier: Apache-2.0
"""Runs the module of the same name and brings the archives to the control node.

Beside the module's options it takes ``fetch_to``, the folder here. The paths in the result are those of the copies.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

#: Seconds after which the archives of a run that did not come to its end are taken away.
OLD = 86400


def _forget_old(folder: Path) -> None:
    for run in folder.iterdir() if folder.is_dir() else ():
        if run.stat().st_mtime < time.time() - OLD:
            shutil.rmtree(run, ignore_errors=True)


class ActionModule(ActionBase):
    """The action ``image_delta``."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module in a folder that the login may read, and fetch what it wrote."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        run = Path(str(arguments.pop("fetch_to")))
        target = run / str((task_vars or {}).get("inventory_hostname"))
        try:
            if not self._task.check_mode:
                _forget_old(run.parent)
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir(mode=0o700, parents=True)
                arguments["folder"] = self._make_tmp_path()
            else:
                arguments["folder"] = "/"
            result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
            for archive in result.get("archives") or ():
                here = target / Path(archive["path"]).name
                self._connection.fetch_file(archive["path"], str(here))
                archive["path"] = str(here)
        except OSError as error:
            result.update(failed=True, msg=f"{target}: {error.strerror} [host-refused] Remedy: make room there")
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)  # noqa: SLF001
        return result
