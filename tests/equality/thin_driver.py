"""Runs on a test host (Python, a docker CLI with buildx, nothing else): random trees, random COPYs, random edits.

One JSON job on stdin (``seed``, ``cases``, ``batch``), one JSON report on stdout. For each case the image of a tree is
built; the tree is edited; what the planner makes of the edited tree, with a record of the first tree and without one,
is held against a full build of it. Builds go by ``docker buildx bake``, a batch at a time: each target of it is an
ordinary build of its own context and Dockerfile.

The core lies in the folder that ``OFFLINE_REBUILD_CORE`` names, driver.py (snapshots) and rootfs.tar beside this file.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import time
import traceback
import urllib.parse
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), os.environ.get("OFFLINE_REBUILD_CORE", "/opt/ofr")]
sys.dont_write_bytecode = True

import driver  # noqa: E402
from offline_rebuild import compose, graft, planner, thin  # noqa: E402
from offline_rebuild.cli import Docker, Result  # noqa: E402
from offline_rebuild.context import Context  # noqa: E402
from offline_rebuild.copyset import copy_set  # noqa: E402
from offline_rebuild.dockerfile import parse  # noqa: E402
from offline_rebuild.errors import OfflineRebuildError  # noqa: E402
from offline_rebuild.ignorefile import load as load_ignore  # noqa: E402
from offline_rebuild.image import ImageStore  # noqa: E402
from offline_rebuild.layers import LayerReader  # noqa: E402

WORK = Path(os.environ.get("OFR_THIN_WORK", "/srv/thin"))
#: A name under an address that refuses at once: some engines ask a registry although the image is here.
BASE = "127.0.0.1:9/ofr-thin/base:1"
RUN_TIME = 1767323045
#: How often a tree is edited, each time on top of the edits before, against the image of the untouched tree.
STEPS = 3

# --- random trees, instructions and edits ----------------------------------------------------------------------------

ODD_NAME = "bad-\udcff\udcfe"
NAMES = [
    "a", "b", "c.txt", "d.log", "e f", "g", ".h", "data", "srv", "x-1", "sub", "größe-文.txt", "-dash", "[b]", "st*r",
    ODD_NAME, "new\nline", "L" * 120, "ü" * 120, "M" * 251, ".wx.a", "back\\slash",
]  # fmt: skip
FILE_MODES = (0o644, 0o644, 0o644, 0o755, 0o600, 0o777, 0o4755, 0o2755, 0o000, 0o640)
DIR_MODES = (0o755, 0o755, 0o755, 0o700, 0o777, 0o1777, 0o2755, 0o750)
LINKS = ("a", "b/a", "../a", "/c.txt", "gone", "/srv/data", ".", "sub", "data/x", "größe-文.txt")


def content(chance: random.Random) -> bytes:
    kind = chance.random()
    if kind < 0.15:
        return b""
    if kind < 0.22:
        return chance.randbytes(chance.choice((511, 512, 513, 5000, 1 << 20, (1 << 20) + 1)))
    return chance.choice((b"one\n", b"two\r\n", b"three", b"\0\xff")) * chance.randint(1, 4)


def random_tree(chance: random.Random, root: Path, depth: int = 0) -> None:
    """Files, folders and links of few names, so that they meet in the image; modes, odd and long names."""
    for name in chance.sample(NAMES, chance.randint(1 if depth else 3, 7 if depth < 2 else 3)):
        put(chance, root / name, depth)
    if not depth and chance.random() < 0.2:
        deep = root.joinpath(*("deep-" + "y" * 70 for _ in range(5)))
        deep.mkdir(parents=True)
        deep.joinpath("z" * 99).write_bytes(b"deep\n")


def put(chance: random.Random, path: Path, depth: int) -> None:
    kind = chance.random()
    if kind < 0.35 and depth < 3:
        path.mkdir()
        if chance.random() < 0.85:
            random_tree(chance, path, depth + 1)
        path.chmod(chance.choice(DIR_MODES))
    elif kind < 0.47:
        path.symlink_to(chance.choice(LINKS))
    else:
        path.write_bytes(content(chance))
        path.chmod(chance.choice(FILE_MODES))


def listed(root: Path, kind: str = "") -> list[Path]:
    """What is below ``root``, the same order each time: ``f``, ``d``, ``l`` or everything."""
    found = []
    for folder, folders, files in os.walk(root):
        found += [Path(folder, name) for name in (*folders, *files)]
    found.sort(key=lambda path: os.fsencode(path))
    kinds = {"f": lambda p: p.is_file() and not p.is_symlink(), "d": lambda p: p.is_dir() and not p.is_symlink()}
    return [p for p in found if kinds.get(kind, Path.is_symlink if kind else lambda _: True)(p)]


def leads(root: Path, path: Path, left: int = 20) -> bool:
    """Whether a path of the tree is there when its links are followed, the tree being their root."""
    done, todo = root, list(path.relative_to(root).parts)[::-1]
    while todo:
        part = todo.pop()
        here = done.parent if part == ".." and done != root else done if part == ".." else done / part
        if not here.is_symlink():
            done = here
            continue
        left -= 1
        link = os.readlink(here)
        done = root if link.startswith("/") else done
        todo.extend([name for name in link.split("/") if name not in ("", ".")][::-1])
        if left < 0:
            return False
    return done.exists()


def is_source(root: Path, source: str) -> bool:
    """Whether COPY finds what the source stands for (rules simple enough for what :meth:`Case.copy` writes)."""
    parts = [part for part in source.split("/") if part not in ("", ".")]
    known = {r"\*": ".*", r"\?": "."}
    texts = [re.sub(r"\\[*?]|\\\[(.*?)\\\]", lambda m: known.get(m[0], f"[{m[1]}]"), re.escape(p)) for p in parts]
    found = [root]
    for text in texts:
        folders = [path for path in found if path.is_dir() and not path.is_symlink()]
        found = [each for path in folders for each in path.iterdir() if re.fullmatch(text, each.name, re.DOTALL)]
    ignored = [p for p in found if Path(root, ".dockerignore").exists() and re.search(r"\.log|/g(/|$)", str(p))]
    # A link that a pattern finds is not followed by BuildKit's client: what it leads to may not have been sent.
    linked = texts != [re.escape(part) for part in parts] and any(path.is_symlink() for path in found)
    return bool(found) and not ignored and not linked and all(leads(root, path) for path in found)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def edit(chance: random.Random, root: Path) -> str:  # noqa: PLR0912, PLR0915
    """Change one thing of a tree."""
    files, folders, links = listed(root, "f"), listed(root, "d"), listed(root, "l")
    kind = chance.choice(
        "content content content same-size append mode mode add add add add-tree empty-dir delete delete delete rename "
        "rename delete-dir rename-dir dir-mode to-dir to-file to-link link link-to-file touch swap many many".split()
    )
    wants = {"d": "delete-dir rename-dir dir-mode to-file".split(), "l": "link link-to-file".split()}
    pool = folders if kind in wants["d"] else links if kind in wants["l"] else files
    free = kind in ("add", "add-tree", "empty-dir")
    if not pool and not free:
        kind, free = "add", True
    if free:
        folder = chance.choice([root, root, *folders])
        taken = {path.name for path in folder.iterdir()}
        name = chance.choice([n for n in (*NAMES, "added", "N" * 251) if n not in taken])
        target = folder / name
        if kind == "add":
            target.write_bytes(content(chance))
            target.chmod(chance.choice(FILE_MODES))
        else:
            target.mkdir()
            if kind == "add-tree":
                random_tree(chance, target, 2)
            target.chmod(chance.choice(DIR_MODES))
        return kind
    target = chance.choice(pool)
    mode = target.lstat().st_mode & 0o7777
    if kind == "content":
        target.write_bytes(content(chance) + b"more\n")
    elif kind == "same-size":
        target.write_bytes(bytes(b ^ 1 for b in target.read_bytes()))
    elif kind == "append":
        target.write_bytes(target.read_bytes() + b"+")
    elif kind == "mode":
        target.chmod(chance.choice([m for m in FILE_MODES if m != mode]))
    elif kind == "dir-mode":
        target.chmod(chance.choice([m for m in DIR_MODES if m != mode]))
    elif kind in ("rename", "rename-dir"):
        free_names = (target.with_name(f"renamed{number}") for number in range(99))
        target.rename(next(path for path in free_names if not os.path.lexists(path)))
    elif kind in ("delete", "delete-dir"):
        remove(target)
    elif kind == "touch":
        os.utime(target, (1, 1))
    elif kind == "swap":
        other = chance.choice(files)
        one, two = target.read_bytes(), other.read_bytes()
        target.write_bytes(two)
        other.write_bytes(one)
    elif kind == "many":
        for path in chance.sample(files, min(len(files), 5)):
            path.write_bytes(path.read_bytes() + b"many\n")
    else:
        remove(target)
        if kind == "to-dir":
            target.mkdir()
            random_tree(chance, target, 2)
        elif kind in ("to-file", "link-to-file"):
            target.write_bytes(b"was something else\n")
        else:
            target.symlink_to(chance.choice((*LINKS, "elsewhere")))
    return kind


class Case:
    """One tree, its Dockerfile, and what came of it."""

    def __init__(self, seed: int, number: int) -> None:
        self.number = number
        self.chance = random.Random(f"{seed}-{number}")
        self.folder = WORK / str(number)
        self.tree = self.folder / "tree"
        self.file = self.folder / "Dockerfile"
        self.tag = f"ofr-thin-c{number}:1"
        self.old = f"ofr-thin-old{number}:1"
        self.truth = f"ofr-thin-truth{number}:1"
        self.name = f"c{number}"
        self.edits: list[str] = []
        self.made: dict[str, Any] = {}
        self.areas: list[Path] = []
        self.said: list[str] = []
        shutil.rmtree(self.folder, ignore_errors=True)
        self.tree.mkdir(parents=True)
        random_tree(self.chance, self.tree)
        if self.chance.random() < 0.12:
            Path(self.tree, ".dockerignore").write_bytes(b"*.log\n**/g\n.dockerignore\n")
        self.lines = self.dockerfile()
        self.write()

    def write(self) -> None:
        self.file.write_text("\n".join(self.lines) + "\n", "utf-8")

    def dockerfile(self) -> list[str]:
        chance = self.chance
        lines = [f"FROM {BASE}"]
        if chance.random() < 0.5:
            lines.append("WORKDIR " + chance.choice(("/wd", "rel/x", "/opt/abs", "/srv/data", "/home/app")))
        if chance.random() < 0.15:
            lines.append("ENV D=/r CHOWN=app")
        simple = chance.random() < 0.45
        for _ in range(1 if simple else chance.choice((1, 2, 2, 3, 4))):
            lines.append(self.copy(simple))
            if chance.random() < 0.25:
                lines.append(chance.choice(("ENV B=2", "USER app", "LABEL l=1", "EXPOSE 80", "VOLUME /r/vol")))
        if chance.random() < 0.3:
            lines.append("WORKDIR " + self.inside(lines))
        if chance.random() < 0.13:
            lines.append('RUN ["/bin/busybox", "sh", "-c", "/bin/busybox find /r /srv -type f | sort >/list; true"]')
            lines.append(self.copy(False))
        return [*lines, 'CMD ["sh"]']

    def inside(self, lines: list[str]) -> str:
        """A folder that a COPY made, or one that is there for another reason."""
        chance = self.chance
        folders = [p.relative_to(self.tree).as_posix() for p in listed(self.tree, "d")]
        plain = [name for name in folders if re.fullmatch(r"[a-zA-Z0-9/.-]{1,40}", name)]
        dest = next((json.loads(t[t.index("[") :])[-1] for t in lines if t.startswith("COPY") and "<<" not in t), "/r")
        return chance.choice(("/r", "/wd/x", "/srv", *(f"{dest.rstrip('/')}/{name}" for name in plain)))

    def copy(self, simple: bool) -> str:
        chance = self.chance
        if not simple and chance.random() < 0.1:
            return chance.choice(
                (
                    f"COPY <<EOF /r/here\nheredoc {chance.random()}\nEOF",
                    "COPY --chmod=600 <<one <<two /r/\n1\none\n2\ntwo",
                    "COPY --chown=app <<a /opt/abs/\nx $B\na",
                )
            )
        known = [p.relative_to(self.tree).as_posix() for p in listed(self.tree)]
        known = [name for name in known if not re.search(r"[\udc80-\udcff\n\\$]", name)] or ["."]
        sources = ["."] if simple and chance.random() < 0.6 else []
        for _ in range(0 if sources else 1 if simple else chance.choice((1, 1, 1, 2, 3))):
            pick = chance.choice(known)
            # Not [*] nor [?]: BuildKit's client sends nothing for a component with one of these.
            quoted = pick.replace("[", "[[]")
            globs = (re.sub(r"[a-z]$", "?", quoted), quoted.split("/")[0][:3] + "*", "*", "[a-d]*", quoted + "/")
            source = chance.choice((".", "./", *globs) if not simple and chance.random() < 0.4 else (quoted,))
            sources.append(source if is_source(self.tree, source) else ".")
            self.areas += [self.tree / name for name in (source.strip("/"), os.path.dirname(pick)) if name]
        flags = chance.choice(
            ("",) * 14
            + ("--chown=app:web", "--chown=12:13", "--chown=app", "--chown=app", "--chown=nosuch", "--chmod=755")
            + ("--chmod=0640", "--chmod=4755", "--chown=7 --chmod=750")
        )
        dest = chance.choice(
            ("/r/", "/r/", "/r", "/r/x/", "./", ".", "sub/", "/srv/", "/srv/data/", "/opt/abs/", "/opt/rel/x/", "/")
            + ("/new/deep/dir/", "/home/app/", "/opt/", "/srv/link/", "${D:-/r}/v/", "/r/y", "/r/z/")
        )
        if len(sources) > 1 or "*" in sources[0] or "?" in sources[0]:
            dest = dest.rstrip("/") + "/"
        return " ".join(["COPY", *filter(None, [flags]), json.dumps([*sources, dest], ensure_ascii=False)])

    def change(self) -> None:
        """One to three edits of the tree; sometimes of the Dockerfile too."""
        for _ in range(self.chance.choice((1, 1, 1, 2, 3))):
            area = self.chance.choice([self.tree, *self.areas])
            self.edits.append(edit(self.chance, area if area.is_dir() and not area.is_symlink() else self.tree))
        if self.chance.random() < 0.15:
            kind = self.chance.choice(("cmd", "label", "env", "copy", "workdir"))
            more = {"label": "LABEL added=yes", "env": "ENV ADDED=yes", "workdir": "WORKDIR /r/added"}
            self.edits.append(f"Dockerfile: {kind}")
            if kind == "cmd":
                self.lines[-1] = 'CMD ["other"]'
            elif kind == "copy":
                self.lines.insert(len(self.lines) - 1, self.copy(False))
            else:
                self.lines.insert(self.chance.randint(2, len(self.lines) - 1), more[kind])
            self.write()

    def describe(self) -> dict[str, Any]:
        return {"case": self.number, "dockerfile": self.lines, "edits": self.edits, "said": self.said}


# --- the engine ----------------------------------------------------------------------------------------------------


class Api(Docker):
    """The engine's socket where the CLI would only pass on what it is given; builds go by the CLI."""

    def run(self, *args: str, stdin: Any = None, **named: Any) -> Any:
        if args != ("load",):
            return super().run(*args, stdin=stdin, **named)
        body = stdin if isinstance(stdin, bytes) else stdin.read()
        engine = driver.Engine()
        engine.request("POST", "/images/load?quiet=1", body, {"Content-Type": "application/x-tar"})
        answer = engine.getresponse()
        text = answer.read()
        engine.close()
        assert answer.status == 200, text
        return Result(("load",), 0, text, "")

    def inspect(self, kind: str, refs: Any) -> list[Any]:
        assert kind == "image"
        found = []
        engine = driver.Engine()
        for ref in refs:
            engine.request("GET", f"/images/{urllib.parse.quote(ref, safe=':/@')}/json")
            answer = engine.getresponse()
            text = answer.read()
            if answer.status == 200:
                found.append(json.loads(text))
        engine.close()
        return found


def left_names() -> list[str]:
    engine = driver.Engine()
    wanted = urllib.parse.quote(json.dumps({"reference": [f"{graft.REGISTRY}/*"]}))
    listed_now = json.loads(engine.ask("GET", f"/images/json?filters={wanted}").read())
    engine.close()
    return [tag for image in listed_now for tag in image.get("RepoTags") or []]


def delete(names: list[str]) -> None:
    engine = driver.Engine()
    for name in names:
        engine.request("DELETE", f"/images/{urllib.parse.quote(name, safe=':/@')}?noprune=1")
        engine.getresponse().read()
    engine.close()


def tag(image: str, name: str) -> None:
    engine = driver.Engine()
    repository, _, version = name.rpartition(":")
    engine.ask("POST", f"/images/{urllib.parse.quote(image, safe=':')}/tag?repo={repository}&tag={version}").read()
    engine.close()


class CaseStore(ImageStore):
    """The images of one case only: the base, the case's own, and what is being made."""

    def __init__(self, docker: Docker, names: list[str]) -> None:
        self.names = names
        super().__init__(docker)

    def _list(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for data in self.docker.inspect("image", [*self.names, *left_names()]):
            found[data["Id"]] = data
            for ref in (*(data.get("RepoTags") or []), *(data.get("RepoDigests") or [])):
                found[ref] = data
        return found


def build(case: Case, tag: str, no_cache: bool) -> None:
    """One ordinary build; bake itself takes some seconds more."""
    try:
        more = ["--no-cache"] if no_cache else []
        where = ["-t", getattr(case, tag), "-f", str(case.file), str(case.tree)]
        environment = {"DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
        driver.docker("build", "--progress=plain", "--network=none", *more, *where, **environment)
    except RuntimeError as error:
        case.said.append(f"{tag} failed: {str(error)[-300:]}")


def bake(cases: list[Case], tag: str, no_cache: bool) -> None:
    """Build every case; those whose build fails get ``said`` and have no image."""
    if len(cases) == 1:
        build(cases[0], tag, no_cache)
        return
    todo = {case.name: case for case in cases}
    while todo:
        targets = {
            name: {
                "context": str(case.tree),
                "dockerfile": str(case.file),
                "tags": [getattr(case, tag)],
                "network": "none",
                "no-cache": no_cache,
            }
            for name, case in todo.items()
        }
        path = WORK / "bake.json"
        path.write_text(json.dumps({"group": {"default": {"targets": list(todo)}}, "target": targets}))
        environment = {**os.environ, "BUILDX_NO_DEFAULT_ATTESTATIONS": "1", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            ["docker", "buildx", "bake", "--progress=plain", "-f", str(path)],
            capture_output=True,
            check=False,
            env=environment,
            cwd=WORK,
        )
        if done.returncode == 0:
            return
        text = done.stderr.decode("utf-8", "replace")
        failed = set(re.findall(r"target (c\d+): failed to solve", text)) & set(todo)
        if not failed and len(todo) > 1:  # it does not say which: one by one
            for case in list(todo.values()):
                bake([case], tag, no_cache)
            return
        for name in failed or set(todo):
            tail = [line for line in text.splitlines() if "ERROR" in line or "failed to solve" in line]
            todo.pop(name).said.append(f"{tag} failed: " + " | ".join(tail[-2:])[-400:])


# --- planning and making -------------------------------------------------------------------------------------------


class Maker:
    """Plans and makes cases with the core."""

    def __init__(self) -> None:
        self.docker = Api()
        self.docker.require(compose=None)
        self.content_dir = ImageStore(self.docker).content_dir
        compose.containers = lambda *_: {}  # nothing runs here
        compose.config_hashes = lambda *_: {}
        compose.service_state = lambda *_: ""
        self.fast = 0
        inner = thin._apply_changes

        def counted(*args: Any, **named: Any) -> Any:
            self.fast += 1
            return inner(*args, **named)

        thin._apply_changes = counted

    def may_fail(self, case: Case) -> bool:
        """Whether a build of the untouched tree may well fail; only decides what is built together with others."""
        base = CaseStore(self.docker, [BASE]).find(BASE)
        assert base is not None
        reader = LayerReader(self.docker, base.inspect, base.diff_ids, base.layer_descriptors, self.content_dir)
        there: dict[str, Any] = {}

        def lookup(path: str) -> Any:
            made = there.get(path)
            return reader.lookup(path, len(base.diff_ids) - 1) if made is None else thin.as_layer_entry(made)

        context, workdir = Context(str(case.tree), load_ignore(str(case.tree), str(case.file))), "/"
        for instruction in parse(case.file.read_bytes()).stages[0].instructions:
            if instruction.keyword == "WORKDIR":
                workdir = os.path.join(workdir, instruction.args[0])
            if instruction.keyword != "COPY":
                continue
            try:
                found = copy_set(instruction, context, workdir, lookup, owner_lookup=lambda _: b"")
            except OfflineRebuildError:
                return True
            if is_doubtful({"error": found.unsupported}):
                return True
            there.update({**found.parents, **found.entries})
        return False

    def planner(self, case: Case, state: Path) -> Any:
        build = compose.Build(str(case.tree), str(case.file))
        service = compose.Service("app", case.tag, build)
        project = compose.Project(case.name, str(case.folder), ("compose",), (), (service,))
        settings = planner.Settings(str(state), {}, may_write=True, run_time=RUN_TIME)
        return planner.Planner(self.docker, project, settings, store=CaseStore(self.docker, [BASE, case.tag, case.old]))

    def prime(self, case: Case) -> bool:
        try:
            found = self.planner(case, case.folder / "state").prime()
        except OfflineRebuildError as error:
            case.said.append(f"prime: {error}")
            return False
        if not found[0][1]:
            case.said.append(f"prime: {found[0][2]}")
        return bool(found[0][1])

    def make(self, case: Case, state: Path, every_graft: bool) -> dict[str, Any]:
        """Plan and make once. :returns: ``way``, ``start``, the image's ``id`` and snapshot, or ``error``."""
        before = self.fast
        try:
            made = self.planner(case, state)
            plan = made.plan().services[0]
            answer: dict[str, Any] = {"action": plan.action, "way": plan.way, "reasons": list(plan.reasons)}
            answer["start"] = plan.start.line if plan.start else 0
            analyzer = next(iter(made._analyzers.values()))
            answer["fast"] = self.fast > before
            answer["uneven"] = self.uneven(analyzer, answer["fast"])
            if plan.action == "blocked" or (plan.way in ("graft", "build") and not every_graft):
                return answer
            answer["id"] = made.make(plan) if plan.action == "rebuild" else plan.image_before
            answer["made"] = True
        except OfflineRebuildError as error:
            return {"error": f"{error.code}: {error}", "code": error.code}
        except Exception:  # noqa: BLE001  (a defect of the core)
            return {"error": traceback.format_exc(), "code": "traceback"}
        return answer

    def uneven(self, analyzer: Any, fast: bool) -> str:
        """How the fast path and the full one differ for the same tree and time; ``""`` if their layers are the same."""
        if not fast:
            return ""
        one = self.layer(analyzer)
        wanted, kept = analyzer._manifests_of, dict(analyzer._thin)
        analyzer._manifests_of = lambda *_: None
        analyzer._thin.clear()
        two = self.layer(analyzer)
        analyzer._manifests_of, analyzer._thin = wanted, kept
        if one == two:
            return ""
        return f"{self.told(one)} by the fast path, {self.told(two)} by the full one"

    @staticmethod
    def layer(analyzer: Any) -> tuple[str, bytes]:
        layer, why_not = analyzer.thin(analyzer.target)
        if layer is None:
            return why_not, b""
        stream = io.BytesIO()
        thin.write_layer(layer, stream, RUN_TIME)
        return "", stream.getvalue()

    @staticmethod
    def told(made: tuple[str, bytes]) -> str:
        if made[0]:
            return f"none ({made[0]})"
        with tarfile.open(fileobj=io.BytesIO(made[1]), errors="surrogateescape") as tar:
            return repr([(m.name, oct(m.mode), m.uid, m.gid, m.size) for m in tar][:12])


def compare(truth: dict[str, Any], made: dict[str, Any]) -> list[str]:
    found = [
        f"/{path}: {truth['files'].get(path)} in full, {made['files'].get(path)} here"
        for path in sorted({*truth["files"], *made["files"]})
        if truth["files"].get(path) != made["files"].get(path)
    ]
    return found + [
        f"{key}: {truth['config'].get(key)} in full, {made['config'].get(key)} here"
        for key in sorted({*truth["config"], *made["config"]})
        if truth["config"].get(key) != made["config"].get(key)
    ]


class Round:
    """The counts, and every finding."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.maker = Maker()
        self.counts: dict[str, int] = {}
        self.findings: list[dict[str, Any]] = []
        self.untold: dict[str, int] = {}
        self.unbuildable: list[str] = []
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def clock(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(self.seconds.get(name, 0) + now - self._last, 2)
        self._last = now

    def finding(self, case: Case, kind: str, what: Any) -> None:
        self.count(f"finding: {kind}")
        self.findings.append({**case.describe(), "kind": kind, "what": what})
        print(json.dumps(self.findings[-1]), file=sys.stderr, flush=True)

    def batch(self, numbers: range) -> None:
        """Originals, prime, edit, make, truth; then once more on what was made, for some."""
        self.clock("other")
        cases = [Case(self.seed, number) for number in numbers]
        self.clock("trees")
        doubtful = [case for case in cases if self.maker.may_fail(case)]
        bake([case for case in cases if case not in doubtful], "tag", no_cache=False)
        for case in doubtful:
            bake([case], "tag", no_cache=False)
        usable = [case for case in cases if not case.said]
        self.count("drawn", len(cases))
        self.count("unbuildable", len(cases) - len(usable))
        self.unbuildable += [case.said[0][-160:] for case in cases if case.said]
        self.clock("build originals")
        for case in usable:
            self.count("primed", self.maker.prime(case))
        self.clock("prime")
        for number in range(STEPS):
            self.step(usable, f"step {number}")
        chained = [case for case in usable if case.number % 3 == 0 and case.made.get("way") == "assemble"]
        for case in chained:
            self.succeed(case)
        self.step(chained, "chained")
        delete([name for case in cases for name in (case.tag, case.truth, case.old, case.tag + "-made")])
        for case in cases:
            shutil.rmtree(case.folder, ignore_errors=True)
        self.clock("clean")

    def succeed(self, case: Case) -> None:
        """The image that was made becomes the service's; the imported one stays under another name, or goes."""
        old = self.maker.docker.inspect("image", [case.tag])[0]["Id"]
        if case.number % 2:
            tag(case.tag, case.old)
        tag(case.made["id"], case.tag)
        if not case.number % 2:
            delete([old])
        case.edits.append("; ancestor stays" if case.number % 2 else "; ancestor gone")

    def step(self, cases: list[Case], name: str) -> None:
        """Edit every tree (once more), make what follows from it, and hold that against full builds."""
        answers: dict[int, dict[str, Any]] = {}
        for case in cases:
            case.change()
            self.clock("trees")
            modes = {"primed": case.folder / "state", "fresh": case.folder / f"fresh {name}"}
            answers[case.number] = {}
            for mode, state in modes.items():
                answer = self.maker.make(case, state, case.number % 8 == 0 and mode == "primed")
                self.clock("plan and make")
                same = next((a for a in answers[case.number].values() if a.get("id") == answer.get("id")), None)
                if answer.get("made"):
                    answer["seen"] = same["seen"] if same and "seen" in same else driver.snapshot(answer["id"])
                answers[case.number][mode] = answer
                self.clock("snapshots")
                if mode == "primed":
                    case.made = answer
                    if answer.get("way") == "assemble":
                        tag(answer["id"], f"{case.tag}-made")
                delete(left_names())
                self.clock("clean")
        for case in cases:
            case.said = []
        doubtful = [case for case in cases if any(is_doubtful(answer) for answer in answers[case.number].values())]
        bake([case for case in cases if case not in doubtful], "truth", no_cache=True)
        for case in doubtful:
            bake([case], "truth", no_cache=True)
        self.clock("build truths")
        for case in cases:
            self.judge(case, answers[case.number], name)
        self.clock("snapshots")

    def judge(self, case: Case, answers: dict[str, Any], name: str) -> None:  # noqa: PLR0912
        failed = bool(case.said)
        truth = {} if failed else driver.snapshot(case.truth)
        thinly = False
        for mode, answer in answers.items():
            if failed:
                if answer.get("made") and answer["way"] != "":
                    self.finding(case, "made although a build fails", {mode: answer["way"]})
                continue
            if "error" in answer:
                self.finding(case, "error", {mode: answer["error"][-1500:]})
                continue
            way = answer["way"] or answer["action"]
            self.count(f"{mode}: {way}")
            if answer["action"] == "blocked":
                self.finding(case, "blocked", {mode: answer["reasons"]})
            for reason in answer["reasons"]:
                if reason.startswith("no thin layer: "):
                    short = re.sub(r"/\S+", "/...", reason[15:])
                    self.untold[short] = self.untold.get(short, 0) + 1
            if not answer.get("made"):
                continue
            self.count("images compared")
            thinly = thinly or way in ("assemble", "thin graft")
            found = compare(truth, answer["seen"])
            if found:
                self.finding(case, "difference", {mode: way, "fast": answer["fast"], "found": found[:6]})
            if answer["fast"]:
                self.count("by the fast path")
            if answer["uneven"].endswith("full one") and "none (" in answer["uneven"].partition(" by the fast")[2]:
                self.count("fast path where the full one refuses")
            elif answer["uneven"]:
                self.finding(case, "uneven", {mode: answer["uneven"]})
        if failed:
            self.count("edited tree cannot be built")
            return
        one, two = answers["primed"], answers["fresh"]
        alike = one.get("way") == two.get("way") == "assemble" and one["start"] == two["start"]
        if alike and one.get("id") != two.get("id"):
            self.finding(case, "another image with a record", [one.get("id"), two.get("id")])
        self.count("same image with and without a record", bool(alike and one.get("id") == two.get("id")))
        if thinly:
            self.count("cases")
            self.count("chained cases", name == "chained")
        for answer in answers.values():
            answer.pop("seen", None)


def is_doubtful(answer: dict[str, Any]) -> bool:
    """Whether the full build may well fail: it is then built by itself, so that it does not stop the others."""
    text = answer.get("error", "") + " ".join(answer.get("reasons", ()))
    return any(word in text for word in ("copy-source", "goes there", "is no directory", "changes between"))


def make_base() -> None:
    """The base: busybox and users, then a layer of what COPYs will meet: folders, links, odd modes and owners."""
    folder = WORK / "base"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "rootfs.tar", folder / "rootfs.tar")
    with tarfile.open(folder / "more.tar", "w") as tar:
        for name, kind, mode, uid, gid, value in (
            ("srv", "d", 0o755, 0, 0, ""),
            ("srv/data", "d", 0o2775, 3, 4, ""),
            ("srv/data/old.txt", "f", 0o600, 5, 6, "old\n"),
            ("srv/a", "f", 0o644, 0, 0, "one\n"),
            ("srv/link", "l", 0o777, 0, 0, "data"),
            ("srv/sub", "d", 0o700, 0, 0, ""),
            ("opt", "d", 0o755, 0, 0, ""),
            ("opt/real", "d", 0o750, 7, 8, ""),
            ("opt/real/deep", "d", 0o1777, 0, 0, ""),
            ("opt/abs", "l", 0o777, 0, 0, "/opt/real/deep"),
            ("opt/rel", "l", 0o777, 0, 0, "real"),
            ("home", "d", 0o755, 0, 0, ""),
            ("home/app", "d", 0o700, 1000, 1001, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type = {"d": tarfile.DIRTYPE, "f": tarfile.REGTYPE, "l": tarfile.SYMTYPE}[kind]
            info.mode, info.uid, info.gid, info.linkname = mode, uid, gid, value if kind == "l" else ""
            data = value.encode() if kind == "f" else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    Path(folder, "Dockerfile").write_text('FROM scratch\nADD rootfs.tar /\nADD more.tar /\nENV A=1\nCMD ["base"]\n')
    driver.docker("build", "--network=none", "-t", BASE, str(folder), DOCKER_BUILDKIT="1")


def carries_any_name() -> bool:
    """Whether ``docker build`` takes a name that is not UTF-8: later BuildKits send names in a protobuf string."""
    folder = WORK / "names"
    (folder / "tree").mkdir(parents=True, exist_ok=True)
    (folder / "tree" / ODD_NAME).touch()
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY tree /\n")
    try:
        driver.docker("build", "--network=none", str(folder), DOCKER_BUILDKIT="1")
    except RuntimeError as error:
        if "invalid UTF-8" not in str(error):
            raise
        return False
    return True


def main() -> None:
    job = json.load(sys.stdin)
    WORK.mkdir(parents=True, exist_ok=True)
    os.umask(0o022)
    make_base()
    if not carries_any_name():  # there is no truth to compare with
        NAMES[NAMES.index(ODD_NAME)] = "bad-ÿþ"
    play = Round(job["seed"])
    started, number = time.monotonic(), job.get("first", 0)
    last = number + job.get("most", 6 * job["cases"])
    end = started + job.get("seconds", 3000)
    while play.counts.get("cases", 0) < job["cases"] and number < last and time.monotonic() < end:
        play.batch(range(number, min(number + job["batch"], last)))
        number += job["batch"]
        print(f"{number} drawn: {play.counts}, {play.seconds}", file=sys.stderr, flush=True)
    info = play.maker.docker.info()
    report = {
        "engine": info.version,
        "store": info.store,
        "counts": play.counts,
        "findings": play.findings,
        "no_thin_layer": dict(sorted(play.untold.items(), key=lambda pair: -pair[1])),
        "unbuildable": play.unbuildable,
        "seconds": play.seconds,
        "total": round(time.monotonic() - started, 1),
        "load": os.getloadavg(),
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
