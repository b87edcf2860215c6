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
from .pipneeds import Needs, Place, pip_needs
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
_WHEELS = "/dev/offline-rebuild/wheels"
_PIP_CONF = "/etc/pip.conf"
#: Settings in the environment that would come before those of the file.
_PIP_ENV = ("PIP_CONFIG_FILE", "PIP_NO_INDEX", "PIP_FIND_LINKS")
_PIP_MISSES = re.compile(
    r"ERROR: ((?:Could not find a version that satisfies|No matching distribution found for|Hashes are required)[^\n]*"
    r"|THESE PACKAGES DO NOT MATCH THE HASHES|ResolutionImpossible)"
)
_PACKAGES = (".whl", ".tar.gz", ".zip", ".tar.bz2")


@dataclass(frozen=True)
class Sources:
    """The folders on the host that packages may be taken from; empty: none."""

    wheelhouse: str = ""

    @property
    def given(self) -> bool:
        """:returns: whether there is any."""
        return bool(self.wheelhouse)

    def check(self) -> None:
        """:raises OfflineRebuildError: ``wheelhouse-missing``."""
        if self.wheelhouse and not os.path.isdir(self.wheelhouse):
            raise OfflineRebuildError(
                "wheelhouse-missing",
                "the wheelhouse is not a folder on this host",
                "put the wheels there, or set offline_rebuild_wheelhouse to the folder that has them",
                file=self.wheelhouse,
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
        others = [found for found in _wants(place.step) if not _PIP.fullmatch(found)]
        if others:
            return f"a wheelhouse does not serve {others[0]}", ""
        state, _ = place.look()
        for taken in _PIP_ENV:
            if taken in state.env:
                return f"{taken} is set in the image and comes before the wheelhouse", f"take {taken} out"
        target = self._taken(place)
        if target:
            return target, "give pip no settings of its own on a host that has no network"
        needs = pip_needs(place)
        names = self.sources.wheels()
        lacks = lacking(needs.requirements, self.sources.wheelhouse, names, needs.python) if needs.python else []
        if not names:
            lacks = [f"the wheelhouse {self.sources.wheelhouse} is empty"]
        if not lacks:
            return "", ""
        return _with_changes("; ".join(lacks), needs), _download(needs, self.sources.wheelhouse)

    def _taken(self, place: Place) -> str:
        """Who else puts pip's settings where the wheelhouse's have to be."""
        for mount in place.step.instruction.mounts:
            if posixpath.normpath(mount.target or "/run/secrets") != _PIP_CONF:
                continue
            name = mount.fields.get("id") or posixpath.basename(mount.fields.get("source") or _PIP_CONF)
            if mount.type != "secret" or name in self.secrets or mount.fields.get("required", "false") != "false":
                return f"the instruction mounts {_PIP_CONF} itself"
        for step in place.stage.timeline.steps[place.cut : place.number]:
            if "pip.conf" in _text(step):
                return f"line {step.instruction.line} writes pip's settings"
        return ""

    def flags(self, place: Place, name: str) -> List[str]:
        """:returns: the RUN's flags that give it the packages.

        :param name: of the image that :meth:`document` has made.
        """
        conf = pip_conf(place.read(_PIP_CONF))
        return [
            f"--mount=type=bind,from={name},source=/wheels,target={_WHEELS}",
            f"--mount=type=bind,from={name},source=/{_conf_name(conf)},target={_PIP_CONF}",
        ]

    def document(self, places: Sequence[Place], folder: str) -> ImageDocument:
        """The image that holds the packages.

        :param folder: where its layer is written.
        """
        files: Dict[str, bytes] = {}
        for place in places:
            conf = pip_conf(place.read(_PIP_CONF))
            files[_conf_name(conf)] = conf
        path = os.path.join(folder, "supply.tar")
        with open(path, "wb") as stream:
            _write(
                stream, files, {f"wheels/{n}": os.path.join(self.sources.wheelhouse, n) for n in self.sources.wheels()}
            )
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
    if not all(_PIP.fullmatch(found) for found in _wants(place.step)):
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
    """:returns: what pip did not find, by the log of a build that failed; empty if it failed for another reason."""
    found = _PIP_MISSES.search(log)
    if found is None:
        return ""
    said = " ".join(found.group(1).split())
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


def _conf_name(conf: bytes) -> str:
    return f"pip-{hashlib.sha256(conf).hexdigest()[:16]}.conf"


def with_flags(raw: str, flags: Sequence[str]) -> str:
    """:returns: the text of a RUN with more flags."""
    return re.sub(r"^(\s*RUN)\b", lambda found: " ".join([found.group(1), *flags]), raw, count=1, flags=re.IGNORECASE)


def _write(stream: IO[bytes], files: Mapping[str, bytes], copied: Mapping[str, str]) -> None:
    """Write a layer: the same bytes for the same names and contents."""
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        folder = tarfile.TarInfo("wheels")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        for name, data in sorted(files.items()):
            archive.addfile(_member(name, len(data)), io.BytesIO(data))
        for name, path in sorted(copied.items()):
            with open(path, "rb") as handle:
                archive.addfile(_member(name, os.fstat(handle.fileno()).st_size), handle)


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
