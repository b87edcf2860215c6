# SPDX-License-Identifier: Apache-2.0
"""What the role decides on the control node before a host is asked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from control_node.confirm import grouped, plan_digest, plan_text
from control_node.once import expected, not_taken, plan_once, receivers_of, rollout_sizes, sent_to, stopped
from control_node.window import refusal


class FilterModule:
    """The filters of the role."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name them."""
        return {
            "change_refusal": refusal,
            "once_expected": expected,
            "once_forget": not_taken,
            "once_plan": plan_once,
            "once_receivers": receivers_of,
            "once_sent": sent_to,
            "grouped_hosts": grouped,
            "plan_digest": plan_digest,
            "plan_text": plan_text,
            "rollout_sizes": rollout_sizes,
            "rollout_stopped": stopped,
        }
