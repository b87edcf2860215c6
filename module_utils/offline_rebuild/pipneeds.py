"""What the ``pip install`` of a RUN asks for: read from the Dockerfile, the build context and the image, nothing run.

In doubt nothing is said: what cannot be read here, pip says in the build.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import shlex
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from .errors import OfflineRebuildError
from .layers import LayerReader
from .reuse import Analyzer, StageReuse
from .stage import State, Step, dispatch, start_state
from .wheels import Install, Python, Requirement, changes, installs, libc_of, normal, read_requirements

__all__ = ["Needs", "Place", "installed", "pip_needs"]

#: Bytes of an image that are not gone through for a remedy alone.
_BIG = 1 << 30
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "arm": "armv7l", "386": "i686"}


@dataclass(frozen=True)
class Place:
    """A RUN that needs packages.

    :param cut: where the build of its stage starts; ``number``: its own place in the stage.
    """

    analyzer: Analyzer
    stage: StageReuse
    cut: int
    number: int

    @property
    def step(self) -> Step:
        """:returns: the instruction."""
        return self.stage.timeline.steps[self.number]

    @property
    def top(self) -> int:
        """:returns: the uppermost layer that the build starts from, of the image that :meth:`reader` reads; or -1."""
        alignment = self.stage.alignment
        if alignment is None:
            return len(self.stage.base.diff_ids) - 1 if self.stage.base is not None else -1
        history = alignment.image.history[: alignment.positions[min(self.cut, alignment.matched)]]
        return sum(1 for entry in history if entry.layer is not None) - 1

    def reader(self) -> Optional[LayerReader]:
        """:returns: the reader of the image that the build of the stage starts from."""
        image = self.stage.alignment.image if self.stage.alignment is not None else self.stage.base
        return self.analyzer.reader(image) if image is not None else None

    @property
    def cheap(self) -> bool:
        """:returns: whether files of that image are read without going through a big archive."""
        image = self.stage.alignment.image if self.stage.alignment is not None else self.stage.base
        reader = self.reader()
        if image is None or reader is None:
            return False
        return int(image.inspect.get("Size") or 0) <= _BIG or reader.in_place

    def read(self, path: str) -> Optional[bytes]:
        """:returns: a file of the image as it is where the build starts; ``None`` if it is not there."""
        reader = self.reader()
        return reader.content(path.lstrip("/"), self.top) if reader is not None and self.top >= 0 else None

    def look(self) -> Tuple[State, Dict[str, str]]:
        """:returns: the state in which the RUN runs; and what COPYs before it have put where: path in the image to path
        in the context."""
        alignment = self.stage.alignment
        base = self.stage.base.config if self.stage.base is not None else {}
        state = alignment.states[0].copy() if alignment is not None else start_state(base)
        copied: Dict[str, str] = {}
        for place, step in enumerate(self.stage.timeline.steps[: self.number]):
            outcome = dispatch(state, step, self.analyzer.build, self.analyzer.outer)
            if step.kind == "context" and place in self.stage.manifests:
                folder = str(state.config.get("WorkingDir") or "/")
                names = [name for name, entry in self.stage.manifests[place].items() if entry.type == "file"]
                sources, dest = outcome.expanded.sources, outcome.expanded.dest
                copied.update(_copied(sources, posixpath.join(folder, dest), dest, names))
        return state, copied


def _copied(sources: Tuple[str, ...], target: str, dest: str, names: List[str]) -> Dict[str, str]:
    """:returns: where COPY puts files of the context: path in the image to path in the context."""
    found: Dict[str, str] = {}
    into = dest.endswith(("/", ".")) or len(sources) > 1
    for source in sources:
        root = posixpath.normpath(source.lstrip("/") or ".")
        for name in names:
            if root == ".":
                inner = name
            elif name.startswith(root + "/"):
                inner = name[len(root) + 1 :]
            elif name == root and not into:
                inner = ""
            else:
                inner = posixpath.basename(name)
            found[posixpath.normpath(posixpath.join(target, inner))] = name
    return found


@dataclass(frozen=True)
class Needs:
    """What a RUN installs with pip.

    :param changed: how that differs from what the image was made of, e.g. ``requirements.txt: +numpy==2.1.0``.
    :param python: the Python it is installed for, if that is known.
    :param unclear: there is more than could be read.
    :param command: gets all of it on a connected machine, run in the build context.
    """

    requirements: Tuple[Requirement, ...] = ()
    changed: str = ""
    python: Optional[Python] = None
    unclear: bool = False
    command: str = ""
    program: str = ""


def installed(place: Place, needs: Needs) -> Dict[str, str]:
    """:returns: name to version of the packages that the image has for this Python where the build starts."""
    reader, python = place.reader(), needs.python
    if reader is None or python is None or place.top < 0:
        return {}
    version = f"python3.{python.minor}"
    folders = [f"usr/local/lib/{version}/site-packages", f"usr/local/lib/{version}/dist-packages"]
    folders += ["usr/lib/python3/dist-packages", f"usr/lib/{version}/site-packages"]
    if needs.program.startswith("/"):  # of a virtual environment
        folders.append(posixpath.normpath(f"{needs.program}/../../lib/{version}/site-packages").lstrip("/"))
    found: Dict[str, str] = {}
    for folder in folders:
        for path in reader.listing(folder, place.top):
            match = re.fullmatch(
                r"([^/]+?)-([^/-]+)(?:-py3[^/]*)?\.(?:dist|egg)-info(?:/METADATA)?", path[len(folder) + 1 :]
            )
            if match:
                found[normal(match.group(1))] = match.group(2)
    return found


def pip_needs(place: Place) -> Needs:
    """:returns: what a RUN asks pip for, as far as it can be read."""
    try:
        return _pip_needs(place)
    except OfflineRebuildError:  # a layer that cannot be read: it is not what blocks the service
        return Needs(unclear=True)


def _pip_needs(place: Place) -> Needs:
    step = place.step
    words = list(step.instruction.args) if step.instruction.is_json else None
    script = "\n".join([*([] if words else step.instruction.args), *(d.content for d in step.instruction.heredocs)])
    found = installs(words, re.sub(r"^\s*<<\S+\s*$", "", script, flags=re.MULTILINE))
    if not found:
        return Needs(unclear=True)
    state, copied = place.look()
    folder = str(state.config.get("WorkingDir") or "/")
    wanted: List[Requirement] = []
    said: List[str] = []
    arguments: List[str] = []
    unclear = any(one.unclear for one in found)
    for one in found:
        asked, _ = read_requirements("\n".join(one.words))
        wanted += asked
        arguments += [shlex.quote(word) for word in one.words if read_requirements(word)[0]]
        for file in one.files:
            path = posixpath.normpath(posixpath.join(folder, file))
            new = _from_file(place, path, copied, [])
            unclear = unclear or new is None
            if new is not None:
                wanted += new
                arguments.append(f"-r {shlex.quote(copied[path])}")
                said += _difference(place, path, copied[path], new)
    python = python_of(place, state, found[0])
    flags = " ".join(python.download_flags()) if python is not None else ""
    command = " ".join(["pip download --dest wheels", flags, *arguments]) if python is not None and arguments else ""
    return Needs(tuple(wanted), "; ".join(said), python, unclear, " ".join(command.split()), found[0].program)


def _from_file(place: Place, path: str, copied: Dict[str, str], above: List[str]) -> Optional[List[Requirement]]:
    """:returns: the requirements of a file of the context and of those that it names; ``None`` if one is not there."""
    if path not in copied or path in above:
        return None
    with contextlib.suppress(OSError, ValueError):
        whole = posixpath.join(place.analyzer.context.given_root, copied[path])
        with open(whole, encoding="utf-8", errors="replace") as stream:
            wanted, nested = read_requirements(stream.read(), copied[path])
        for name in nested:
            inner = _from_file(place, posixpath.normpath(posixpath.join(path, "..", name)), copied, [*above, path])
            if inner is None:
                return None
            wanted += inner
        return wanted
    return None


def _difference(place: Place, path: str, name: str, new: List[Requirement]) -> List[str]:
    """What has changed in a file, as the ancestor still has it; nothing if it has none there."""
    alignment, reader = place.stage.alignment, place.reader()
    if alignment is None or reader is None:
        return []
    old = reader.content(path.lstrip("/"), len(alignment.image.diff_ids) - 1)
    if old is None:
        return []
    wanted, _ = read_requirements(old.decode("utf-8", "replace"))
    listed = changes(wanted, [one for one in new if one.file == name])
    return [f"{name}: {', '.join(listed)}"] if listed else []


def python_of(place: Place, state: State, install: Install) -> Optional[Python]:
    """The CPython that an install is for: the one that the program is, or that its first line names."""
    reader = place.reader()
    if reader is None or place.top < 0:
        return None
    real = _program(reader, place.top, install.program, state.env.get("PATH", ""))
    if real is not None and not re.search(r"/python[\d.]*$", "/" + real):
        text = reader.content(real, place.top) or b""
        line = re.match(rb"#!\s*(\S+)(?:[ \t]+(\S+))?", text)
        if line is None:
            return None
        named = line.group(2) if line.group(1).endswith(b"/env") and line.group(2) else line.group(1)
        real = _program(reader, place.top, named.decode("utf-8", "replace"), state.env.get("PATH", ""))
    version = re.search(r"/python3\.(\d+)$", "/" + (real or ""))
    if version is None:
        return None
    parts = place.analyzer.build.platform.split("/")
    machine = _MACHINES.get(parts[1], parts[1])
    musl = reader.lookup(reader.resolve(f"lib/ld-musl-{machine.replace('armv7l', 'armhf')}.so.1", place.top), place.top)
    release = place.read("etc/os-release") or b""
    libc, least = libc_of(release.decode("utf-8", "replace"), musl is not None)
    return Python(int(version.group(1)), machine, libc, least)


def _program(reader: LayerReader, top: int, name: str, path: str) -> Optional[str]:
    """:returns: the file that a program's name stands for, links followed; ``None`` if it is not there."""
    folders = [""] if name.startswith("/") else path.split(":")
    for folder in folders:
        real = reader.resolve(posixpath.join(folder, name).lstrip("/"), top)
        entry = reader.lookup(real, top)
        if entry is not None and entry.type == "file":
            return real
    return None
