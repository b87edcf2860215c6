"""What RUNs install with no network: packages of a folder on the host, mounted into these RUNs and into nothing else.

The folder goes into an image of its own, with one layer and a name under :data:`graft.REGISTRY`: that works on every
engine and both image stores (a named build context does not on 20.10). In the derived Dockerfile, the RUNs that install
from it get mounts of that image: the packages below ``/dev``, which is the container's own file system in every RUN,
and the package manager's settings as one file in a directory that is there already. BuildKit takes the file away that
it makes for such a mount, so nothing of it is in the result: no file, no ENV, no ARG, no word of history.
"""

from __future__ import annotations

import configparser
import hashlib
import io
import os
import posixpath
import re
import tarfile
from dataclasses import dataclass
from typing import IO, Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple

from .errors import OfflineRebuildError
from .graft import REGISTRY, Carried, ImageDocument, encode, manifest_of
from .npmneeds import CACHE, NPM_ENV, npm_lacks, npm_remedy, npmrc, npmrc_path
from .pipneeds import Needs, Place, installed, pip_needs
from .stage import Step
from .wheels import lacking

__all__ = ["Sources", "Supply", "missing_in", "needs_network", "offer", "with_flags"]

#: RUNs that fetch from a network: package managers and downloads.
_NETWORK = re.compile(
    r"""(?:^|[\s;&|(/])(?:
      (?:python[\d.]*\s+-m\s+)?pip[\d.]*\s+(?:install|download|wheel)\b | uv\s+(?:pip\s+install|sync|add|run|tool)\b
    | poetry\s+(?:install|add|update)\b | pdm\s+(?:install|sync|add)\b | pipenv\s+(?:install|sync)\b
    | conda\s+(?:install|create|env)\b | mamba\s+(?:install|create|env)\b
    | npm\s+(?:ci|install|i|add|update)\b | npx\s | yarn(?:\s+(?:install|add)\b|\s*$) | pnpm\s+(?:install|i|add|fetch)\b
    | corepack\s | bun\s+install\b
    | apt(?:-get)?\s+(?:-\S+\s+)*(?:update|install|upgrade|dist-upgrade)\b | apk\s+(?:-\S+\s+)*(?:add|update|upgrade)\b
    | (?:dnf|yum|microdnf|zypper)\s+(?:-\S+\s+)*(?:install|update|upgrade)\b | pacman\s+-S
    | go\s+(?:mod\s+download|get|install)\b | cargo\s+(?:fetch|install)\b
    | gem\s+install\b | bundle\s+install\b | composer\s+(?:install|require|update)\b
    | curl\s | wget\s | git\s+clone\b
    )""",
    re.VERBOSE | re.MULTILINE,
)
_OFFLINE = re.compile(r"--no-index|--offline|--no-deps|--network[= ]none|localhost|127\.0\.0\.1")
#: What each source serves, of what :data:`_NETWORK` finds.
_PIP = re.compile(r"(?:python[\d.]*\s+-m\s+)?pip[\d.]*\s+install")
_NPM = re.compile(r"npm\s+(?:ci|install|i)")
_WHEELS = "/dev/offline-rebuild/wheels"
_PIP_CONF = "/etc/pip.conf"
#: Settings in the environment that would come before those of the file.
_PIP_ENV = ("PIP_CONFIG_FILE", "PIP_NO_INDEX", "PIP_FIND_LINKS")
_MISSES = re.compile(
    r"ERROR: ((?:Could not find a version that satisfies|No matching distribution found for|Hashes are required)[^\n]*"
    r"|THESE PACKAGES DO NOT MATCH THE HASHES|ResolutionImpossible)"
    r"|npm (?:error|ERR!) (request to \S+ failed: cache mode is[^\n]*)"
)
_PACKAGES = (".whl", ".tar.gz", ".zip", ".tar.bz2")


@dataclass(frozen=True)
class Sources:
    """The folders on the host that packages may be taken from; empty: none."""

    wheelhouse: str = ""
    npm_cache: str = ""

    @property
    def given(self) -> bool:
        """:returns: whether there is any."""
        return bool(self.wheelhouse or self.npm_cache)

    def check(self) -> None:
        """:raises OfflineRebuildError: ``wheelhouse-missing``, ``npm-cache-missing``."""
        if self.wheelhouse and not os.path.isdir(self.wheelhouse):
            raise OfflineRebuildError(
                "wheelhouse-missing",
                "the wheelhouse is not a folder on this host",
                "put the wheels there, or set offline_rebuild_wheelhouse to the folder that has them",
                file=self.wheelhouse,
            )
        if self.npm_cache and not os.path.isdir(os.path.join(self.npm_cache, "_cacache")):
            raise OfflineRebuildError(
                "npm-cache-missing",
                "it is no npm cache: there is no folder _cacache in it on this host",
                "put there what npm ci --cache made, or set offline_rebuild_npm_cache to the folder that has it",
                file=self.npm_cache,
            )

    def wheels(self) -> List[str]:
        """:returns: the names of the packages in the wheelhouse, sorted."""
        if not self.wheelhouse:
            return []
        names = (entry.name for entry in os.scandir(self.wheelhouse) if entry.is_file())
        return sorted(name for name in names if name.endswith(_PACKAGES))


def _text(step: Step) -> str:
    return "\n".join([step.instruction.text, *(d.content for d in step.instruction.heredocs)])


def needs_network(step: Step) -> bool:
    """:returns: whether a RUN is one that is known to need a network."""
    return step.kind == "run" and bool(_NETWORK.search(_text(step))) and not _OFFLINE.search(_text(step))


@dataclass(frozen=True)
class Supply:
    """The packages for the builds of one service.

    :param secrets: ids of the build secrets that the host gives.
    """

    sources: Sources
    secrets: FrozenSet[str] = frozenset()

    def refusal(self, place: Place) -> Tuple[str, str]:
        """Why a RUN that needs packages cannot have them from here, and the remedy; ``("", "")`` if it can."""
        wants = _wants(place.step)
        served = [(_PIP, self.sources.wheelhouse, "wheelhouse"), (_NPM, self.sources.npm_cache, "npm cache")]
        for found in wants:
            if not any(folder and pattern.fullmatch(found) for pattern, folder, _ in served):
                given = " and ".join(name for _, folder, name in served if folder)
                return f"the {given} does not serve {found}", ""
        for pattern, judge in ((_PIP, self._pip_refusal), (_NPM, self._npm_refusal)):
            if any(pattern.fullmatch(found) for found in wants):
                reason, remedy = judge(place)
                if reason:
                    return reason, remedy
        return "", ""

    def _pip_refusal(self, place: Place) -> Tuple[str, str]:
        state, _ = place.look()
        for taken in _PIP_ENV:
            if taken in state.env:
                return f"{taken} is set in the image and comes before the wheelhouse", f"take {taken} out"
        target = self._taken(place, _PIP_CONF) or _written(place, "pip.conf")
        if target:
            return target, "give pip no settings of its own on a host that has no network"
        needs = pip_needs(place)
        names = self.sources.wheels()
        lacks: List[str] = []
        if needs.python is not None:
            asked = (needs.requirements, self.sources.wheelhouse, names, needs.python)
            lacks = lacking(*asked)
            lacks = lacking(*asked, installed(place, needs)) if lacks else []  # reads more of the image
        if not names:
            lacks = [f"the wheelhouse {self.sources.wheelhouse} is empty"]
        if not lacks:
            return "", ""
        return _with_changes("; ".join(lacks), needs), _download(needs, self.sources.wheelhouse)

    def _npm_refusal(self, place: Place) -> Tuple[str, str]:
        state, copied = place.look()
        path = npmrc_path(place, state)
        if path is None:
            return "the home of its user is not known, where npm's settings have to be", ""
        for taken in state.env:
            if taken.lower() in NPM_ENV:
                return f"{taken} is set in the image and comes before the npm cache", f"take {taken} out"
        own = posixpath.join(str(state.config.get("WorkingDir") or "/"), ".npmrc")
        target = self._taken(place, path) or _written(place, ".npmrc")
        if target or own in copied:
            return target or f"the project has npm settings of its own ({copied[own]})", (
                "give npm no settings of its own on a host that has no network"
            )
        said, changed = npm_lacks(place, self.sources.npm_cache)
        if not said:
            return "", ""
        disagrees = any("disagrees" in one for one in said)
        listed = "; ".join(said)
        return f"{listed} ({changed})" if changed else listed, npm_remedy(place, self.sources.npm_cache, disagrees)

    def _taken(self, place: Place, path: str) -> str:
        """Who else puts settings where those for the packages have to be."""
        for mount in place.step.instruction.mounts:
            if posixpath.normpath(mount.target or "/run/secrets") != path:
                continue
            name = mount.fields.get("id") or posixpath.basename(mount.fields.get("source") or path)
            if mount.type != "secret" or name in self.secrets or mount.fields.get("required", "false") != "false":
                return f"the instruction mounts {path} itself"
        return ""

    def _settings(self, place: Place) -> List[Tuple[str, str, bytes]]:
        """:returns: the settings files of a RUN: name in the image of the packages, path in the RUN, content."""
        found: List[Tuple[str, str, bytes]] = []
        wants = _wants(place.step)
        if any(_PIP.fullmatch(one) for one in wants):
            conf = pip_conf(place.read(_PIP_CONF))
            found.append((_conf_name("pip", conf), _PIP_CONF, conf))
        if any(_NPM.fullmatch(one) for one in wants):
            path = npmrc_path(place, place.look()[0]) or "/root/.npmrc"
            conf = npmrc(place.read(path))
            found.append((_conf_name("npm", conf), path, conf))
        return found

    def flags(self, place: Place, name: str) -> List[str]:
        """:returns: the RUN's flags that give it the packages.

        :param name: of the image that :meth:`document` has made.
        """
        mounts: List[str] = []
        for conf, path, _ in self._settings(place):
            kind = "npm" if conf.startswith("npm") else "wheels"
            target = f"source=/{kind},target={_WHEELS if kind == 'wheels' else CACHE}"
            writable = ",rw" if kind == "npm" else ""  # npm writes to its cache; what it writes is thrown away
            mounts.append(f"--mount=type=bind,from={name},{target}{writable}")
            mounts.append(f"--mount=type=bind,from={name},source=/{conf},target={path}")
        return mounts

    def document(self, places: Sequence[Place], folder: str) -> ImageDocument:
        """The image that holds the packages.

        :param folder: where its layer is written.
        """
        files = {name: conf for place in places for name, _, conf in self._settings(place)}
        copied: Dict[str, str] = {}
        if any(name.startswith("pip") for name in files):
            copied.update((f"wheels/{n}", os.path.join(self.sources.wheelhouse, n)) for n in self.sources.wheels())
        if any(name.startswith("npm") for name in files):
            copied.update(_cache_files(self.sources.npm_cache))
        path = os.path.join(folder, "supply.tar")
        with open(path, "wb") as stream:
            _write(stream, files, copied)
        carried = Carried(_digest(path), os.path.getsize(path), path)
        analyzer = places[0].analyzer
        system, machine, variant = (analyzer.build.platform.split("/") + ["", ""])[:3]
        config = {"architecture": machine, "os": system, "config": {}, **({"variant": variant} if variant else {})}
        raw = encode({**config, "rootfs": {"type": "layers", "diff_ids": [carried.diff_id]}})
        layers = [
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": carried.diff_id,
                "size": carried.size,
            }
        ]
        manifest = manifest_of(raw, layers) if analyzer.store.info.store == "containerd" else None
        ref = f"{REGISTRY}/supply:{carried.diff_id.split(':')[1][:32]}"
        return ImageDocument(ref, raw, (carried.diff_id,), manifest, (carried,))


def offer(place: Place) -> Tuple[str, str]:
    """Without a wheelhouse: how it would help.

    :returns: what has changed of a RUN's packages, and the remedy; both may be empty.
    """
    wants = _wants(place.step)
    if all(_NPM.fullmatch(found) for found in wants):
        return "", npm_remedy(place, "", False)
    if not all(_PIP.fullmatch(found) for found in wants) or not place.cheap:
        return "", ""
    needs = pip_needs(place)
    return needs.changed, _download(needs, "") if needs.command else ""


def _with_changes(said: str, needs: Needs) -> str:
    return f"{said} ({needs.changed})" if needs.changed else said


def _download(needs: Needs, folder: str) -> str:
    """:returns: how to come by the packages."""
    if not needs.command:
        return "pip download what the instruction installs, in the same image on a connected machine, and bring it here"
    where = f"bring wheels here as {folder}" if folder else "bring wheels here and set offline_rebuild_wheelhouse to it"
    return f"on a connected machine, in the build context: {needs.command}; {where}"


def missing_in(log: str) -> str:
    """:returns: what pip or npm did not find, by the log of a build; empty if it failed for another reason."""
    found = _MISSES.search(log)
    if found is None:
        return ""
    said = " ".join((found.group(1) or found.group(2)).split())
    if said == "ResolutionImpossible":
        said = "; ".join(dict.fromkeys(re.findall(r"\S+ \S+ depends on [^\n]*\S", log))) or said
    return said


def _wants(step: Step) -> List[str]:
    """:returns: what a RUN calls that needs a network, in its order."""
    return [" ".join(found.group().lstrip(" \t\n;&|(/").split()) for found in _NETWORK.finditer(_text(step))]


def pip_conf(existing: Optional[bytes]) -> bytes:
    """:returns: pip's settings: those of the image, but packages come from the wheelhouse alone.

    :param existing: the image's own ``/etc/pip.conf``.
    """
    parser = configparser.RawConfigParser()  # what pip reads it with (pip/_internal/configuration.py)
    try:
        parser.read_string((existing or b"").decode("utf-8", "replace"))
    except configparser.Error:  # then pip refuses it, too
        parser = configparser.RawConfigParser()
    for section in parser.sections():
        for key in ("no-index", "no_index", "find-links", "find_links"):
            parser.remove_option(section, key)
    if not parser.has_section("global"):
        parser.add_section("global")
    for key, value in (("no-index", "true"), ("find-links", _WHEELS), ("disable-pip-version-check", "true")):
        parser.set("global", key, value)
    text = io.StringIO()
    parser.write(text)
    return text.getvalue().encode()


def _conf_name(kind: str, conf: bytes) -> str:
    return f"{kind}-{hashlib.sha256(conf).hexdigest()[:16]}.conf"


def with_flags(raw: str, flags: Sequence[str]) -> str:
    """:returns: the text of a RUN with more flags."""
    return re.sub(r"^(\s*RUN)\b", lambda found: " ".join([found.group(1), *flags]), raw, count=1, flags=re.IGNORECASE)


def _write(stream: IO[bytes], files: Mapping[str, bytes], copied: Mapping[str, str]) -> None:
    """Write a layer: the same bytes for the same names and contents."""
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        parents = {name[:index] for name in copied for index, char in enumerate(name) if char == "/"}
        for name in sorted(parents | {"wheels", "npm"}):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o777 if name.split("/")[0] == "npm" else 0o755
            archive.addfile(folder)
        for name, data in sorted(files.items()):
            archive.addfile(_member(name, len(data)), io.BytesIO(data))
        for name, path in sorted(copied.items()):
            with open(path, "rb") as handle:
                archive.addfile(_member(name, os.fstat(handle.fileno()).st_size), handle)


def _cache_files(cache: str) -> Dict[str, str]:
    """:returns: what is needed of npm's cache: name in the image of the packages to file."""
    found: Dict[str, str] = {}
    for part in ("content-v2", "index-v5"):
        for folder, _, names in os.walk(os.path.join(cache, "_cacache", part)):
            inner = os.path.relpath(folder, cache)
            found.update((f"npm/{inner}/{name}", os.path.join(folder, name)) for name in names)
    return found


def _written(place: Place, name: str) -> str:
    """Which instruction between the reuse point and the RUN writes settings, as far as its text says so."""
    for step in place.stage.timeline.steps[place.cut : place.number]:
        if name in _text(step):
            return f"line {step.instruction.line} writes {name}"
    return ""


def _member(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return "sha256:" + digest.hexdigest()
