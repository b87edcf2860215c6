"""What the ``npm ci`` of a RUN asks for, judged against a folder that is npm's own cache, by the lock file's hashes.

Layouts: package-lock.json version 2 and 3 (docs.npmjs.com/cli/configuring-npm/package-lock-json); cacache's content-v2,
``content-v2/ALGORITHM/ab/cd/rest of the hex digest`` (npm/cacache, lib/content/path.js).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import posixpath
from typing import Any, Dict, List, Mapping, Optional, Tuple

from .errors import OfflineRebuildError
from .pipneeds import Place
from .stage import State

__all__ = ["home_of", "npm_lacks", "npm_remedy", "npmrc", "npmrc_path"]

CACHE = "/dev/offline-rebuild/npm"
#: Settings in the environment that would come before those of the file; npm reads them in either case.
NPM_ENV = ("npm_config_cache", "npm_config_offline", "npm_config_userconfig", "npm_config_prefer_online")
_CPU = {"amd64": "x64", "arm64": "arm64", "arm": "arm", "386": "ia32"}
_MOST_NAMED = 5


def npmrc(existing: Optional[bytes]) -> bytes:
    """:returns: npm's settings: those of the user in the image, but everything comes from the cache (the last line of
    a key counts)."""
    ours = f"cache={CACHE}\noffline=true\naudit=false\nfund=false\nupdate-notifier=false\n"
    return (existing or b"").rstrip(b"\n") + (b"\n" if existing else b"") + ours.encode()


def npmrc_path(place: Place, state: State) -> Optional[str]:
    """:returns: the user's own settings file in the image; ``None`` if the folder is not known or not there."""
    home, reader = home_of(place, state), place.reader()
    if home is None or reader is None or place.top < 0:
        return None
    entry = reader.lookup(reader.resolve(home.strip("/"), place.top), place.top)
    return posixpath.join(home, ".npmrc") if entry is not None and entry.type == "dir" else None


def home_of(place: Place, state: State) -> Optional[str]:
    """:returns: the HOME that a RUN has: the environment's, else by the image's ``/etc/passwd``."""
    if state.env.get("HOME"):
        return state.env["HOME"]
    user = str(state.config.get("User") or "0").partition(":")[0]
    for line in (place.read("etc/passwd") or b"").decode("utf-8", "replace").splitlines():
        fields = line.split(":")
        if len(fields) == 7 and user in (fields[0], fields[2]):
            return fields[5]
    return None


def _document(place: Place, copied: Mapping[str, str], path: str) -> Optional[Dict[str, Any]]:
    try:
        with open(os.path.join(place.analyzer.context.given_root, copied[path]), encoding="utf-8") as stream:
            found = json.load(stream)
    except (KeyError, OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def npm_lacks(place: Place, cache: str) -> Tuple[List[str], str]:
    """What a cache lacks for a RUN with ``npm ci``, each in words; and how the lock file has changed.

    :param cache: npm's cache folder.
    """
    state, copied = place.look()
    folder = str(state.config.get("WorkingDir") or "/")
    lock = _document(place, copied, posixpath.join(folder, "package-lock.json"))
    package = _document(place, copied, posixpath.join(folder, "package.json"))
    if lock is None or not isinstance(lock.get("packages"), dict):
        return ["its package-lock.json (version 2 or 3) is not found in the build context"], ""
    packages: Dict[str, Any] = {k: v for k, v in lock["packages"].items() if isinstance(v, dict)}
    said = _disagreements(package or {}, packages.get("", {}))
    platform = place.analyzer.build.platform.split("/")
    lacking = [_title(name, entry) for name, entry in sorted(packages.items()) if _lacks(name, entry, cache, platform)]
    if lacking:
        more = f" and {len(lacking) - _MOST_NAMED} more" if len(lacking) > _MOST_NAMED else ""
        said.append(f"the npm cache {cache} has no {', '.join(lacking[:_MOST_NAMED])}{more}")
    return said, _changes(place, posixpath.join(folder, "package-lock.json"), packages)


def _title(path: str, entry: Mapping[str, Any]) -> str:
    return f"{entry.get('name') or path.rpartition('node_modules/')[2]}@{entry.get('version', '')}"


def _lacks(path: str, entry: Mapping[str, Any], cache: str, platform: List[str]) -> bool:
    """Whether npm would fetch a package and not find it. An optional one for other systems, it does not fetch."""
    if not path or entry.get("link") or not entry.get("integrity"):
        return False
    if entry.get("optional") and not (
        _suits(entry.get("os"), "linux") and _suits(entry.get("cpu"), _CPU.get(platform[1], platform[1]))
    ):
        return False
    return not any(os.path.isfile(os.path.join(cache, blob)) for blob in blobs(str(entry["integrity"])))


def _suits(allowed: Any, value: str) -> bool:
    names = [allowed] if isinstance(allowed, str) else list(allowed or [])
    wanted = [name for name in names if not str(name).startswith("!")]
    return f"!{value}" not in names and (not wanted or value in wanted)


def blobs(integrity: str) -> List[str]:
    """:returns: where a cache has what has this Subresource Integrity, of each of its hashes."""
    found: List[str] = []
    for part in integrity.split():
        kind, _, value = part.partition("?")[0].partition("-")
        try:
            text = base64.b64decode(value, validate=True).hex()
        except (binascii.Error, ValueError):
            continue
        found.append(f"_cacache/content-v2/{kind}/{text[:2]}/{text[2:4]}/{text[4:]}")
    return found


def _disagreements(package: Mapping[str, Any], root: Mapping[str, Any]) -> List[str]:
    """``npm ci`` refuses a lock file that does not hold what package.json asks for."""
    said = []
    for kind in ("dependencies", "devDependencies", "optionalDependencies"):
        wanted, locked = package.get(kind) or {}, root.get(kind) or {}
        names = [name for name in {**wanted, **locked} if wanted.get(name) != locked.get(name)]
        said += [f"package-lock.json disagrees with package.json about {name}" for name in names]
    return said


def _changes(place: Place, path: str, new: Mapping[str, Any]) -> str:
    """:returns: how the lock file differs from the one in the ancestor; empty where that has none."""
    alignment, reader = place.stage.alignment, place.reader()
    if alignment is None or reader is None:
        return ""
    try:
        text = reader.content(path.lstrip("/"), len(alignment.image.diff_ids) - 1)
        old = json.loads(text).get("packages") if text is not None else None
    except (OfflineRebuildError, ValueError, AttributeError):
        return ""
    if not isinstance(old, dict):
        return ""
    before = {name: str(entry.get("version", "")) for name, entry in old.items() if name}
    after = {name: str(entry.get("version", "")) for name, entry in new.items() if name}
    said = [f"+{_title(name, new[name])}" for name in after if name not in before]
    said += [
        f"{name.rpartition('node_modules/')[2]} {before[name]} -> {after[name]}"
        for name in after
        if name in before and before[name] != after[name]
    ]
    said += [f"-{_title(name, old[name])}" for name in before if name not in after]
    more = f" and {len(said) - _MOST_NAMED} more" if len(said) > _MOST_NAMED else ""
    return f"package-lock.json: {', '.join(said[:_MOST_NAMED])}{more}" if said else ""


def npm_remedy(place: Place, cache: str, disagrees: bool) -> str:
    """:returns: how to come by the packages."""
    platform = place.analyzer.build.platform.split("/")
    command = (
        f"npm ci --ignore-scripts --no-audit --os=linux --cpu={_CPU.get(platform[1], platform[1])} --cache npm-cache"
    )
    first = "npm install --package-lock-only && " if disagrees else ""
    where = f"bring npm-cache here as {cache}" if cache else "bring npm-cache here and set offline_rebuild_npm_cache"
    return f"on a connected machine, in a copy of the folder with package.json: {first}{command}; {where}"
