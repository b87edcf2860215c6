# SPDX-License-Identifier: Apache-2.0
"""Verifies a bundle on the control node: signature, sizes, digests, images. No host is asked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from control_node.actions import answered, run_folder
from control_node.bundle_read import open_bundle
from control_node.bundle_send import check_images, summary


class ActionModule(ActionBase):
    """The action ``bundle_verify``."""

    _VALID_ARGS = frozenset({"path", "allowed_signers", "unsigned"})
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Give what hosts are asked about (``bundle``), the index's digest, the signer and a folder for archives."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        result.update(answered(self._verify))
        return result

    def _verify(self) -> dict[str, Any]:
        given = self._task.args
        bundle = open_bundle(given["path"], str(given.get("allowed_signers") or ""), bool(given.get("unsigned")))
        for part in bundle.index.parts:
            bundle.prove(part.path)
        check_images(bundle)
        signed = f"signed by {bundle.signer}" if bundle.signer else "its signature was not checked"
        return {
            "changed": False,
            "msg": f"bundle {bundle.index.id} of project {bundle.index.project}: {signed}",
            "bundle": summary(bundle.index),
            "index_sha256": bundle.index_sha256,
            "signer": bundle.signer,
            "folder": str(run_folder(fresh=True)),
        }
