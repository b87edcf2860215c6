#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Take away what runs left on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rebuild_prune
short_description: Take away what rebuilds of a compose project left on a host
description:
  - Removes names that a run which was cut off left, images kept for releases that are not kept any more, images without
    a name that a rebuild made and that failed or went back, what was kept for debugging, files in the state folder that
    nobody needs, and build cache that was unused for some days.
  - Never removes an image that a container uses or a release keeps, what belongs to another project, or a volume. It
    holds the project's lock.
attributes:
  check_mode:
    support: full
    description: Says what would go and how many bytes that frees; changes nothing.
  diff_mode:
    support: none
    description: The result says what goes.
options:
  project_src:
    description: The source tree on the host.
    type: path
    required: true
  compose_files:
    description: Compose files, relative to O(project_src); compose's own default names if empty.
    type: list
    elements: str
    default: []
  env_files:
    description: Files for compose's C(--env-file), relative to O(project_src).
    type: list
    elements: str
    default: []
  profiles:
    description: Compose profiles to enable.
    type: list
    elements: str
    default: []
  project_name:
    description: The compose project's name, if it is not what compose derives.
    type: str
  state_dir:
    description: Where releases and records are kept on the host.
    type: path
    default: /var/lib/offline-rebuild
  operator:
    description: Who runs this, for the lock and the audit log.
    type: str
    default: ""
  cache_days:
    description:
      - Days for which build cache has to have been unused; V(0) leaves it alone.
      - The build cache is the engine's and not of one project.
    type: int
    default: 30
author:
  - offline-rebuild maintainers
"""

EXAMPLES = r"""
- name: Take away what runs left, and build cache that nothing used for a week
  rebuild_prune:
    project_src: /srv/llm-chat
    compose_files: [deployment/docker/docker-compose.yml]
    cache_days: 7
"""

RETURN = r"""
items:
  description: What went, or would go, each with C(kind), C(name), C(image_id) and C(size), the bytes that it frees.
  returned: success
  type: list
  elements: dict
freed:
  description: Bytes in all; those of build cache to three digits, as the engine tells them.
  returned: success
  type: int
left:
  description: What was left alone, with the reason.
  returned: success
  type: list
  elements: str
lines:
  description: All that as lines for an operator.
  returned: success
  type: list
  elements: str
msg:
  description: One line for the operator.
  returned: always
  type: str
error:
  description: The error's C(code), C(message), C(remedy), C(file) and C(line).
  returned: on failure
  type: dict
"""

from typing import Any, Dict

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.offline_rebuild.errors import OfflineRebuildError, on_this_host
from ansible.module_utils.offline_rebuild.prune import prune
from ansible.module_utils.offline_rebuild.render import printable
from ansible.module_utils.offline_rebuild.run import Request

ARGUMENT_SPEC: Dict[str, Any] = {
    "project_src": {"type": "path", "required": True},
    "compose_files": {"type": "list", "elements": "str", "default": []},
    "env_files": {"type": "list", "elements": "str", "default": []},
    "profiles": {"type": "list", "elements": "str", "default": []},
    "project_name": {"type": "str"},
    "state_dir": {"type": "path", "default": "/var/lib/offline-rebuild"},
    "operator": {"type": "str", "default": ""},
    "cache_days": {"type": "int", "default": 30},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    given = dict(module.params)
    days = given.pop("cache_days")
    try:
        with on_this_host():
            found = prune(Request(check=module.check_mode, **given), days)
    except OfflineRebuildError as error:
        module.fail_json(msg=str(error), error=error.to_dict())
    module.exit_json(**found.to_dict(), lines=[printable(line) for line in found.lines()])


if __name__ == "__main__":
    main()
