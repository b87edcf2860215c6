#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Load image archives on an air-gapped host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_import
short_description: Load image archives, and record what the images hold
description:
  - Loads archives of C(docker save) whose images are not there yet, and compares what the engine has then with what the
    archive says.
  - Reads what COPY and ADD wrote into the images and keeps that list, so that no later plan has to read it.
  - Everything is read before the first archive is loaded. An archive that is damaged, incomplete or for another
    platform stops the run with nothing loaded.
attributes:
  check_mode:
    support: full
    description: Says what would be loaded, and changes nothing on the host.
  diff_mode:
    support: none
    description: There is no text that would differ.
options:
  archives:
    description: The archives, plain or compressed by gzip, bzip2 or xz.
    type: list
    elements: path
    required: true
  known:
    description: What O(action=index) returned elsewhere, for archives that are not on this host yet.
    type: list
    elements: dict
    default: []
  state_dir:
    description: Where records and caches are kept on the host.
    type: path
    default: /var/lib/offline-rebuild
  action:
    description: V(import), or V(index) to say what is in the archives without an engine.
    type: str
    choices: [import, index]
    default: import
author:
  - offline-rebuild maintainers
"""

EXAMPLES = r"""
- name: Load what the stick brought
  image_import:
    archives: [/media/stick/images.tar.gz]
"""

RETURN = r"""
archives:
  description:
    - Per archive its C(path), its C(status) (C(present), C(loaded), or C(load) in check mode) and its C(images).
  returned: success
  type: list
  elements: dict
recorded:
  description: Number of layers whose list was not kept before.
  returned: success of O(action=import)
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
from ansible.module_utils.offline_rebuild.errors import OfflineRebuildError
from ansible.module_utils.offline_rebuild.importer import ImportRequest, import_archives

ARGUMENT_SPEC = {
    "archives": {"type": "list", "elements": "path", "required": True},
    "known": {"type": "list", "elements": "dict", "default": []},
    "state_dir": {"type": "path", "default": "/var/lib/offline-rebuild"},
    "action": {"type": "str", "choices": ["import", "index"], "default": "import"},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    try:
        result = import_archives(ImportRequest(check=module.check_mode, **module.params))
    except OfflineRebuildError as error:
        module.fail_json(msg=str(error), error=error.to_dict())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
