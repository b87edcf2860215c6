#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Tell what is on a host of a compose project."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rebuild_status
short_description: Services, releases, kept images, lock and disk of a compose project; its layers and logs
description:
  - Tells per service which containers run and which release made their image, the releases on the host, the images
    that are kept to go back to, who holds the lock, and what disk space is used.
  - Tells on request, per service, each instruction of its Dockerfile with the size of its layer and whether it would be
    reused now, and the end of the services' logs.
attributes:
  check_mode:
    support: full
    description: The module never changes anything.
  diff_mode:
    support: none
    description: There is nothing to compare.
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
  services:
    description: The services to look at; all if empty.
    type: list
    elements: str
    default: []
  build_args:
    description: Build arguments on top of those in the compose files; for O(show=layers).
    type: dict
    default: {}
  evidence:
    description: The least evidence that reuse may rest on; for O(show=layers).
    type: str
    choices: [recorded, observed, assumed]
    default: assumed
  state_dir:
    description: Where releases and records are kept on the host; only read.
    type: path
    default: /var/lib/offline-rebuild
  show:
    description: What to tell.
    type: list
    elements: str
    choices: [status, layers, logs]
    default: [status]
  lines:
    description: Lines of each container's log.
    type: int
    default: 100
  since:
    description: Only what was logged since then, a time or a span as C(docker logs --since) takes it.
    type: str
    default: ""
author:
  - offline-rebuild maintainers
"""

EXAMPLES = r"""
- name: See what runs and which release made it
  rebuild_status:
    project_src: /srv/llm-chat
    compose_files: [deployment/docker/docker-compose.yml]

- name: See the last lines of the backend's log
  rebuild_status:
    project_src: /srv/llm-chat
    services: [backend]
    show: [logs]
    lines: 50
    since: 10m
"""

RETURN = r"""
status:
  description: The status, in the schema of module_utils/offline_rebuild/status.py.
  returned: when O(show) has V(status)
  type: dict
layers:
  description: Per service that is built, the instructions of its target stage.
  returned: when O(show) has V(layers)
  type: list
  elements: dict
logs:
  description: Per container the end of its log, with the project's secrets masked.
  returned: when O(show) has V(logs)
  type: list
  elements: dict
lines:
  description: All that as lines for an operator.
  returned: always, unless the input is wrong
  type: list
  elements: str
error:
  description: The error's C(code), C(message), C(remedy), C(file) and C(line).
  returned: on failure
  type: dict
"""

from dataclasses import asdict
from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.offline_rebuild import render, status
from ansible.module_utils.offline_rebuild.errors import OfflineRebuildError, on_this_host
from ansible.module_utils.offline_rebuild.run import Request

ARGUMENT_SPEC: Dict[str, Any] = {
    "project_src": {"type": "path", "required": True},
    "compose_files": {"type": "list", "elements": "str", "default": []},
    "env_files": {"type": "list", "elements": "str", "default": []},
    "profiles": {"type": "list", "elements": "str", "default": []},
    "project_name": {"type": "str"},
    "services": {"type": "list", "elements": "str", "default": []},
    "build_args": {"type": "dict", "default": {}},
    "evidence": {"type": "str", "choices": ["recorded", "observed", "assumed"], "default": "assumed"},
    "state_dir": {"type": "path", "default": "/var/lib/offline-rebuild"},
    "show": {"type": "list", "elements": "str", "choices": ["status", "layers", "logs"], "default": ["status"]},
    "lines": {"type": "int", "default": 100},
    "since": {"type": "str", "default": ""},
}


def tell(request: Request, show: List[str], lines: int, since: str) -> Dict[str, Any]:
    """:returns: the module's result."""
    result: Dict[str, Any] = {"changed": False}
    text: List[str] = []
    if "status" in show:
        found = status.status(request)
        result["status"] = found.to_dict()
        text += render.status_lines(found)
    if "layers" in show:
        layers = status.layers(request)
        result["layers"] = [item.to_dict() for item in layers]
        text += ["", *render.layer_lines(layers)]
    if "logs" in show:
        logs = status.logs(request, lines, since)
        result["logs"] = [asdict(item) for item in logs]
        text += ["", *render.log_lines(logs)]
    result["lines"] = [render.printable(line) for line in (text if text[0] else text[1:])]
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    given = dict(module.params)
    show, lines, since = given.pop("show"), given.pop("lines"), given.pop("since")
    try:
        with on_this_host():
            result = tell(Request(check=True, **given), show, lines, since)
    except OfflineRebuildError as error:
        module.fail_json(msg=str(error), error=error.to_dict())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
