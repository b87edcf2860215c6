"""What the usual Docker guides advise on making builds quick and images small, as rules with lines and the fix.

Pure: a Dockerfile, the entries of its build context and the name of the ignore file go in, pieces of advice come out.
A rule speaks only where it is certain; what it cannot know (a variable of an absent base image, say) makes it silent.
Only stages that the target needs are looked at. No value of an ARG or ENV is ever in a text.

``docker build --check`` and hadolint have rules of the same meaning for some of these (:data:`SAME`). Ours are there
because most air-gapped hosts have neither: Docker's check came with Engine 27, hadolint is on the control node if
anywhere. Where a tool says the same of the same line, it is said once (:func:`merge`).
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import asdict, dataclass
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from .errors import OfflineRebuildError
from .inputs import EVERYTHING, select, sources_of
from .instructions import Instruction
from .release import is_secret_name
from .stage import (
    BuildInput,
    Step,
    Timeline,
    dispatch,
    global_args,
    scratch_config,
    start_state,
    target_index,
    timelines,
)

__all__ = ["SAME", "Advice", "advise", "lines", "merge"]

#: Our codes, and those of hadolint (``DL``) and of ``docker build --check`` that mean the same.
SAME: Mapping[str, Tuple[str, ...]] = {
    "copy-order": (),
    "no-ignore-file": (),
    "context-ballast": (),
    "context-secret": (),
    "merge-runs": ("DL3059",),
    "base-tag": ("DL3006", "DL3007"),
    "apt-lists": ("DL3009",),
    "build-tools": ("DL3067",),
    "whole-stage": ("DL3067",),
    "secret": ("DL3064", "SecretsUsedInArgOrEnv"),
}
_OWN = "offline-rebuild"


@dataclass(frozen=True)
class Advice:
    """One piece of advice.

    :param code: a key of :data:`SAME`, or a rule's name of the tool in ``source``.
    :param file: the Dockerfile, or the folder of the build context, as the operator knows it.
    :param line: 1-based line in ``file``; 0 where the whole file or folder is meant.
    :param text: what is found, without a value of an ARG or ENV.
    :param fix: what to do; lines to write where there are such.
    :param size: bytes that it concerns; 0 where that is not known.
    :param source: ``offline-rebuild``, ``docker build --check`` or ``hadolint``.
    """

    code: str
    file: str
    line: int
    text: str
    fix: str = ""
    size: int = 0
    source: str = _OWN

    def to_dict(self) -> Dict[str, Any]:
        """:returns: the fields as a JSON-ready mapping, and under ``says`` all of it in one line."""
        return {**asdict(self), "says": lines([self])[0]}


@dataclass(frozen=True)
class _Seen:
    """A step with what is known where it stands: its instruction expanded, the environment and the working folder."""

    step: Step
    instruction: Instruction
    env: Mapping[str, str]
    workdir: str
    expanded: bool = True


def advise(
    build: BuildInput,
    entries: Mapping[str, Tuple[str, int]],
    ignore_file: str,
    context: str,
    ignore_name: str = ".dockerignore",
) -> List[Advice]:
    """What can be said of one build.

    :param entries: of the build context, what the ignore file leaves: path to (type as in ``Entry.type``, bytes).
    :param ignore_file: the ignore file in use, as the operator knows it; ``""`` for none.
    :param context: the context's folder, as the operator knows it.
    :param ignore_name: the ignore file to write where there is none.
    :returns: the advice, by file and line.
    :raises OfflineRebuildError: ``no-such-stage``, ``dockerfile-syntax``, as for a plan.
    """
    look = _Look(build, entries, ignore_file, context, ignore_name)
    found = [
        *look.base_tags(),
        *look.secrets(),
        *look.copy_order(),
        *look.runs(),
        *look.whole_stages(),
        *look.ballast(),
    ]
    return sorted(dict.fromkeys(found), key=lambda one: (one.file, one.line, one.code, one.text))


def merge(ours: Iterable[Advice], theirs: Iterable[Advice]) -> List[Advice]:
    """:returns: all advice by file and line, without what a tool says of a line that ours says of it too."""
    own = list(dict.fromkeys(ours))
    said = {(one.file, one.line, code) for one in own for code in SAME.get(one.code, ())}
    said |= {(one.file, 0, code) for one in own if one.code == "merge-runs" for code in SAME[one.code]}  # at each RUN
    other = [
        one for one in dict.fromkeys(theirs) if not {(one.file, one.line, one.code), (one.file, 0, one.code)} & said
    ]
    return sorted(own + other, key=lambda one: (one.file, one.line, one.source != _OWN, one.code, one.text))


def lines(advice: Iterable[Advice]) -> List[str]:
    """:returns: one line for an operator for each piece."""
    found = []
    for one in advice:
        place = one.file + (f":{one.line}" if one.line else "")
        size = f" ({_bytes(one.size)})" if one.size else ""
        fix = f" Fix: {one.fix}" if one.fix else ""
        found.append(f"{place}: {one.text}{size} [{one.code}]{fix}")
    return found


def _bytes(size: int) -> str:
    """``1536`` -> ``1.5 kB``; decimal units, as docker prints them."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"


# ---------------------------------------------------------------------------------------------------------------------
# What installs packages, from which files

#: A command that installs what a file lists: the pattern, and the patterns of the files it reads.
_INSTALLS: Tuple[Tuple["re.Pattern[str]", Tuple[str, ...]], ...] = tuple(
    (re.compile(pattern), tuple(files.split()))
    for pattern, files in (
        (r"\bpip3?\s+install\b[^&|;]*\s(?:-r|--requirement)[\s=]*\S", "*requirements*.txt *requirements*.in"),
        (r"\buv\s+(?:pip\s+(?:install|sync)\b[^&|;]*requirements|sync\b)", "*requirements*.txt pyproject.toml uv.lock"),
        (r"\bpoetry\s+install\b", "pyproject.toml poetry.lock poetry.toml"),
        (r"\bpipenv\s+(?:install|sync)\b", "Pipfile Pipfile.lock"),
        (r"\bnpm\s+(?:ci|i|install)\b(?!\s+(?:-g|--global))", "package.json package-lock.json npm-shrinkwrap.json"),
        (r"\byarn(?:\s+install\b|\s*(?:$|&&|;))", "package.json yarn.lock"),
        (r"\bpnpm\s+(?:i|install|fetch)\b", "package.json pnpm-lock.yaml pnpm-workspace.yaml"),
        (r"\bbundle\s+install\b", "Gemfile Gemfile.lock"),
        (r"\bcomposer\s+install\b", "composer.json composer.lock"),
        (r"\bgo\s+mod\s+(?:download|vendor)\b", "go.mod go.sum"),
        (r"\bcargo\s+fetch\b", "Cargo.toml Cargo.lock"),
        (r"\bdotnet\s+restore\b", "*.csproj *.sln nuget.config"),
        (r"\bmvnw?\s[^&|;]*dependency:", "pom.xml"),
    )
)  # fmt: skip
#: Files that may stand beside them without being sources.
_SETTINGS = (
    ".npmrc .yarnrc .yarnrc.yml .nvmrc .node-version .python-version pip.conf *constraints*.txt nuget.config "
    "settings.xml"
).split()
_APT = re.compile(r"\bapt(?:-get)?\s+(?:-\S+\s+)*(?:update|install|upgrade|dist-upgrade)\b")
_APT_INSTALL = re.compile(r"\bapt(?:-get)?\s+(?:-\S+\s+)*install\b([^&|;]*)")
_APK_INSTALL = re.compile(r"\bapk\s+(?:-\S+\s+)*add\b([^&|;]*)")
_LISTS_GONE = re.compile(r"\brm\s[^&|;]*/var/lib/apt(?:/lists)?\b|\bdistclean\b")
_TOOLS = re.compile(
    r"^(?:build-essential|build-base|alpine-sdk|gcc|g\+\+|clang|make|cmake|ninja-build|autoconf|automake|pkg-config"
    r"|cargo|rustc|golang(?:-go)?|maven|gradle|default-jdk|[a-z0-9][a-z0-9.+-]*-dev)$"
)
_REMOVED = re.compile(r"\b(?:apt(?:-get)?\s+(?:-\S+\s+)*(?:purge|remove|autoremove)|apk\s+del)\b")
#: Directories that do not belong into a build context, by their name.
_BALLAST: Mapping[str, str] = {
    ".git": "the repository's history",
    ".hg": "the repository's history",
    ".svn": "the repository's history",
    "node_modules": "installed packages",
    "__pycache__": "compiled Python files",
}
_PRIVATE = re.compile(r"^(?:id_(?:rsa|dsa|ecdsa|ed25519)|\.netrc|\.pypirc|\.pgpass|\.env(?:\..+)?)$")
_HARMLESS = re.compile(r"^\.env\..*(?:example|sample|template|dist|defaults)$")


def _installs(command: str) -> Tuple[str, ...]:
    """:returns: the patterns of the files that a command installs from; nothing where it installs from none."""
    return tuple(name for pattern, names in _INSTALLS if pattern.search(command) for name in names)


def _matches(path: str, patterns: Iterable[str]) -> bool:
    import fnmatch

    name = posixpath.basename(path)
    parents = posixpath.dirname(path)
    in_folder = parents.endswith("requirements") and name.endswith((".txt", ".in"))
    return in_folder or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _command(instruction: Instruction) -> str:
    """:returns: what a RUN runs, heredocs included, in one line."""
    text = " ".join(instruction.args) + " " + " ".join(heredoc.content for heredoc in instruction.heredocs)
    return " ".join(text.split())


class _Look:
    """One build, looked at; each public method is a rule or a few that see the same."""

    def __init__(
        self,
        build: BuildInput,
        entries: Mapping[str, Tuple[str, int]],
        ignore_file: str,
        context: str,
        ignore_name: str,
    ) -> None:
        self.build = build
        self.file = build.dockerfile.file
        self.ignore_file = ignore_file
        self.context = context
        self.ignore_name = ignore_name
        self.kinds = {path: kind for path, (kind, _) in entries.items()}
        self.sizes = {path: size for path, (_, size) in entries.items()}
        self.timelines = timelines(build)
        self.outer = global_args(build)
        self.target = self.timelines[target_index(build)]
        self.needed = self._needed()
        self._walks: Dict[int, Tuple[_Seen, ...]] = {}
        self._chosen: Dict[Tuple[str, ...], List[str]] = {}

    def _needed(self) -> List[Timeline]:
        """The stages that the target is made of, itself included, in the order of the file."""
        found: Set[int] = set()
        waiting = [self.target.index]
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                waiting.extend(other for step in self.timelines[index].steps for other in step.stages)
        return [self.timelines[index] for index in sorted(found)]

    def _walk(self, timeline: Timeline) -> Tuple[_Seen, ...]:
        """The steps of a stage, with what is known at each. The base's own environment is not."""
        if timeline.index not in self._walks:
            state = start_state(scratch_config(self.build.platform))
            seen: List[_Seen] = []
            for step in timeline.steps:
                env = {key: value for key, value in state.env.items() if key != "PATH"}
                workdir = str(state.config.get("WorkingDir") or "/")
                try:
                    made = dispatch(state, step, self.build, self.outer).expanded
                    seen.append(_Seen(step, made, env, workdir))
                except OfflineRebuildError:  # a variable that only the base image has
                    seen.append(_Seen(step, step.instruction, env, workdir, expanded=False))
            self._walks[timeline.index] = tuple(seen)
        return self._walks[timeline.index]

    def _own(self) -> Iterator[Tuple[Timeline, _Seen]]:
        """Each instruction of the stages that are needed, once."""
        done: Set[int] = set()
        for timeline in self.needed:
            for seen in self._walk(timeline):
                if id(seen.step.instruction) not in done:
                    done.add(id(seen.step.instruction))
                    yield timeline, seen

    def _takes(self, seen: _Seen) -> List[str]:
        """:returns: the context's paths that a step takes."""
        sources = sources_of(seen.step, self.build.lexer, seen.env)
        if sources not in self._chosen:
            self._chosen[sources] = select(self.kinds, sources)
        return self._chosen[sources]

    def _make(self, code: str, line: int, text: str, fix: str, size: int = 0) -> Advice:
        return Advice(code, self.file, line, text, fix, size)

    # -- rules --------------------------------------------------------------------------------------------------------

    def base_tags(self) -> Iterator[Advice]:
        """A base with no tag, or ``latest``: nobody can say later which one it was."""
        named: List[Tuple[int, str]] = []
        for timeline in self.needed:
            named.append((timeline.from_line, timeline.base))
        for _, seen in self._own():
            line = seen.step.instruction.line
            if seen.step.kind == "image":
                named.append((line, str(seen.step.source)))
            named += [(line, str(value)) for kind, value in seen.step.mounts if kind == "image"]
        for line, name in named:
            if name == "scratch" or "@" in name or "$" in name:
                continue
            _, colon, tag = name.rpartition("/")[2].partition(":")
            if colon and tag != "latest":
                continue
            how = "has the tag latest" if colon else "has no tag, which means latest"
            bare = name[: -len(":latest")] if colon else name
            fix = f"name a version, for example {bare}:1.2, or a digest"
            yield self._make("base-tag", line, f"the image {name} {how}: which version that was, nobody can say", fix)

    def secrets(self) -> Iterator[Advice]:
        """ARG and ENV whose name says secret: the value lies in the image's history or configuration."""
        for _, seen in self._own():
            made = seen.step.instruction
            if made.keyword not in ("ARG", "ENV"):
                continue
            for name, value in made.pairs:
                if not is_secret_name(name) or re.search(r"(?i)public|_(?:file|path)$", name):
                    continue
                if made.keyword == "ENV" and not value:
                    continue
                where = "history" if made.keyword == "ARG" else "configuration"
                yield self._make(
                    "secret",
                    made.line,
                    f"{made.keyword} {name}: its value can be read in the image's {where}",
                    f"for a build: RUN --mount=type=secret,id={name.lower()}; for the service: environment or secrets "
                    "in the compose file",
                )

    def copy_order(self) -> Iterator[Advice]:
        """Sources copied ahead of the command that installs packages: each edit then installs them again."""
        for timeline in self.needed:
            copies: List[_Seen] = []
            for seen in self._walk(timeline):
                if seen.step.stage != timeline.index:
                    continue
                if seen.step.kind == "context":
                    copies.append(seen)
                elif seen.step.kind == "run":
                    yield from self._order(copies, seen)

    def _order(self, copies: Sequence[_Seen], run: _Seen) -> Iterator[Advice]:
        patterns = _installs(_command(run.step.instruction))
        if not patterns:
            return
        for copy in copies:
            sources = sources_of(copy.step, self.build.lexer, copy.env)
            taken = [path for path in self._takes(copy) if self.kinds[path] != "dir"]
            given = sorted({path for path in taken if _matches(path, patterns)})
            extra = [path for path in taken if not _matches(path, (*patterns, *_SETTINGS))]
            broad = any(path not in {posixpath.normpath(source).lstrip("/") for source in sources} for path in extra)
            if not given or not extra or not broad or (EVERYTHING in sources and "$" in copy.step.instruction.text):
                continue
            top = min(path.count("/") for path in given)
            first = " ".join(path for path in given if path.count("/") == top)
            line, after = copy.step.instruction.line, run.step.instruction.line
            yield self._make(
                "copy-order",
                line,
                f"the sources are copied here, ahead of the packages that line {after} installs: each edit installs "
                "them again, which cannot work with no network",
                f"write ahead of it `COPY {first} ./` and line {after}, and this line after both",
            )
            return

    def runs(self) -> Iterator[Advice]:
        """What RUN leaves in the layers of the image: package lists, build tools, and layers of its own."""
        before: Optional[_Seen] = None
        first: Optional[_Seen] = None
        count = 0
        steps = self._walk(self.target)
        for seen in (*steps, None):
            made = seen.step.instruction if seen is not None else None
            if made is not None and made.keyword == "RUN" and seen is not None:
                yield from self._apt(seen)
                if before is not None and before.step.instruction.flags == made.flags and not made.heredocs:
                    count += 1
                    before = seen
                    continue
            if count > 1 and first is not None and before is not None:
                at, end = first.step.instruction.line, before.step.instruction.line
                yield self._make(
                    "merge-runs",
                    self._second(steps, first),
                    f"lines {at} to {end} are {count} RUNs in a row, each with a layer of its own",
                    "join them with && (what one removes is then not in the image)",
                )
            is_run = made is not None and made.keyword == "RUN" and not made.heredocs
            first = before = seen if is_run else None
            count = 1 if is_run else 0

    @staticmethod
    def _second(steps: Sequence[_Seen], first: _Seen) -> int:
        """:returns: the line of the step after ``first``: the place that hadolint names too."""
        return steps[next(place for place, seen in enumerate(steps) if seen is first) + 1].step.instruction.line

    def _apt(self, seen: _Seen) -> Iterator[Advice]:
        made = seen.step.instruction
        command = _command(made)
        mounted = any(
            mount.type in ("cache", "tmpfs") and mount.target.rstrip("/") in ("/var/lib/apt", "/var/lib/apt/lists")
            for mount in made.mounts
        )
        if _APT.search(command) and not _LISTS_GONE.search(command) and not mounted:
            yield self._make(
                "apt-lists",
                made.line,
                "the package lists of apt stay in this layer",
                "end this RUN with && rm -rf /var/lib/apt/lists/*",
            )
        found = _APT_INSTALL.findall(command) + _APK_INSTALL.findall(command)
        packages = [re.split(r"[=<>~]", word)[0] for words in found for word in words.split()]
        tools = list(dict.fromkeys(name for name in packages if _TOOLS.match(name)))
        if tools and not _REMOVED.search(command):
            yield self._make(
                "build-tools",
                made.line,
                f"build tools stay in the image: {', '.join(tools)}",
                "build in a stage of its own and COPY --from it what the service needs, or remove them in this RUN",
            )

    def whole_stages(self) -> Iterator[Advice]:
        """``COPY --from`` of the folder in which another stage was built: sources and build tools come along."""
        for seen in self._walk(self.target):
            if seen.step.kind != "stage":
                continue
            origin = self._walk(self.timelines[seen.step.source])
            built = {
                other.workdir
                for place, other in enumerate(origin)
                if other.step.kind == "context" and any(later.step.kind == "run" for later in origin[place:])
            }
            if not any(other.step.kind == "run" for other in origin):
                continue
            for source in seen.instruction.sources:
                path = posixpath.normpath("/" + source.lstrip("/"))
                if path == "/" or path in built - {"/"}:
                    name = self.build.dockerfile.stages[seen.step.source].name or str(seen.step.source)
                    what = "the whole file system" if path == "/" else f"all of {path}"
                    yield self._make(
                        "whole-stage",
                        seen.step.instruction.line,
                        f"{what} of stage {name} is copied, with its sources and what only the build needs",
                        "copy only what the service runs with, for example the folder that the build writes",
                    )

    # -- the build context --------------------------------------------------------------------------------------------

    def ballast(self) -> Iterator[Advice]:
        """What lies in the build context and need not, with its bytes; and whether there is an ignore file at all."""
        takers: Dict[str, int] = {}
        reads = broad = False
        for _, seen in self._own():
            if seen.step.kind != "context" and not any(kind == "context" for kind, _ in seen.step.mounts):
                continue
            reads = True
            for path in self._takes(seen):
                broad = broad or self.kinds[path] == "dir" or "/" in path
                takers.setdefault(path, seen.step.instruction.line)
        if not reads:
            return
        if not self.ignore_file and len(takers) > 1:
            size = sum(self.sizes.values())
            yield Advice(
                "no-ignore-file",
                self.context,
                0,
                "there is no ignore file: all of the folder is the build context",
                f"write {self.ignore_name}, with .git, the Dockerfile and all else that no build needs",
                size,
            )
        for code, what, pattern, paths in self._heaps():
            size = sum(self.sizes[path] for path in paths)
            line = next((takers[path] for path in paths if path in takers), 0)
            goes = f"goes into the image by line {line} of {self.file}" if line else "is in the build context"
            where = self.ignore_file or self.ignore_name
            yield Advice(code, self.context, 0, f"{what} {goes}", f"add the line {pattern} to {where}", size)

    def _heaps(self) -> Iterator[Tuple[str, str, str, List[str]]]:
        """What does not belong there: code, words, the ignore pattern, and the paths."""
        heaps: Dict[Tuple[str, str, str], List[str]] = {}
        venvs = sorted(posixpath.dirname(path) for path in self.kinds if path.endswith("/pyvenv.cfg"))
        for path, kind in self.kinds.items():
            parts = path.split("/")
            deep = next((place for place, part in enumerate(parts) if part in _BALLAST), None)
            venv = next((folder for folder in venvs if path == folder or path.startswith(folder + "/")), None)
            if venv is not None:
                key = ("context-ballast", f"{venv} (a Python virtual environment)", venv)
            elif deep is not None and (deep < len(parts) - 1 or kind == "dir"):
                name = parts[deep]
                at = "/".join(parts[: deep + 1])
                pattern = name if at == name and name.startswith(".") else f"**/{name}"
                key = ("context-ballast", f"{name} ({_BALLAST[name]})", pattern)
            elif kind == "file" and _PRIVATE.match(parts[-1]) and not _HARMLESS.match(parts[-1]):
                key = ("context-secret", f"{path} (it looks like secrets)", path)
            else:
                continue
            heaps.setdefault(key, []).append(path)
        for (code, what, pattern), paths in heaps.items():
            yield code, what, pattern, paths
