"""The base images of the corpus: a static busybox and a few files. Made on the connected host.

The names stand under an address that refuses at once, so that no engine waits for a registry.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tests.hosts import Host

from .corpus import CORPUS, REGISTRY

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "busybox"
#: Built from tests/corpus/_bases/<name>.Dockerfile, in this order; ``imported`` by ``docker import``.
NAMES = ("base", "base2", "present", "present2", "onbuild", "onbuild-present", "tools", "tools-present")
PRESENT = tuple(f"{REGISTRY}/{name}:1" for name in NAMES if "present" in name)
ABSENT = tuple(f"{REGISTRY}/{name}:1" for name in (*NAMES, "imported") if "present" not in name)
_APPLETS = (
    "sh cat cp mv rm ls ln mkdir touch echo printf env find grep sed sort stat date id chmod chown true false head "
    "tail wc tr sha256sum test readlink seq basename dirname pwd whoami xargs"
).split()


def busybox() -> Path:
    """A static busybox: ``OFR_BUSYBOX``, this machine's own, or the one of Debian's package busybox-static."""
    for known in (os.environ.get("OFR_BUSYBOX", ""), str(CACHE / "busybox"), shutil.which("busybox") or ""):
        if known and Path(known).exists() and b"interpreter" not in _file(known):
            return Path(known)
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        subprocess.run(["apt-get", "-qq", "download", "busybox-static"], cwd=folder, check=True)
        package = next(Path(folder).glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True)
        found = next(path for path in Path(folder).rglob("bin/busybox") if not path.is_symlink())
        shutil.copy(found, CACHE / "part")
        (CACHE / "part").replace(CACHE / "busybox")
    return CACHE / "busybox"


def _file(path: str) -> bytes:
    """``interpreter`` if the program has a dynamic loader (the name of it stands in its first page)."""
    head = Path(path).read_bytes()[:4096]
    return b"interpreter" if b"/ld-linux" in head or b"/ld-musl" in head else b""


def rootfs() -> bytes:
    """The base's files as a tar archive, the same bytes each time."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("home", 0o755)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        data = busybox().read_bytes()
        for name, content, mode in (
            ("bin/busybox", data, 0o755),
            ("etc/passwd", b"root:x:0:0:root:/:/bin/sh\napp:x:1000:1001:app:/home:/bin/sh\n", 0o644),
            ("etc/group", b"root:x:0:\napp:x:1001:\nweb:x:1002:app\n", 0o644),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
        for name in _APPLETS:
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return out.getvalue()


def make_bases(host: Host) -> None:
    """Build every base image on the host."""
    with tempfile.TemporaryDirectory(prefix="offline-rebuild-bases-") as folder:
        Path(folder, "rootfs.tar").write_bytes(rootfs())
        for source in (CORPUS / "_bases").iterdir():
            shutil.copy(source, folder)
        host.put(folder, "/srv/corpus-bases", delete=True)
    builds = " && ".join(f"docker build -q -t {REGISTRY}/{name}:1 -f {name}.Dockerfile ." for name in NAMES)
    imported = f"docker import -c 'ENV LANG=C' -c 'CMD [\"sh\"]' rootfs.tar {REGISTRY}/imported:1"
    host.ssh(f"cd /srv/corpus-bases && export DOCKER_BUILDKIT=1 && {imported} && {builds}")
