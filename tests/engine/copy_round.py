"""COPY against a real engine: what ``copy_set`` says is held against the layers that BuildKit writes.

Runs on a test host too, with nothing but Python and Docker there: ``python3 copy_round.py ROOT fixed|random SEED``
prints one JSON document. ROOT is the folder that holds ``module_utils``.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])

from module_utils.offline_rebuild.cli import Docker, parse_version
from module_utils.offline_rebuild.context import Context
from module_utils.offline_rebuild.copyset import compare, copy_set
from module_utils.offline_rebuild.dockerfile import parse
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.image import ImageStore
from module_utils.offline_rebuild.layers import EvidenceStore, Layer, LayerReader
from module_utils.offline_rebuild.trees import ImageTree

PREFIX = "ofr-copyset-"
#: A name under a registry that refuses at once: some engines ask it although the image is here.
BASE = "127.0.0.1:9/" + PREFIX + "base:1"
#: Instructions in one image: an image has at most 125 layers.
CHUNK = 75
#: Engine versions that know a feature: BuildKit's stable frontend there.
NEEDS = {"heredoc": (23,), "link": (23,), "exclude": (28,)}


def find_docker() -> Optional[Docker]:
    """A CLI that can build with BuildKit: one older than 23, or one that has buildx."""
    for binary in filter(None, (shutil.which("docker"), "/usr/bin/docker")):
        docker = Docker(str(binary), {"DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"})
        client = docker.run("version", "--format", "{{.Client.Version}}", check=False)
        if client.rc == 0 and (
            parse_version(client.text.strip()) < (23,) or docker.run("buildx", "version", check=False).rc == 0
        ):
            return docker
    return None


# -- what is built ------------------------------------------------------------------------------------------


def make_base(docker: Docker) -> None:
    """An image with users, links in several forms, odd modes and owners, and a file with capabilities."""
    stream = io.BytesIO()
    capability = bytes.fromhex("0100000200200000000000000000000000000000").decode("utf-8", "surrogateescape")
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
        for path, kind, mode, uid, gid, value in (
            ("etc", "d", 0o755, 0, 0, ""),
            ("etc/passwd", "f", 0o644, 0, 0, "root:x:0:0::/:/bin/sh\napp:x:1234:2345::/:/bin/sh\n"),
            ("etc/group", "f", 0o644, 0, 0, "root:x:0:\napp:x:2345:\nwww:x:33:\n"),
            ("srv", "d", 0o750, 7, 8, ""),
            ("srv/data", "d", 0o700, 9, 9, ""),
            ("srv/data/old.txt", "f", 0o600, 0, 0, "old\n"),
            ("srv/a.txt", "f", 0o600, 5, 5, "old a\n"),
            ("srv/link.txt", "l", 0o777, 0, 0, "/etc/group"),
            ("opt", "d", 0o755, 0, 0, ""),
            ("opt/real", "d", 0o711, 0, 0, ""),
            ("opt/app", "l", 0o777, 0, 0, "real"),
            ("opt/abs", "l", 0o777, 0, 0, "/opt/real/deep"),
            ("opt/up", "l", 0o777, 0, 0, "../../../../etc/newdir"),
            ("opt/file", "l", 0o777, 0, 0, "/opt/real/target.txt"),
            ("opt/loop", "l", 0o777, 0, 0, "loop"),
            ("opt/real/target.txt", "f", 0o640, 0, 0, "target"),
            ("opt/sg", "d", 0o2775, 1, 50, ""),
            ("bin", "d", 0o755, 0, 0, ""),
            ("bin/ping", "c", 0o4755, 3, 4, "ping"),
        ):
            info = tarfile.TarInfo(path)
            info.mode, info.uid, info.gid, info.mtime = mode, uid, gid, 1_600_000_000
            if kind == "d":
                info.type = tarfile.DIRTYPE
            elif kind == "l":
                info.type, info.linkname = tarfile.SYMTYPE, value
            else:
                info.size = len(value)
            if kind == "c":
                info.pax_headers = {"SCHILY.xattr.security.capability": capability}
            tar.addfile(info, io.BytesIO(value.encode()) if info.isreg() else None)
    docker.run("import", "-c", "LABEL offline-rebuild=test", "-", BASE, stdin=stream.getvalue())


def write(root: Path, path: str, content: bytes = b"x\n", mode: int = 0o644) -> None:
    """Write one file of a context, with its folders."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    target.chmod(mode)


def fixed_context(root: Path) -> None:
    """A context with links, hard links, setuid, sticky and setgid bits, empty folders and archives."""
    for path, content, mode in (
        ("a.txt", b"a\n", 0o644),
        ("b.txt", b"b\n", 0o600),
        (".hid", b"h", 0o644),
        ("d/f1", b"1" * 100, 0o4755),
        ("d/exec", b"#!", 0o711),
        ("d/sub/f2", b"2", 0o644),
        ("d/sub/f2.log", b"2", 0o644),
        ("d/sub/deep/f3", b"3", 0o444),
        ("d/sub/deep/f3.log", b"3", 0o640),
        ("d/sub/deep/er/k.txt", b"k", 0o644),
        ("t/srv/data/new.txt", b"n", 0o644),
        ("zero", b"", 0o644),
        ("zeros", b"\0" * 2048, 0o644),
        ("e/.keep", b"", 0o600),
        ("we ird/na[m]e.txt", b"w", 0o644),
        ("n\xe9.txt", b"u", 0o644),
    ):
        write(root, path, content, mode)
    (root / "empty").mkdir()
    for path, mode in (
        ("d/sub", 0o1777),
        ("d/sub/deep", 0o500),
        ("empty", 0o2770),
        ("t/srv", 0o711),
        ("d", 0o750),
        ("t/srv/data", 0o1755),
    ):
        (root / path).chmod(mode)
    (root / "la").symlink_to("a.txt")
    (root / "ld").symlink_to("/d/sub")
    (root / "lout").symlink_to("../../../a.txt")
    (root / "nowhere").symlink_to("gone")
    (root / "d/dangling").symlink_to("gone")
    (root / "d/lf1").symlink_to("f1")
    os.link(root / "d/f1", root / "d/hard1")
    os.setxattr(root / "a.txt", "user.note", b"v")
    with tarfile.open(root / "arch.tar", "w") as tar:
        tar.add(root / "a.txt", "inner.txt")


#: (feature that it needs or "", the instruction's text). Each is built after the one before it, in one image.
FIXED: Tuple[Tuple[str, str], ...] = (
    tuple(
        ("", "COPY " + text)
        for text in (
            "a.txt /x1/",
            "a.txt /x2/name",
            "a.txt b.txt /x3/",
            "d /x4",
            "d /x5/",
            ". /x6",
            "d/ /x7/y/z",
            "la /x8/",
            "ld /x9",
            "ld la lout /x10/",
            "*.txt /x11/",
            "d/[es]* /x12/",
            "d/s* /x13/",
            "*/f1 /x14/",
            "*/*/deep /x14b/",
            "--chown=app d /x15",
            "--chown=app:www d /x16/n",
            "--chown=nobody a.txt /x17/",
            "--chown=12:app a.txt /x18/q/",
            "--chown=app:zzz a.txt /x18b/",
            "--chown=77 d /x18c/",
            "--chown=:5 a.txt /x18d/",
            "--chown=6: a.txt /x18e/",
            "--chmod=600 d /x19/p/",
            "--chmod=4777 a.txt d /x20/",
            "--chmod=700 a.txt /x21/cc/name",
            "--chmod=1777 d /x22/c/",
            "--chmod=0 a.txt /x23/z",
            "--chmod=00644 b.txt /x24/z",
            "--chmod=751 --chown=3 d /x25",
            "a.txt rel",
            "a.txt .",
            "d srv",
            "d ./deep/er/",
            "d /srv/",
            "d /srv/data",
            "a.txt /srv/",
            "a.txt /srv/link.txt",
            "--chmod=701 t/srv /srv",
            "--chmod=750 --chown=app:www t /",
            "t /",
            "--chown=app t /",
            "t/srv/ /srv/",
            "a.txt /opt/app/",
            "a.txt /opt/abs/n/",
            "a.txt /opt/abs",
            "a.txt /opt/up/",
            "a.txt /opt/file",
            "d /opt/app",
            "d /opt/app/sub2",
            "nope* /x30/",
            "empty /x31/e",
            "empty /srv",
            "d/sub/../f1 /x32/",
            "/d/f1 /x33/",
            "../a.txt /x34/",
            "d/f1 d/hard1 /x35/",
            "d/hard1 /x36/",
            "a.txt /",
            "d /x39/.",
            "a.txt /x40/../x41",
            ".hid /x42/",
            "a.txt b.txt /x43",
            "d /opt/sg/",
            "a.txt /opt/sg/",
            "a.txt /x44//y//",
            "ld/f2 /x45/",
            "ld/* /x46/",
            "?.txt [ab].txt /x49/",
            "a.txt a.txt /x50/",
            "d d/sub /x51/",
            "empty d /x52",
            "a.txt d /opt/app",
            "zero /x53/",
            '["we ird", "/x54/o k"]',
            "we*ird/na[[]m]e.txt /x55/",
            "n\xe9.txt n?.txt /x56/",
            "[^a].txt /x57/",
            "arch.tar /x58/",
            "d /x59/..",
            "e /x60/",
        )
    )
    + (
        ("", "ADD a.txt /ad1/"),
        ("", "ADD d /ad2"),
        ("", "ADD zero zeros /ad3/"),
        ("", "ADD --chown=app d/[es]* /ad4/"),
        ("", "ADD --chmod=600 a.txt /ad5/"),
        ("", "COPY --from=source / /fr1/"),
        ("", "COPY --from=source /bin/ping /opt/app /fr2/"),
        ("", "COPY --from=source /opt /fr3/"),
        ("", "COPY --from=source --chown=5:6 /srv /bin /fr4/"),
        ("", "COPY --from=source srv/*.txt opt/[fr]* /fr5/"),
        ("", "COPY --from=source --chmod=711 /bin/ping /fr6/"),
        ("", "COPY --from=source /bin/ping /bin/"),
        ("", "COPY --chmod=u+x d /s1/"),
        ("", "COPY --chmod=go-rwx d /s2/"),
        ("", "COPY --chmod=u=rwx,go=rx d /s3/"),
        ("", "COPY --chmod=+x d /s4/"),
        ("", "COPY --chmod==r d /s5/"),
        ("", "COPY --chmod=-w d /s6/"),
        ("", "COPY --chmod=u+x,g-r d /s7/"),
        ("", "COPY --chmod=go+X d /s8/"),
        ("", "COPY --chmod=a+rX d /s9/"),
        ("heredoc", "COPY <<EOF /h1\nhello\nEOF"),
        ("heredoc", "COPY <<EOF <<F2 /h2/\none\nEOF\ntwo\nF2"),
        ("heredoc", "COPY --chown=app --chmod=700 a.txt <<EOF /h3/q/\none\nEOF"),
        ("heredoc", "COPY <<EOF /srv/data/old.txt\nx\nEOF"),
        ("heredoc", "COPY <<EOF /srv/data\nx\nEOF"),
        ("heredoc", "COPY <<EOF /opt/file\nx\nEOF"),
        ("heredoc", "COPY <<-a.cfg rel2/\n\tx\n\t\ty\na.cfg"),
        ("link", "COPY --link a.txt /l1/"),
        ("link", "COPY --link d /l2/n"),
        ("link", "COPY --link --chown=12:13 d /l3/n/"),
        ("link", "COPY --link a.txt /etc/"),
        ("link", "COPY --link a.txt /etc/passwd"),
        ("link", "COPY --link a.txt ."),
        ("link", "COPY --link --chmod=640 a.txt /l4/m/"),
        ("link", "COPY --link a.txt d /l5/"),
    )
    + tuple(
        ("exclude", "COPY " + text)
        for text in (
            "--exclude=*.log d /e1/",
            "--exclude=**/*.log d /e2/",
            "--exclude=sub d /e3/",
            "--exclude=sub --exclude=!sub/deep d /e4/",
            "--exclude=sub/* --exclude=!sub/*.log d /e5/",
            "--exclude=**/f3 d /e6/",
            "--exclude=d/f1 d /e7/",
            "--exclude=deep d /e8/",
            "--exclude=**/deep d /e9/",
            "--exclude=* d /e10/",
            "--exclude=sub/deep/er d /e11/",
            "--exclude=** --exclude=!sub/f2 d /e12/",
            "--exclude=sub/**/k.txt d /e13/",
            "--exclude=f? d /e14/",
            "--exclude=[ef]* d /e15/",
            "--exclude=sub/ d /e16/",
            "--exclude=*.log d d/sub /e17/",
            "--exclude=f1 d/f1 /e18/",
            "--exclude=f1 d/f* /e19/",
            "--exclude=srv/data t /",
            "--exclude=srv --exclude=!srv/data/new.txt t /",
            "--exclude=srv --exclude=!srv/data --chown=5:6 t /",
            "--exclude=deep/er d/sub /e20",
            "--exclude=deep d/sub /e21",
            "--exclude=f1 d/sub d /e22",
        )
    )
)

#: What must not be told: either the build fails, or BuildKit's versions disagree.
REFUSED = (
    "COPY gone /r/",
    "COPY d/../gone /r/",
    "COPY nowhere /r/",
    "COPY d/* /r/",
    "COPY d /etc/passwd",
    "COPY a.txt d /etc/passwd/x",
    "COPY d /opt/loop/",
    "COPY d/f1 /r/\nCOPY d /r/f1",
    "COPY d /r/\nCOPY b.txt /r/sub/deep/er/k.txt/",
)
UNTOLD = (
    "COPY l[ad] /x47/",
    "COPY a.txt /r38/.",
    "ADD arch.tar /r/",
    "ADD ar* /r/",
    "COPY --chmod=g+s d /r/",
    "COPY --chmod=a=rX d /r/",
    "COPY a.txt /opt/sg/new/",
)


# -- building and comparing -----------------------------------------------------------------------------------


def build(docker: Docker, context: Path, texts: Sequence[str], tag: str) -> Tuple[str, str]:
    """Build ``texts`` on the base; the Dockerfile's text and the error (empty when it was built)."""
    body = f"FROM {BASE} AS source\nFROM {BASE}\nWORKDIR /wd\n" + "".join(text + "\n" for text in texts)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "Dockerfile")
        file.write_text(body, encoding="utf-8")
        result = docker.run(
            "build",
            "--network=none",
            "--label",
            "offline-rebuild=test",
            "-t",
            tag,
            "-f",
            str(file),
            str(context),
            check=False,
        )
    return body, "" if result.rc == 0 else result.stderr[-2000:]


def reader_of(docker: Docker, tag: str, evidence: Optional[str] = None) -> LayerReader:
    """A reader for an image of this engine."""
    store = ImageStore(docker)
    image = store.find(tag)
    assert image is not None
    kept = EvidenceStore(evidence) if evidence else None
    return LayerReader(
        docker, image.inspect, image.diff_ids, image.layer_descriptors, store.content_dir, kept, evidence is not None
    )


def instructions(body: str) -> List[Any]:
    """The COPYs and ADDs of a Dockerfile, in order."""
    return [i for i in parse(body.encode()).instructions if i.keyword in ("COPY", "ADD")]


def judge(reader: LayerReader, index: int, instruction: Any, context: Path, base: LayerReader) -> Tuple[str, List[Any]]:
    """Why an instruction is not told (or ``""``), and how its layer differs from what it would write."""
    tree: Any = Context(str(context))
    if instruction.flag("from"):
        tree = ImageTree(base, len(base.diff_ids) - 1, instruction.sources)
    wanted = copy_set(
        instruction,
        tree,
        "/wd",
        lambda path: reader.lookup(path, index - 1),
        None,
        lambda path: reader.content(path, index - 1),
    )
    if wanted.unsupported:
        return wanted.unsupported, []
    found = compare(wanted, reader.layer(index), lambda path: reader.lookup(path, index - 1))
    return "", [(c.path, c.kind, list(c.what), c.note) for c in found]


def run_fixed(docker: Docker) -> Dict[str, Any]:
    """Every fixed case that this engine knows, and those that it must refuse."""
    version = parse_version(docker.info().version)
    texts = [text for need, text in FIXED if not need or version >= NEEDS[need]]
    out: Dict[str, Any] = {
        "engine": docker.info().version,
        "store": docker.info().store,
        "cases": len(texts),
        "different": [],
        "untold": [],
        "false_told": [],
        "not_refused": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        fixed_context(context)
        make_base(docker)
        base = reader_of(docker, BASE)
        for start in range(0, len(texts), CHUNK):
            error = _fixed_part(docker, context, texts[start : start + CHUNK], base, out)
            if error:
                return {**out, "error": error}
        out["in_place"] = base.in_place
        _check_refused(docker, context, base, out)
    docker.run("image", "rm", PREFIX + "fixed:1", check=False)
    return out


def _fixed_part(docker: Docker, context: Path, texts: Sequence[str], base: LayerReader, out: Dict[str, Any]) -> str:
    body, error = build(docker, context, texts, PREFIX + "fixed:1")
    if error:
        return error
    reader = reader_of(docker, PREFIX + "fixed:1")
    for number, instruction in enumerate(instructions(body)):
        untold, found = judge(reader, 2 + number, instruction, context, base)
        if untold:
            out["untold"].append([texts[number], untold])
        if found:
            out["different"].append([texts[number], found[:5]])
    return ""


def _tells(instruction: Any, context: Path, reader: LayerReader, top: int) -> bool:
    try:
        wanted = copy_set(instruction, Context(str(context)), "/wd", lambda path: reader.lookup(path, top))
    except OfflineRebuildError as problem:
        return problem.code != "copy-source"
    return not wanted.unsupported


def _check_refused(docker: Docker, context: Path, base: LayerReader, out: Dict[str, Any]) -> None:
    for text in REFUSED + UNTOLD:
        body, error = build(docker, context, [text], PREFIX + "refused:1")
        lines = instructions(body)
        reader = base if error else reader_of(docker, PREFIX + "refused:1")
        if error and len(lines) == 2:
            _, failed = build(docker, context, [text.split("\n")[0]], PREFIX + "refused:1")
            assert not failed, failed
            reader = reader_of(docker, PREFIX + "refused:1")
        top = len(reader.diff_ids) - 1 if error else len(reader.diff_ids) - 2
        if _tells(lines[-1], context, reader, top):
            out["false_told"].append(text)
        if text in REFUSED and not error:
            out["not_refused"].append(text)
    docker.run("image", "rm", PREFIX + "refused:1", check=False)


# -- random trees ----------------------------------------------------------------------------------------------

NAMES = ("a", "b", "c.txt", "d.log", "e f", "g", ".h", "data", "srv", "x-1")


def random_tree(chance: random.Random, root: Path, depth: int = 0) -> None:
    """Files, folders and links of few names, so that they meet in the image."""
    for name in chance.sample(NAMES, chance.randint(1, 5)):
        path = root / name
        kind = chance.random()
        if kind < 0.35 and depth < 3:
            path.mkdir()
            random_tree(chance, path, depth + 1)
            path.chmod(chance.choice((0o755, 0o755, 0o700, 0o2775, 0o1777)))
        elif kind < 0.45:
            path.symlink_to(chance.choice(("a", "b/a", "../a", "/c.txt", "gone", "/data", ".")))
        else:
            path.write_bytes(chance.choice((b"", b"one\n", b"two\r\n", b"three")) * chance.randint(1, 3))
            path.chmod(chance.choice((0o644, 0o644, 0o755, 0o600, 0o4755)))


def random_copies(chance: random.Random, root: Path, count: int) -> List[str]:
    """COPY instructions of this tree."""
    known = [p.relative_to(root).as_posix() for p in sorted(root.rglob("*"))]
    out = []
    for number in range(count):
        sources = []
        for _ in range(chance.choice((1, 1, 1, 2))):
            pick = chance.choice(known) if known else "."
            sources.append(
                chance.choice(
                    (
                        pick,
                        pick,
                        pick,
                        ".",
                        re.sub(r"[a-z]$", "?", pick),
                        pick.split("/")[0] + "*",
                        os.path.dirname(pick) + "/*" if "/" in pick else pick,
                    )
                )
            )
        flags = chance.choice(((), (), ("--chown=app:www",), ("--chmod=751",), ("--chown=3", "--chmod=640")))
        dest = chance.choice(
            (f"/r{number}/", f"/r{number}/x/", f"/r{number}", "/srv/", "/opt/app/", "./", f"n{number}", "/opt/abs", "/")
        )
        out.append("COPY " + " ".join(flags) + " " + json.dumps([*sources, dest], ensure_ascii=False))
    return out


def accepted(docker: Docker, context: Path, texts: Sequence[str], tag: str) -> Tuple[List[str], int]:
    """Those of the instructions that the engine builds, found by halves; all in one image under ``tag``."""
    kept = list(texts)
    builds = 0
    while kept:
        builds += 1
        _, error = build(docker, context, kept, tag)
        if not error:
            break
        failed = re.findall(r"> \[[^\]]* (\d+)/\d+\] (?:COPY|ADD) ", error)
        # The failing step is the last that BuildKit names; WORKDIR is step 2.
        place = int(failed[-1]) - 3 if failed else len(kept) - 1
        kept.pop(place if 0 <= place < len(kept) else len(kept) - 1)
    return kept, builds


def run_random(docker: Docker, seed: int, count: int = 14) -> Dict[str, Any]:
    """A random tree under random COPYs, then the tree changed: equal where the layers are, different where they are."""
    chance = random.Random(seed)
    out: Dict[str, Any] = {
        "seed": seed,
        "cases": 0,
        "untold": 0,
        "different": [],
        "false_reuse": [],
        "false_change": [],
        "mutations": 0,
    }
    make_base(docker)
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder, "c")
        context.mkdir()
        random_tree(chance, context)
        texts, out["builds"] = accepted(docker, context, random_copies(chance, context, count), PREFIX + f"r{seed}:1")
        if not texts:
            return out
        body = f"FROM {BASE}\nWORKDIR /wd\n" + "".join(text + "\n" for text in texts)
        reader, base = reader_of(docker, PREFIX + f"r{seed}:1"), reader_of(docker, BASE)
        lines = instructions(body)
        for number, line in enumerate(lines):
            untold, found = judge(reader, 2 + number, line, context, base)
            out["cases"] += 1
            out["untold"] += bool(untold)
            if found:
                out["different"].append([texts[number], found[:5]])
        for _ in range(3):
            _mutated(docker, chance, context, texts, lines, reader, base, out, PREFIX + f"r{seed}:2")
    docker.run("image", "rm", PREFIX + f"r{seed}:1", PREFIX + f"r{seed}:2", check=False)
    return out


def mutate(chance: random.Random, root: Path) -> str:
    """Change one thing of a tree."""
    files = [p for p in sorted(root.rglob("*")) if p.is_file() and not p.is_symlink()]
    links = [p for p in sorted(root.rglob("*")) if p.is_symlink()]
    folders = [root] + [p for p in sorted(root.rglob("*")) if p.is_dir() and not p.is_symlink()]
    kind = chance.choice(
        ("content", "same size", "mode", "add", "delete", "rename", "folder mode", "link", "to folder")
    )
    if kind in ("content", "same size", "mode", "delete", "rename", "to folder") and files:
        target = chance.choice(files)
        if kind == "content":
            target.write_bytes(target.read_bytes() + b"more\n")
        elif kind == "same size":
            target.write_bytes(bytes(b ^ 1 for b in target.read_bytes()))
        elif kind == "mode":
            target.chmod(target.stat().st_mode & 0o7777 ^ 0o011)
        elif kind == "rename":
            target.rename(target.with_name("renamed"))
        else:
            target.unlink()
            if kind == "to folder":
                target.mkdir()
    elif kind == "folder mode":
        chosen = chance.choice(folders)
        chosen.chmod(chosen.stat().st_mode & 0o7777 ^ 0o020)
    elif kind == "link" and links:
        target = chance.choice(links)
        target.unlink()
        target.symlink_to("elsewhere")
    else:
        write(chance.choice(folders), "added", b"new\n")
    return kind


def _state(layer: Layer) -> Mapping[str, Tuple[Any, ...]]:
    return {
        p: (e.type, e.mode, e.uid, e.gid, e.size, e.content_digest(), e.link, e.xattrs)
        for p, e in layer.entries.items()
        if p
    }


def _mutated(
    docker: Docker,
    chance: random.Random,
    context: Path,
    texts: Sequence[str],
    lines: Sequence[Any],
    reader: LayerReader,
    base: LayerReader,
    out: Dict[str, Any],
    tag: str,
) -> None:
    """Change the tree, build each instruction again on the image before it, and hold our word against that."""
    kind = mutate(chance, context)
    _, error = build(docker, context, texts, tag)
    if error:
        return
    fresh = reader_of(docker, tag)
    out["mutations"] += 1
    for number, line in enumerate(lines):
        index = 2 + number
        if any(_state(reader.layer(n)) != _state(fresh.layer(n)) for n in range(index)):
            break  # the state before it is another one: what it writes cannot be held against the old layer
        untold, found = judge(reader, index, line, context, base)
        same = _state(reader.layer(index)) == _state(fresh.layer(index))
        if not untold and not found and not same:
            out["false_reuse"].append([kind, texts[number]])
        if found and same:
            out["false_change"].append([kind, texts[number], found[:3]])


def main() -> None:
    """Run one round and print what came of it."""
    docker = find_docker()
    assert docker is not None, "no docker that builds"
    what, seed = sys.argv[2], int(sys.argv[3])
    result = run_fixed(docker) if what == "fixed" else run_random(docker, seed)
    docker.run("image", "rm", BASE, check=False)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
