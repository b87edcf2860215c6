"""What packages an image has, read from the files of its layers, as a CycloneDX document.

Known are dpkg's status, apk's database, Python's ``*.dist-info/METADATA`` and the ``package.json`` of what lies right
in a ``node_modules``. An rpm database is only named as not read. What no package manager put there is not in it.
"""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import IO, Any

__all__ = ["LayerFiles", "Package", "document", "packages", "scan"]

_MOST = 64 << 20
_WANTED = re.compile(
    r"(?:var/lib/dpkg/status(?:\.d/[^/]+)?|(?:usr/)?lib/apk/db/installed|(?:etc|usr/lib)/os-release"
    r"|(?:.*/)?[^/]+\.dist-info/METADATA|(?:.*/)?node_modules/(?:@[^/]+/)?[^/]+/package\.json)"
)
_RPM = re.compile(r"(?:var/lib/rpm|usr/lib/sysimage/rpm)/[^/]+")


@dataclass(frozen=True)
class Package:
    """A package; ``kind`` is the type of its purl: ``deb``, ``apk``, ``pypi`` or ``npm``."""

    kind: str
    name: str
    version: str
    arch: str = ""


@dataclass
class LayerFiles:
    """What one layer says of packages: paths to contents, and the paths that it takes away.

    :param gone: whiteouts; ``opaque`` are folders of which nothing below is seen.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    opaque: set[str] = field(default_factory=set)


def scan(stream: IO[bytes]) -> LayerFiles:
    """Read a layer, a tar, plain or compressed. Nothing but the files of interest is kept in memory.

    :raises tarfile.TarError: it is no tar.
    """
    found = LayerFiles()
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        headers: Any = archive
        for member in archive:
            headers.members = []  # tarfile keeps every one otherwise
            path = posixpath.normpath(member.name).lstrip("/")
            folder, name = posixpath.split(path)
            if name == ".wh..wh..opq":
                found.opaque.add(folder)
            elif name.startswith(".wh."):
                found.gone.add(posixpath.join(folder, name[4:]))
            elif member.isreg() and _RPM.fullmatch(path):
                found.files[path] = b""
            elif member.isreg() and member.size <= _MOST and _WANTED.fullmatch(path):
                source = archive.extractfile(member)
                found.files[path] = source.read() if source is not None else b""
    return found


def packages(layers: Iterable[LayerFiles]) -> tuple[list[Package], list[str], str]:
    """:returns: the packages of an image, sorted; what was found and not read; the distribution's id."""
    files: dict[str, bytes] = {}
    for layer in layers:
        hidden = layer.gone | layer.opaque
        below = {path for path in files if any(parent in hidden for parent in _parents(path))}
        for path in below | (layer.gone & set(files)):
            del files[path]
        files.update(layer.files)
    found: set[Package] = set()
    for path, content in files.items():
        found.update(_read(path, content.decode("utf-8", "replace")))
    unread = ["the rpm database"] if any(_RPM.fullmatch(path) for path in files) else []
    release = files.get("etc/os-release") or files.get("usr/lib/os-release") or b""
    distribution = re.search(r'^ID="?([a-z0-9._-]+)"?$', release.decode("utf-8", "replace"), re.MULTILINE)
    ordered = sorted(found, key=lambda package: (package.kind, package.name, package.version))
    return ordered, unread, distribution[1] if distribution else ""


def _parents(path: str) -> Iterable[str]:
    while path:
        path = posixpath.dirname(path)
        yield path


def _read(path: str, text: str) -> Iterable[Package]:
    if "dpkg/status" in path:
        return [
            Package("deb", block["Package"], block["Version"], block.get("Architecture", ""))
            for block in _blocks(text)
            if block.get("Package") and block.get("Version") and "deinstall" not in block.get("Status", "")
        ]
    if path.endswith("apk/db/installed"):
        blocks = _blocks(text)
        return [Package("apk", b["P"], b["V"], b.get("A", "")) for b in blocks if b.get("P") and b.get("V")]
    if path.endswith("/METADATA"):
        block = next(iter(_blocks(text)), {})
        name, version = block.get("Name", ""), block.get("Version", "")
        return [Package("pypi", re.sub(r"[-_.]+", "-", name).lower(), version)] if name and version else []
    return _npm(text) if path.endswith("/package.json") else []


def _npm(text: str) -> Sequence[Package]:
    try:
        data = json.loads(text)
        name, version = data["name"], data["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return [Package("npm", name, version)] if isinstance(name, str) and isinstance(version, str) and name else []


def _blocks(text: str) -> Iterable[dict[str, str]]:
    """Blocks of ``Key: value`` lines (apk: ``K:value``), parted by empty lines; continued lines are left out."""
    block: dict[str, str] = {}
    for line in [*text.splitlines(), ""]:
        if not line:
            if block:
                yield block
            block = {}
        elif not line[0].isspace():
            key, _, value = line.partition(":")
            block.setdefault(key, value.strip())


def document(
    name: str, config_digest: str, found: tuple[Sequence[Package], Sequence[str], str], created: int
) -> Mapping[str, Any]:
    """:returns: the CycloneDX 1.6 document of an image, JSON-ready; the same for the same image and time.

    :param found: what :func:`packages` gave.
    :param created: seconds since the epoch.
    """
    import uuid

    from cyclonedx.model import Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    listed, unread, distribution = found
    image = Component(type=ComponentType.CONTAINER, name=name, version=config_digest, bom_ref=config_digest)
    image.properties = [Property(name="offline-rebuild:not-read", value=what) for what in unread]
    bom = Bom(components=[_component(package, distribution) for package in listed])
    bom.metadata.component = image
    bom.metadata.timestamp = datetime.fromtimestamp(created, timezone.utc)
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, f"{name}@{config_digest}")
    bom.register_dependency(image, list(bom.components))
    made: Mapping[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    return made


def _component(package: Package, distribution: str) -> Any:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    namespace, _, name = package.name.rpartition("/") if package.kind == "npm" else ("", "", package.name)
    if package.kind in ("deb", "apk"):
        namespace = distribution or {"deb": "debian", "apk": "alpine"}[package.kind]
    qualifiers = {"arch": package.arch} if package.arch else None
    purl = PackageURL(package.kind, namespace or None, name, package.version, qualifiers)
    return Component(
        type=ComponentType.LIBRARY, name=package.name, version=package.version, purl=purl, bom_ref=purl.to_string()
    )
