#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Tell why a build failed on a host, and keep the last good state."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rebuild_debug
short_description: Why a build of a compose project failed, and the state before the failing instruction as an image
description:
  - Tells of the last failed build of a service the failing instruction with its line, the last lines of the log and
    where the whole log lies on the host.
  - Builds the instructions before it once more, from the build cache and with no network, and names the result
    C(<project>-<service>:offline-rebuild-debug), with the command that enters it. M(rebuild_prune) takes it away.
attributes:
  check_mode:
    support: full
    description: Says whether the image would be made; changes nothing.
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
    description: The services whose builds are meant; all if empty.
    type: list
    elements: str
    default: []
  release:
    description: The release whose build failed; the last one if empty.
    type: str
    default: ""
  build_args:
    description: Build arguments on top of those in the compose files, as they were given to the rebuild.
    type: dict
    default: {}
  evidence:
    description: As it was given to the rebuild.
    type: str
    choices: [recorded, observed, assumed]
    default: assumed
  modes:
    description: As it was given to the rebuild.
    type: str
    choices: [exact, image]
    default: exact
  state_dir:
    description: Where releases and records are kept on the host.
    type: path
    default: /var/lib/offline-rebuild
  operator:
    description: Who runs this, for the lock.
    type: str
    default: ""
  image:
    description: Whether the last good state is kept as an image.
    type: bool
    default: true
author:
  - offline-rebuild maintainers
"""

EXAMPLES = r"""
- name: See why the last build of the backend failed, and keep the state before it
  rebuild_debug:
    project_src: /srv/llm-chat
    compose_files: [deployment/docker/docker-compose.yml]
    services: [backend]
"""

RETURN = r"""
service:
  description: The service whose build failed.
  returned: success
  type: str
release:
  description: The release in which it failed.
  returned: success
  type: str
file:
  description: The Dockerfile; C(line) and C(text) of the instruction, V(0) and empty where the log does not tell it.
  returned: success
  type: str
line:
  description: See C(file).
  returned: success
  type: int
text:
  description: See C(file).
  returned: success
  type: str
log:
  description: Where the whole log lies on the host, its secrets masked.
  returned: success
  type: str
tail:
  description: The last lines of the log.
  returned: success
  type: list
  elements: str
image:
  description: The name of the last good state, empty where it is not made; C(why_not) says why.
  returned: success
  type: str
why_not:
  description: See C(image).
  returned: success
  type: str
command:
  description: The shell command that enters the image.
  returned: success
  type: str
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
from ansible.module_utils.offline_rebuild.debug import debug
from ansible.module_utils.offline_rebuild.errors import OfflineRebuildError, on_this_host
from ansible.module_utils.offline_rebuild.render import printable
from ansible.module_utils.offline_rebuild.run import Request

ARGUMENT_SPEC: Dict[str, Any] = {
    "project_src": {"type": "path", "required": True},
    "compose_files": {"type": "list", "elements": "str", "default": []},
    "env_files": {"type": "list", "elements": "str", "default": []},
    "profiles": {"type": "list", "elements": "str", "default": []},
    "project_name": {"type": "str"},
    "services": {"type": "list", "elements": "str", "default": []},
    "release": {"type": "str", "default": ""},
    "build_args": {"type": "dict", "default": {}},
    "evidence": {"type": "str", "choices": ["recorded", "observed", "assumed"], "default": "assumed"},
    "modes": {"type": "str", "choices": ["exact", "image"], "default": "exact"},
    "state_dir": {"type": "path", "default": "/var/lib/offline-rebuild"},
    "operator": {"type": "str", "default": ""},
    "image": {"type": "bool", "default": True},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    given = dict(module.params)
    wanted = given.pop("image")
    try:
        with on_this_host():
            found = debug(Request(check=module.check_mode, **given), wanted)
    except OfflineRebuildError as error:
        module.fail_json(msg=str(error), error=error.to_dict())
    module.exit_json(**found.to_dict(), lines=[printable(line) for line in found.lines()])


if __name__ == "__main__":
    main()
