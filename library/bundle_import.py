#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Take in what a bundle brings to an air-gapped host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_import
short_description: Say what a host lacks of a bundle, and take in what was sent
description:
  - With O(action=ask), says what of a bundle is on the host, in one call. The action plugin of the same name then
    makes, on the control node, an archive of what is lacking.
  - With O(action=take), loads that archive, compares what the engine has then, and keeps the records of how the images
    were made and the lists of what their layers hold.
  - It is called by C(playbooks/import.yml), which verifies the bundle first.
attributes:
  check_mode:
    support: full
    description: Says what would be loaded, and changes nothing on the host.
  diff_mode:
    support: none
    description: There is no text that would differ.
options:
  bundle:
    description: What C(bundle_verify) returned of the bundle.
    type: dict
    required: true
  archive:
    description: With O(action=take), the image archive on the host; none if empty.
    type: path
    default: ""
  evidence:
    description: With O(action=take), the archive of records and lists on the host; none if empty.
    type: path
    default: ""
  allow_older:
    description: Whether a bundle may be taken that is older than the last one of its project on this host.
    type: bool
    default: false
  state_dir:
    description: Where records and caches are kept on the host.
    type: path
    default: /var/lib/offline-rebuild
  action:
    description: V(ask) or V(take).
    type: str
    choices: [ask, take]
    default: ask
author:
  - offline-rebuild maintainers
"""

EXAMPLES = r"""
- name: See what the host lacks
  bundle_import:
    bundle: "{{ verified.bundle }}"
  register: lacks
"""

RETURN = r"""
send:
  description: With O(action=ask), the files on the control node to send, by C(archive) and C(evidence).
  returned: success of O(action=ask)
  type: dict
images:
  description: With O(action=ask), per image that is lacking its C(name), C(layers), C(carried) and C(bytes).
  returned: success of O(action=ask)
  type: list
  elements: dict
records:
  description: With O(action=take), number of records that are new.
  returned: success of O(action=take)
  type: int
lists:
  description: With O(action=take), number of files of evidence that are new.
  returned: success of O(action=take)
  type: int
msg:
  description: One line for the operator.
  returned: always
  type: str
error:
  description: The error's C(code), C(message), C(remedy), C(file) and C(line).
  returned: on failure
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.offline_rebuild.bundled import BundleRequest, execute
from ansible.module_utils.offline_rebuild.errors import OfflineRebuildError

ARGUMENT_SPEC = {
    "bundle": {"type": "dict", "required": True},
    "archive": {"type": "path", "default": ""},
    "evidence": {"type": "path", "default": ""},
    "allow_older": {"type": "bool", "default": False},
    "state_dir": {"type": "path", "default": "/var/lib/offline-rebuild"},
    "action": {"type": "str", "choices": ["ask", "take"], "default": "ask"},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    try:
        result = execute(BundleRequest(check=module.check_mode, **module.params))
    except OfflineRebuildError as error:
        module.fail_json(msg=str(error), error=error.to_dict())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
