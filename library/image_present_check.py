#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Tell which images a compose project needs and whether the host has them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_present_check
short_description: Check that every image which builds and services need is on the host
description:
  - Resolves C(FROM), C(COPY --from), C(RUN --mount=from), C(# syntax) and the compose files' C(image), after build
    arguments and platform.
  - Says for each whether it is present, recoverable from an image that is, of the wrong platform, or missing, with what
    needs it and the command that mends it.
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
    description: Build arguments on top of those in the compose files.
    type: dict
    default: {}
  state_dir:
    description: Where records are kept on the host; only read.
    type: path
    default: /var/lib/offline-rebuild
  fail_on_missing:
    description: Fail when an image is missing or of the wrong platform.
    type: bool
    default: false
author:
  - offline-rebuild maintainers
"""

EXAMPLES = r"""
- name: See which images are needed
  image_present_check:
    project_src: /srv/llm-chat
    compose_files: [deployment/docker/docker-compose.yml]
    fail_on_missing: true
"""

RETURN = r"""
images:
  description: The images, those in trouble first.
  returned: always, unless the input is wrong
  type: list
  elements: dict
  contains:
    name:
      description: The image's name after resolution.
      type: str
    platform:
      description: The platform that is needed.
      type: str
    status:
      description: V(present), V(recoverable), V(wrong_platform) or V(missing).
      type: str
    needed_by:
      description: Services and places that need it.
      type: list
      elements: str
    remedy:
      description: The command that mends it, empty where nothing is to be done.
      type: str
error:
  description: The error's C(code), C(message), C(remedy), C(file) and C(line).
  returned: on failure
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.offline_rebuild.errors import OfflineRebuildError
from ansible.module_utils.offline_rebuild.run import Request, survey

ARGUMENT_SPEC = {
    "project_src": {"type": "path", "required": True},
    "compose_files": {"type": "list", "elements": "str", "default": []},
    "env_files": {"type": "list", "elements": "str", "default": []},
    "profiles": {"type": "list", "elements": "str", "default": []},
    "project_name": {"type": "str"},
    "services": {"type": "list", "elements": "str", "default": []},
    "build_args": {"type": "dict", "default": {}},
    "state_dir": {"type": "path", "default": "/var/lib/offline-rebuild"},
    "fail_on_missing": {"type": "bool", "default": False},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    fail_on_missing = module.params.pop("fail_on_missing")
    try:
        images = [need.to_dict() for need in survey(Request(check=True, **module.params))]
    except OfflineRebuildError as error:
        module.fail_json(msg=str(error), error=error.to_dict())
    trouble = [image for image in images if image["remedy"]]
    msg = "; ".join(f"{i['name']} is {i['status']} ({', '.join(i['needed_by'])}): {i['remedy']}" for i in trouble)
    if trouble and fail_on_missing:
        module.fail_json(msg=msg, images=images)
    module.exit_json(changed=False, images=images, msg=msg or f"all {len(images)} images are here or recoverable")


if __name__ == "__main__":
    main()
