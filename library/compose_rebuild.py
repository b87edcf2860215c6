#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Rebuild the services of a compose project on an air-gapped host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: compose_rebuild
short_description: Rebuild what changed in a compose project, with no network
description:
  - Plans, per service, how far the imported images already hold what the source tree asks for.
  - Makes the images of the services that changed from the layers that are there, swaps these services only, checks
    their health and puts the previous images back if the checks fail.
  - Needs Docker Engine 20.10 or newer with the Compose plugin 2.20 or newer on the host, and nothing else.
attributes:
  check_mode:
    support: full
    description: Plans, and changes nothing at all on the host.
  diff_mode:
    support: full
    description: Shows per service the files that differ and the instruction where the build starts.
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
    description: Build arguments on top of those in the compose files, for every build.
    type: dict
    default: {}
  health_checks:
    description:
      - Checks that a release must pass besides the containers' own health checks.
      - Each has one of C(url), C(tcp) (C(HOST:PORT)) or C(command), and may have C(service), C(status), C(body) (a
        regular expression), C(timeout).
    type: list
    elements: dict
    default: []
  gate_timeout:
    description: Seconds until all checks must have passed.
    type: int
    default: 120
  pregate_services:
    description:
      - Services that are pre-gated (tried beside the old container first) although they write to a volume or use
        devices of the host.
    type: list
    elements: str
    default: []
  no_pregate_services:
    description: Services that are never pre-gated, such as those of which no second one may run even for a moment.
    type: list
    elements: str
    default: []
  rolling_services:
    description:
      - Services that may be swapped in a rolling way although other services can look up their address. Their clients
        must look the name up anew for each connection; nginx with a fixed C(proxy_pass) does so only once.
    type: list
    elements: str
    default: []
  evidence:
    description: The least evidence that reuse may rest on. V(recorded) refuses images that came with no record.
    type: str
    choices: [recorded, observed, assumed]
    default: assumed
  modes:
    description:
      - Whose file modes count. V(exact), the tree's.
      - With V(image), files and directories that the ancestor image holds where COPY puts them keep the mode that they
        have there; for trees that lost their modes on the way (FAT, zip, another umask).
    type: str
    choices: [exact, image]
    default: exact
  reuse:
    description:
      - V(exact) makes only what a full build would give.
      - With V(overlay), a service that cannot be made exact, since a RUN that needs a network would have to run again,
        gets its new sources laid over the image as it is, if nothing but sources differs. The plan names the RUNs that
        are not run again. Such an image is not exact and never counts as proof of anything.
    type: str
    choices: [exact, overlay]
    default: exact
  dependency_files:
    description:
      - Patterns of files, relative to the build context, that say what RUNs install; with O(reuse=overlay) none of them
        may have changed. Files such as C(requirements*.txt), C(package*.json) and C(go.mod) are known by name.
    type: list
    elements: str
    default: []
  overlay_run:
    description:
      - RUNs that run again on top of an overlay, with no network; parts of their texts, or line numbers.
    type: list
    elements: str
    default: []
  wheelhouse:
    description:
      - A folder on the host with Python packages (wheels). RUNs that have to install again with pip do so from there
        and from nowhere else; without it a service that needs that is blocked.
    type: path
    default: ""
  npm_cache:
    description:
      - A folder on the host that is npm's own cache, as C(npm ci --cache) makes it. RUNs that have to install again
        with npm do so from there and from nowhere else; without it a service that needs that is blocked.
    type: path
    default: ""
  state_dir:
    description: Where records, releases and caches are kept on the host.
    type: path
    default: /var/lib/offline-rebuild
  keep_releases:
    description: Number of releases to keep, with their images.
    type: int
    default: 3
  release:
    description: >-
      With O(action=rollback), the release to go back to, or V(initial) for the state before the oldest kept one; the
      one before the release that runs if empty.
    type: str
    default: ""
  change_id:
    description: The change request that this run belongs to; goes into the release.
    type: str
    default: ""
  operator:
    description: Who runs it; goes into the release.
    type: str
    default: ""
  run_time:
    description: Seconds since the epoch, given once by the controller for all hosts of the run; the host's clock if 0.
    type: int
    default: 0
  advise:
    description: Whether to look for what could be better in the Dockerfiles and build contexts; it costs time.
    type: bool
    default: false
  project_pushed:
    description: With O(action=preflight), the tree will be sent later, so that it is not looked at.
    type: bool
    default: false
  strategy:
    description:
      - V(each_host) makes the images on the host itself.
      - With V(build_once) and O(action=preflight), the result says what the host holds, so that the controller can let
        another host make them; what is blocked here is no error then.
    type: str
    choices: [each_host, build_once]
    default: each_host
  sent:
    description:
      - Images that another host made for this one, each with C(service), C(inputs), C(builder), C(ref),
        C(config_digest), C(layers) and C(archive). One is taken where the tree here asks for the same C(inputs).
    type: list
    elements: dict
    default: []
  make_services:
    description: With O(action=build), the services whose images are wanted.
    type: list
    elements: str
    default: []
  action:
    description:
      - V(rebuild); V(build) to make images for other hosts and swap nothing; V(prime) to record the untouched tree as
        what the images hold; V(rollback) to go back to a kept release, by image and by the compose configuration of
        then; V(preflight) to say whether a rebuild could be done, which changes nothing.
    type: str
    choices: [rebuild, build, prime, rollback, preflight]
    default: rebuild
author:
  - offline-rebuild maintainers
"""

EXAMPLES = r"""
- name: Rebuild what changed
  compose_rebuild:
    project_src: /srv/llm-chat
    compose_files: [deployment/docker/docker-compose.yml]

- name: Only the backend, and only on recorded evidence
  compose_rebuild:
    project_src: /srv/llm-chat
    compose_files: [deployment/docker/docker-compose.yml]
    services: [backend]
    evidence: recorded
    health_checks:
      - url: http://127.0.0.1:8000/api/health
        body: '"status": *"ok"'

- name: Back to the release before
  compose_rebuild:
    project_src: /srv/llm-chat
    compose_files: [deployment/docker/docker-compose.yml]
    action: rollback
"""

RETURN = r"""
plan:
  description: What was planned, in the schema of module_utils/offline_rebuild/plan.py.
  returned: always, unless the input is wrong
  type: dict
release:
  description: The release that was made, in the schema of module_utils/offline_rebuild/release.py.
  returned: when something changed
  type: dict
images:
  description:
    - Per service whose image was made its RV(images[].way), the digest RV(images[].inputs) of all that went in, the
      RV(images[].ancestor_digest), and the RV(images[].config_digest) and RV(images[].layers) of the image. Hosts that
      agree in the first three by C(assemble) have the same image.
  returned: when something changed
  type: list
  elements: dict
idle:
  description: That there is nothing to do here, neither by the plan nor left by an earlier run.
  returned: when O(action=preflight), where it is so
  type: bool
holdings:
  description: The layers that the host holds, in the schema of module_utils/offline_rebuild/delta.py.
  returned: when O(action=preflight) and O(strategy=build_once), and something is to be made
  type: dict
primed:
  description: Per service whether its tree is recorded, and why not.
  returned: when O(action=prime)
  type: list
  elements: dict
advice:
  description: What could be better, in the schema of module_utils/offline_rebuild/advice.py.
  returned: when O(advise=true)
  type: list
  elements: dict
dockerfiles:
  description: The Dockerfiles' texts by name, values that look like secrets masked, for other tools.
  returned: when O(advise=true), on success
  type: dict
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
from ansible.module_utils.offline_rebuild.run import Request, execute

ARGUMENT_SPEC = {
    "project_src": {"type": "path", "required": True},
    "compose_files": {"type": "list", "elements": "str", "default": []},
    "env_files": {"type": "list", "elements": "str", "default": []},
    "profiles": {"type": "list", "elements": "str", "default": []},
    "project_name": {"type": "str"},
    "services": {"type": "list", "elements": "str", "default": []},
    "build_args": {"type": "dict", "default": {}},
    "health_checks": {"type": "list", "elements": "dict", "default": []},
    "gate_timeout": {"type": "int", "default": 120},
    "pregate_services": {"type": "list", "elements": "str", "default": []},
    "no_pregate_services": {"type": "list", "elements": "str", "default": []},
    "rolling_services": {"type": "list", "elements": "str", "default": []},
    "evidence": {"type": "str", "choices": ["recorded", "observed", "assumed"], "default": "assumed"},
    "modes": {"type": "str", "choices": ["exact", "image"], "default": "exact"},
    "reuse": {"type": "str", "choices": ["exact", "overlay"], "default": "exact"},
    "dependency_files": {"type": "list", "elements": "str", "default": []},
    "overlay_run": {"type": "list", "elements": "str", "default": []},
    "wheelhouse": {"type": "path", "default": ""},
    "npm_cache": {"type": "path", "default": ""},
    "state_dir": {"type": "path", "default": "/var/lib/offline-rebuild"},
    "keep_releases": {"type": "int", "default": 3},
    "release": {"type": "str", "default": ""},
    "change_id": {"type": "str", "default": ""},
    "operator": {"type": "str", "default": ""},
    "run_time": {"type": "int", "default": 0},
    "advise": {"type": "bool", "default": False},
    "project_pushed": {"type": "bool", "default": False},
    "strategy": {"type": "str", "choices": ["each_host", "build_once"], "default": "each_host"},
    "sent": {"type": "list", "elements": "dict", "default": []},
    "make_services": {"type": "list", "elements": "str", "default": []},
    "action": {"type": "str", "choices": ["rebuild", "build", "prime", "rollback", "preflight"], "default": "rebuild"},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    try:
        outcome = execute(Request(check=module.check_mode, **module.params))
    except OfflineRebuildError as error:
        module.fail_json(msg=str(error), error=error.to_dict())
    result = outcome.to_dict()
    if module._diff and outcome.diff:
        result["diff"] = outcome.diff
    if outcome.failed:
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
