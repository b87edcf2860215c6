#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Tell the digest of build contexts and what changed in them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: context_hash
short_description: Digest of build contexts, and what changed since a recorded manifest
description:
  - Takes the digest of each build context over what BuildKit sees of it, which is path, type, mode, content or link
    target and extended attributes of everything that the ignore file lets through; times and owners do not count.
  - C(<Dockerfile>.dockerignore) beside the Dockerfile replaces C(.dockerignore), as it does for C(docker build).
  - A stat index in O(state_dir) makes a second run cost little more than a walk of the tree. A file whose size, times,
    inode and mode are as before is not read again, unless it is so young that it may have changed unseen.
attributes:
  check_mode:
    support: full
    description: Nothing is changed in either mode; in check mode not even the stat index is written.
  diff_mode:
    support: none
    description: The changes are returned.
options:
  contexts:
    description: The build contexts.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: The context's directory on the host.
        type: path
        required: true
      dockerfile:
        description: The Dockerfile, absolute or relative to the context; it decides which ignore file counts.
        type: path
        default: Dockerfile
      name:
        description: A name for the results; the path if not given.
        type: str
      manifest:
        description: A recorded manifest on the host to compare with, as a release or a bundle holds it.
        type: path
  state_dir:
    description: Where the stat index is kept on the host.
    type: path
    default: /var/lib/offline-rebuild
  files:
    description: Return every path with its digest, too.
    type: bool
    default: false
author:
  - offline-rebuild maintainers
"""

EXAMPLES = r"""
- name: Take the digest of two contexts
  context_hash:
    contexts:
      - path: /srv/llm-chat/backend
      - path: /srv/llm-chat
        dockerfile: frontend/Dockerfile
        name: frontend
  register: contexts

- name: See what changed since the manifest of a release
  context_hash:
    contexts:
      - path: /srv/llm-chat/backend
        manifest: /var/lib/offline-rebuild/backend.manifest.json
"""

RETURN = r"""
contexts:
  description: The contexts, in the order given.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The name given, or the path.
      type: str
    path:
      description: The context's directory.
      type: str
    ignore_file:
      description: The ignore file that counts, empty for none.
      type: str
    digest:
      description: The context digest, C(sha256:...).
      type: str
    files:
      description: Number of regular files in it.
      type: int
    bytes:
      description: Their bytes.
      type: int
    read:
      description: How many of them were read because the stat index did not vouch for them.
      type: int
    changes:
      description: What differs from the manifest given; empty without one.
      type: list
      elements: dict
      contains:
        path:
          description: The path; bytes that are not UTF-8 as C(\\xNN).
          type: str
        kind:
          description: V(added), V(deleted) or V(changed).
          type: str
        what:
          description: Of a changed path, some of V(type), V(content), V(link), V(mode), V(xattrs).
          type: list
          elements: str
        note:
          description: Empty, C(only the mode differs) or C(only the line ends differ).
          type: str
    entries:
      description: Path, type, mode, size, link and digest of everything in the context.
      returned: when O(files) is true
      type: list
      elements: dict
error:
  description: The error's C(code), C(message), C(remedy), C(file) and C(line).
  returned: on failure
  type: dict
"""

import os
from typing import Any, Dict, List, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.offline_rebuild.context import Context, Manifest, diff
from ansible.module_utils.offline_rebuild.errors import OfflineRebuildError
from ansible.module_utils.offline_rebuild.ignorefile import load
from ansible.module_utils.offline_rebuild.statindex import StatIndex

ARGUMENT_SPEC: Dict[str, Any] = {
    "contexts": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "path": {"type": "path", "required": True},
            "dockerfile": {"type": "path", "default": "Dockerfile"},
            "name": {"type": "str"},
            "manifest": {"type": "path"},
        },
    },
    "state_dir": {"type": "path", "default": "/var/lib/offline-rebuild"},
    "files": {"type": "bool", "default": False},
}


def shown(path: Optional[str]) -> Optional[str]:
    """:returns: a path as JSON takes it: bytes that are not UTF-8 as ``\\xNN``."""
    if path is None:
        return None
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_manifest(path: str) -> Manifest:
    """:raises OfflineRebuildError: ``manifest-invalid``, ``manifest-unreadable``."""
    try:
        with open(path, encoding="utf-8") as stream:
            return Manifest.from_json(stream.read(), path)
    except (OSError, UnicodeDecodeError) as exc:
        raise OfflineRebuildError(
            "manifest-unreadable",
            f"The manifest cannot be read: {exc}.",
            remedy="Name a manifest that was recorded on this host or came with a bundle.",
            file=path,
        ) from exc


def list_entries(manifest: Manifest) -> List[Dict[str, Any]]:
    """:returns: the entries of a manifest, JSON-ready."""
    return [
        {
            "path": shown(path),
            "type": entry.type,
            "mode": f"{entry.mode:04o}",
            "size": entry.size,
            "link": shown(entry.link),
            "digest": entry.digest,
        }
        for path, entry in manifest.entries()
    ]


def examine(spec: Dict[str, Any], state_dir: str, files: bool, check: bool) -> Dict[str, Any]:
    """Take one context's digest and compare it.

    :param spec: one item of the module's ``contexts``.
    :returns: one item of the result's ``contexts``.
    """
    root = spec["path"]
    old = read_manifest(spec["manifest"]) if spec["manifest"] else None
    ignore = load(root, os.path.join(root, spec["dockerfile"]))
    context = Context(root, ignore, StatIndex.for_context(state_dir, root, ignore.file, readonly=check))
    manifest = context.manifest()
    changes = diff(old, manifest, context.only_line_ends) if old is not None else []
    result = {
        "name": spec["name"] or root,
        "path": root,
        "ignore_file": ignore.file,
        "digest": manifest.digest(),
        "files": manifest.files,
        "bytes": manifest.bytes,
        "read": context.files_read,
        "changes": [
            {"path": shown(change.path), "kind": change.kind, "what": list(change.what), "note": change.note}
            for change in changes
        ],
    }
    if files:
        result["entries"] = list_entries(manifest)
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    params = module.params
    try:
        results = [
            examine(spec, params["state_dir"], params["files"], module.check_mode) for spec in params["contexts"]
        ]
    except OfflineRebuildError as error:
        module.fail_json(msg=str(error), error=error.to_dict())
    changed = sum(len(result["changes"]) for result in results)
    module.exit_json(changed=False, contexts=results, msg=f"{len(results)} contexts, {changed} paths differ")


if __name__ == "__main__":
    main()
