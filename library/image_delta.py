#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Write images for other hosts, without the layers that these have."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_delta
short_description: Write images of this host for others, without the layers that these have
description:
  - Writes one archive per distinct set of missing layers. Plain C(docker load) takes it, on both image stores.
  - Layers are streamed from the engine, none is held in memory. An archive is compressed by gzip where that pays.
attributes:
  check_mode:
    support: full
    description: Writes nothing.
options:
  receivers:
    description:
      - What is wanted, each with C(hosts), C(images) (names here) and C(holdings), as RV(compose_rebuild.holdings) of
        these hosts says.
    type: list
    elements: dict
    required: true
  folder:
    description: Where to write; the archives get its owner.
    type: path
    required: true
  forget:
    description: Names that are taken away when the archives are written.
    type: list
    elements: str
    default: []
  state_dir:
    description: Where caches are kept on the host.
    type: path
    default: /var/lib/offline-rebuild
author:
  - offline-rebuild maintainers
"""

EXAMPLES = r"""
- name: Write what the other hosts lack
  image_delta:
    folder: /var/tmp/deltas
    receivers:
      - hosts: [app2, app3]
        images: [llm-chat-frontend:latest]
        holdings: "{{ hostvars.app2.looked.holdings }}"
"""

RETURN = r"""
archives:
  description: Per archive its C(path), the C(hosts) that it is for, its C(images), C(layer_bytes) and C(size).
  returned: success
  type: list
  elements: dict
error:
  description: The error's C(code), C(message), C(remedy), C(file) and C(line).
  returned: on failure
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.offline_rebuild.delta import DeltaRequest, make_for
from ansible.module_utils.offline_rebuild.errors import OfflineRebuildError

ARGUMENT_SPEC = {
    "receivers": {"type": "list", "elements": "dict", "required": True},
    "folder": {"type": "path", "required": True},
    "forget": {"type": "list", "elements": "str", "default": []},
    "state_dir": {"type": "path", "default": "/var/lib/offline-rebuild"},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    if module.check_mode:
        module.exit_json(changed=bool(module.params["receivers"]), archives=[])
    try:
        archives = make_for(DeltaRequest(**module.params))
    except OfflineRebuildError as error:
        module.fail_json(msg=str(error), error=error.to_dict())
    module.exit_json(changed=bool(archives), archives=archives)


if __name__ == "__main__":
    main()
