"""Whether a folder of Python packages can serve an install, judged by names, versions, tags, hashes and metadata.

No resolver: what is said to be missing is missing whatever pip decides, and what is not found out here, pip finds out
in the build, which comes before anything that serves is touched. Pure but for reading wheels.

Rules: packaging.python.org/specifications: binary-distribution-format (names, tags), version-specifiers (PEP 440),
dependency-specifiers (markers), platform-compatibility-tags (manylinux, musllinux); requirements files as pip has them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import zipfile
from dataclasses import dataclass, replace
from email.parser import Parser
from types import MappingProxyType
from typing import Dict, FrozenSet, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

__all__ = ["Install", "Python", "Requirement", "changes", "installs", "lacking", "read_requirements"]

_SDIST = re.compile(r"(?P<name>.+)-(?P<version>[^-]+)\.(?:tar\.gz|tar\.bz2|zip)$")
_VERSION = re.compile(
    r"""v?(?:(?P<epoch>\d+)!)?(?P<release>\d+(?:\.\d+)*)
    (?:[-_.]?(?P<pre>a|alpha|b|beta|c|rc|pre|preview)[-_.]?(?P<pren>\d*))?
    (?:-(?P<post1>\d+)|[-_.]?(?:post|rev|r)[-_.]?(?P<post2>\d*))?
    (?:[-_.]?(?P<dev>dev)[-_.]?(?P<devn>\d*))?
    (?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?$""",
    re.IGNORECASE | re.VERBOSE,
)
_SPECIFIER = re.compile(r"(===|==|~=|!=|<=|>=|<|>)\s*([^\s,;()]+)")
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[(?P<extras>[^\]]*)\])?\s*"
    r"(?P<specs>\(?\s*(?:(?:===|==|~=|!=|<=|>=|<|>)\s*[^\s,;()]+\s*,?\s*)*\)?)\s*(?:;(?P<marker>.*))?$"
)
#: Options of ``pip install`` that a value follows.
_VALUED = frozenset(
    """-r --requirement -c --constraint -i --index-url --extra-index-url -f --find-links -t --target --prefix --root
    --src --cache-dir --timeout --retries --trusted-host --cert --client-cert --proxy --platform --python-version
    --abi --implementation --no-binary --only-binary --progress-bar --root-user-action --report --upgrade-strategy
    -e --editable --config-settings -C --global-option --log --python --exists-action --use-feature
    --use-deprecated -b""".split()
)
#: glibc's minor version by distribution and release, as far as wheels care.
_GLIBC = {
    "debian 10": 28, "debian 11": 31, "debian 12": 36, "debian 13": 41, "ubuntu 20.04": 31, "ubuntu 22.04": 35,
    "ubuntu 24.04": 39, "almalinux 8": 28, "rocky 8": 28, "rhel 8": 28, "almalinux 9": 34, "rocky 9": 34, "rhel 9": 34,
}  # fmt: skip
_LEGACY = {"manylinux1": 5, "manylinux2010": 12, "manylinux2014": 17}
#: The manylinux versions that wheels are published for.
_PUBLISHED = (17, 24, 26, 27, 28, 31, 34, 35, 39)


@dataclass(frozen=True)
class Python:
    """The Python that an image installs for: CPython ``3.minor``.

    :param machine: as wheels name it, e.g. ``x86_64``.
    :param libc: ``glibc``, ``musl`` or ``""`` (not known).
    :param libc_minor: its minor version; 0 if that is not known.
    """

    minor: int
    machine: str
    libc: str = "glibc"
    libc_minor: int = 0

    def __str__(self) -> str:
        libc = {"glibc": f"glibc 2.{self.libc_minor}", "musl": f"musl 1.{self.libc_minor}"}.get(self.libc, "")
        return f"Python 3.{self.minor}, linux {self.machine}" + (f", {libc}" if libc and self.libc_minor else "")

    def fits(self, tags: Tuple[str, str, str]) -> bool:
        """:returns: whether a wheel with these tags (python, abi, platform; each may be several, with dots) fits."""
        pythons, abis, platforms = (part.split(".") for part in tags)
        return any(self._fits_platform(p) for p in platforms) and any(
            self._fits_python(python, abi) for python in pythons for abi in abis
        )

    def _fits_python(self, python: str, abi: str) -> bool:
        found = re.fullmatch(r"(py|cp)3(\d*)", python)
        if found is None:
            return False
        minor = int(found.group(2) or 0)
        if abi == "none":
            return minor <= self.minor if found.group(1) == "py" or not found.group(2) else minor == self.minor
        if abi == "abi3":
            return found.group(1) == "cp" and minor <= self.minor
        return python == f"cp3{self.minor}" and abi == (f"cp3{self.minor}" + ("m" if self.minor < 8 else ""))

    def _fits_platform(self, platform: str) -> bool:
        if platform in ("any", f"linux_{self.machine}"):
            return True
        found = re.fullmatch(r"(manylinux1|manylinux2010|manylinux2014|(many|musl)linux_[12]_(\d+))_(.+)", platform)
        if found is None or found.group(4) != self.machine:
            return False
        libc = "musl" if found.group(2) == "musl" else "glibc"
        least = _LEGACY.get(found.group(1)) or int(found.group(3))
        return self.libc in ("", libc) and (not self.libc_minor or least <= self.libc_minor)

    def download_flags(self) -> List[str]:
        """:returns: the flags of ``pip download`` that get what fits, on whatever machine."""
        flags = ["--only-binary=:all:", "--python-version", f"3.{self.minor}", "--implementation", "cp"]
        flags += ["--abi", f"cp3{self.minor}"]
        if self.libc == "musl":
            names = [f"musllinux_1_{n}" for n in (2, 1) if not self.libc_minor or n <= self.libc_minor]
        else:
            most = self.libc_minor or 17
            names = [f"manylinux_2_{n}" for n in reversed(_PUBLISHED) if n <= most] + ["manylinux2014"]
        for name in names:
            flags += ["--platform", f"{name}_{self.machine}"]
        return flags


def libc_of(os_release: str, musl: bool) -> Tuple[str, int]:
    """:returns: libc and its minor version, 0 if that is not known.

    :param os_release: the text of ``/etc/os-release``.
    """
    if musl:
        return "musl", 2
    fields = dict(line.partition("=")[::2] for line in os_release.splitlines())
    name, version = (fields.get(key, "").strip("\"'") for key in ("ID", "VERSION_ID"))
    found = _GLIBC.get(f"{name} {version}") or _GLIBC.get(f"{name} {version.split('.')[0]}")
    return ("glibc", found) if found else ("", 0)


@dataclass(frozen=True)
class Requirement:
    """One requirement.

    :param name: normalized.
    :param specs: operator and version, e.g. ``(("==", "2.1.0"),)``.
    :param hashes: sha256 that are accepted; any if empty.
    :param other_hashes: it has hashes of other kinds, which are not looked at.
    """

    name: str
    extras: FrozenSet[str] = frozenset()
    specs: Tuple[Tuple[str, str], ...] = ()
    marker: str = ""
    hashes: FrozenSet[str] = frozenset()
    other_hashes: bool = False
    file: str = ""

    def __str__(self) -> str:
        return self.name + (f"[{','.join(sorted(self.extras))}]" if self.extras else "") + self.wanted

    @property
    def wanted(self) -> str:
        """:returns: the versions that are wanted, as written."""
        return ",".join(f"{operator}{version}" for operator, version in self.specs)


@dataclass(frozen=True)
class Install:
    """What one ``pip install`` of a RUN asks for.

    :param unclear: something that is not judged here: a variable, a path, an address.
    """

    program: str
    files: Tuple[str, ...] = ()
    words: Tuple[str, ...] = ()
    unclear: bool = False


def normal(name: str) -> str:
    """:returns: a project's name as it is compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


# -- commands and files -----------------------------------------------------------------------------------------------


def installs(words: Optional[Sequence[str]], text: str) -> Optional[List[Install]]:
    """The ``pip install`` commands of a RUN.

    :param words: of the exec form; else ``text`` is the shell's.
    :returns: ``None`` if the text cannot be split.
    """
    if words is not None:
        commands = [list(words)]
    else:
        lexer = shlex.shlex(text.replace("\n", " ; "), posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, ""
        commands = [[]]
        try:
            for word in lexer:
                if set(word) <= set("();|&"):
                    commands.append([])
                else:
                    commands[-1].append(word)
        except ValueError:
            return None
    return [found for found in map(_install, commands) if found is not None]


def _install(command: Sequence[str]) -> Optional[Install]:
    for index, word in enumerate(command):
        program = os.path.basename(word)
        if re.fullmatch(r"pip[\d.]*", program) and command[index + 1 : index + 2] == ["install"]:
            via = index >= 2 and command[index - 1] == "-m"
            return _arguments(command[index - 2] if via else word, command[index + 2 :])
    return None


def _arguments(program: str, words: Sequence[str]) -> Install:
    files: List[str] = []
    asked: List[str] = []
    unclear = False
    todo = iter(words)
    for word in todo:
        key, equals, value = word.partition("=")
        if word.startswith("-r") and len(word) > 2:
            key, equals, value = "-r", "=", word[2:]
        if word.startswith("-"):
            if key in _VALUED and not equals:
                value = next(todo, "")
            if key in ("-r", "--requirement"):
                files.append(value)
                unclear = unclear or "$" in value or "://" in value
            unclear = unclear or key in ("-e", "--editable")
        elif re.search(r"[$`*/<>]|^\.", word) and not _REQUIREMENT.match(word):
            unclear = True
        else:
            asked.append(word)
    return Install(program, tuple(files), tuple(asked), unclear)


def read_requirements(text: str, file: str = "") -> Tuple[List[Requirement], List[str]]:
    """A requirements file.

    :returns: its requirements, and the files that it names by ``-r``. What is neither is left out.
    """
    found: List[Requirement] = []
    nested: List[str] = []
    for written in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*$", "", written).strip()
        inner = re.match(r"(?:-r|--requirement)[\s=]*(\S+)", line)
        if inner:
            nested.append(inner.group(1))
        made = _requirement(line)
        if made is not None:
            found.append(replace(made, file=file))
    return found, nested


def _requirement(line: str) -> Optional[Requirement]:
    hashes = re.findall(r"--hash[=\s]\s*(\w+):(\w+)", line)
    match = _REQUIREMENT.match(re.sub(r"\s--\S.*$", "", line).strip())
    if match is None or not line:
        return None
    extras = frozenset(normal(extra.strip()) for extra in (match.group("extras") or "").split(",") if extra.strip())
    return Requirement(
        name=normal(match.group("name")),
        extras=extras,
        specs=tuple(_SPECIFIER.findall(match.group("specs"))),
        marker=(match.group("marker") or "").strip(),
        hashes=frozenset(value.lower() for kind, value in hashes if kind == "sha256"),
        other_hashes=any(kind != "sha256" for kind, _ in hashes),
    )


def changes(old: Iterable[Requirement], new: Iterable[Requirement]) -> List[str]:
    """:returns: how two lists differ: ``+numpy==2.1.0``, ``httpx 0.27.0 -> 0.28.1``, ``-six``."""
    before = {one.name: one for one in old}
    after = {one.name: one for one in new}
    said = [f"+{one}" for name, one in after.items() if name not in before]
    said += [
        f"{name} {_short(before[name])} -> {_short(one)}"
        if before[name].extras == one.extras
        else f"{before[name]} -> {one}"
        for name, one in after.items()
        if name in before and str(before[name]) != str(one)
    ]
    return said + [f"-{name}" for name in before if name not in after]


def _short(one: Requirement) -> str:
    return one.specs[0][1] if len(one.specs) == 1 and one.specs[0][0] == "==" else one.wanted or "any"


# -- versions ---------------------------------------------------------------------------------------------------------

Key = Tuple[int, Tuple[int, ...], Tuple[int, int], int, int]


def _key(text: str) -> Optional[Key]:
    """A version as it is ordered, without its local part (PEP 440, "Summary of permitted suffixes and relative
    ordering"); ``None`` if it is none."""
    found = _VERSION.match(text.strip())
    if found is None:
        return None
    release = tuple(int(part) for part in found.group("release").split("."))
    while len(release) > 1 and release[-1] == 0:
        release = release[:-1]
    phase = {"a": 0, "alpha": 0, "b": 1, "beta": 1}.get((found.group("pre") or "").lower(), 2)
    is_post = found.group("post1") is not None or found.group("post2") is not None
    post = int(found.group("post1") or found.group("post2") or 0) if is_post else -1
    dev = int(found.group("devn") or 0) if found.group("dev") else 1 << 30
    if found.group("pre"):
        pre = (phase, int(found.group("pren") or 0))
    else:
        pre = (-1, 0) if found.group("dev") and not is_post else (3, 0)
    return int(found.group("epoch") or 0), release, pre, post, dev


def admits(specs: Sequence[Tuple[str, str]], version: str) -> bool:
    """:returns: whether a version may be what is asked for; what cannot be read is admitted."""
    return all(_admits(operator, wanted, version) for operator, wanted in specs)


def _admits(operator: str, wanted: str, version: str) -> bool:
    if operator == "===":
        return wanted == version
    star = wanted.endswith(".*")
    have, want = (
        _key(version.partition("+")[0] if "+" not in wanted else version),
        _key(wanted[:-2] if star else wanted),
    )
    if have is None or want is None:
        return True
    if star or operator == "~=":
        parts = _release(wanted[:-2] if star else wanted)
        length = len(parts) if star else len(parts) - 1
        same = (have[1] + (0,) * length)[:length] == parts[:length] and have[0] == want[0]
        return (not same if operator == "!=" else same) and (operator != "~=" or have >= want)
    if operator in ("==", "!="):
        same = have == want and ("+" not in wanted or wanted.lower() == version.lower())
        return same == (operator == "==")
    return {"<": have < want, "<=": have <= want, ">": have > want, ">=": have >= want}[operator]


def _release(version: str) -> Tuple[int, ...]:
    """:returns: the release's numbers as written."""
    found = _VERSION.match(version)
    return tuple(int(part) for part in found.group("release").split(".")) if found else ()


# -- markers ----------------------------------------------------------------------------------------------------------


def applies(marker: str, python: Python, extras: Iterable[str] = ()) -> Optional[bool]:
    """:returns: whether a marker holds for a Python with these extras; ``None`` if that is not known."""
    if not marker:
        return True
    every: List[Optional[bool]] = [_holds(marker, python, extra) for extra in ("", *extras)]
    return True if True in every else None if None in every else False


def _holds(marker: str, python: Python, extra: str) -> Optional[bool]:
    known = {
        "python_version": f"3.{python.minor}", "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix",
        "platform_machine": python.machine, "implementation_name": "cpython", "extra": extra,
        "platform_python_implementation": "CPython",
    }  # fmt: skip
    words = re.findall(r"'[^']*'|\"[^\"]*\"|[()]|[<>=!~]+|[\w.]+", marker)
    text: List[str] = []
    index = 0
    while index < len(words):
        if words[index] in ("and", "or", "(", ")"):
            text.append(words[index])
            index += 1
            continue
        left, operator, right = (words + ["", ""])[index : index + 3]
        index += 3
        if operator == "not":  # "not in"
            return None
        value = _compare(known, left, operator, right)
        if value is None:
            return None
        text.append(str(value))
    return _logic(text)


def _compare(known: Mapping[str, str], left: str, operator: str, right: str) -> Optional[bool]:
    name, literal = (left, right) if left in known else (right, left)
    if name not in known or literal[:1] not in ("'", '"'):
        return None
    value, wanted = known[name], literal[1:-1]
    if name == "extra":
        value, wanted = normal(value), normal(wanted)
    if name == "python_version" and name == left:
        return admits([(operator, wanted)], value)
    return {"==": value == wanted, "!=": value != wanted}.get(operator)


def _logic(words: Sequence[str]) -> Optional[bool]:
    """``or`` of ``and`` of truth values and parentheses."""
    todo = list(words)

    def either() -> bool:
        value = both()
        while todo and todo[0] == "or":
            todo.pop(0)
            value = both() or value
        return value

    def both() -> bool:
        value = one()
        while todo and todo[0] == "and":
            todo.pop(0)
            value = one() and value
        return value

    def one() -> bool:
        word = todo.pop(0)
        if word == "(":
            value = either()
            if todo.pop(0) != ")":
                raise ValueError
            return value
        return word == "True"

    try:
        value = either()
    except (ValueError, IndexError):
        return None
    return value if not todo else None


# -- the check --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Package:
    file: str
    name: str
    version: str
    tags: Optional[Tuple[str, str, str]]


def _packages(names: Iterable[str]) -> Iterator[_Package]:
    for file in names:
        parts = file[:-4].split("-")
        if file.endswith(".whl") and len(parts) in (5, 6):
            yield _Package(file, normal(parts[0]), parts[1], (parts[-3], parts[-2], parts[-1]))
            continue
        found = _SDIST.match(file)
        if found:
            yield _Package(file, normal(found.group("name")), found.group("version"), None)


def lacking(
    wanted: Sequence[Requirement],
    folder: str,
    names: Sequence[str],
    python: Python,
    installed: Mapping[str, str] = MappingProxyType({}),
) -> List[str]:
    """What a wheelhouse lacks, each in words; empty if nothing is known to be lacking.

    :param names: the files of ``folder``.
    :param installed: name to version of what the image has before the install: pip goes on with that.
    """
    packages: Dict[str, List[_Package]] = {}
    for package in _packages(names):
        packages.setdefault(package.name, []).append(package)
    said: Dict[str, None] = {}
    todo = [(one, "") for one in wanted]
    seen: Dict[Tuple[str, str, FrozenSet[str]], None] = {}
    while todo:
        one, because = todo.pop(0)
        key = (one.name, one.wanted, one.extras)
        if key in seen or applies(one.marker, python) is not True:
            continue
        seen[key] = None
        fitting, why = _fitting(one, packages.get(one.name, []), folder, python)
        if not fitting and one.name in installed and admits(one.specs, installed[one.name]) and not one.hashes:
            continue
        if not fitting:
            said[f"{one}{because}: {why}"] = None
        elif len(fitting) == 1:  # of several, pip chooses
            inner = _requires(os.path.join(folder, fitting[0].file), one.extras, python)
            todo += [(need, f" (needed by {one.name} {fitting[0].version})") for need in inner]
    return list(said)


def _fitting(one: Requirement, packages: Sequence[_Package], folder: str, python: Python) -> Tuple[List[_Package], str]:
    """:returns: the wheels that pip may take for a requirement, and why there is none."""
    if not packages:
        return [], f"the wheelhouse has no {one.name}"
    right = [package for package in packages if admits(one.specs, package.version)]
    if not right:
        return [], f"the wheelhouse has it only in version {', '.join(sorted({p.version for p in packages}))}"
    wheels = [package for package in right if package.tags is not None]
    if not wheels:
        return [], f"the wheelhouse has it only as source ({right[0].file}), which would have to be built"
    fitting = [package for package in wheels if package.tags is not None and python.fits(package.tags)]
    if not fitting:
        return (
            [],
            f"the wheelhouse has it only for another Python or platform ({wheels[0].file}), the image has {python}",
        )
    if one.hashes and not one.other_hashes:
        exact = [package for package in fitting if _sha256(os.path.join(folder, package.file)) in one.hashes]
        if not exact:
            return [], f"{fitting[0].file} in the wheelhouse has another sha256 than {one.file or 'the file'} asks for"
        fitting = exact
    return fitting, ""


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _requires(path: str, extras: FrozenSet[str], python: Python) -> List[Requirement]:
    """:returns: what a wheel surely needs with these extras; nothing if its metadata cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
            text = archive.read(name).decode("utf-8", "replace")
    except (zipfile.BadZipFile, StopIteration, OSError, RuntimeError, NotImplementedError):
        return []
    lines = Parser().parsestr(text, headersonly=True).get_all("Requires-Dist") or []
    found = [_requirement(str(line)) for line in lines]
    sure = [one for one in found if one is not None and applies(one.marker, python, extras) is True]
    return [replace(one, marker="") for one in sure]
