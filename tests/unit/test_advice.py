"""Each rule of the advice speaks where it should, and is silent where the guides' advice is followed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from module_utils.offline_rebuild.advice import SAME, Advice, advise, lines, merge
from module_utils.offline_rebuild.cli import EngineInfo
from module_utils.offline_rebuild.context import Context
from module_utils.offline_rebuild.dockerfile import parse
from module_utils.offline_rebuild.ignorefile import load
from module_utils.offline_rebuild.lint import has_check, without_bases
from module_utils.offline_rebuild.stage import BuildInput
from tests.unit.depot import build_input

ROOT = Path(__file__).resolve().parents[2]
APP = {
    "requirements.txt": ("file", 20),
    "main.py": ("file", 500),
    "package.json": ("file", 90),
    "src": ("dir", 0),
    "src/a.js": ("file", 70),
}


def found(
    text: str, entries: Mapping[str, tuple[str, int]] = APP, ignore: str = ".dockerignore", target: str = ""
) -> list[tuple[str, int]]:
    """Code and line of each piece of advice."""
    made = advise(build_input(text, target=target), entries, ignore, "ctx")
    assert all(one.text and one.fix and one.code in SAME for one in made)
    return [(one.code, one.line) for one in made]


GOOD = [
    "FROM python:3.13-slim\nCOPY requirements.txt .\nRUN pip install -r requirements.txt\nCOPY . .\n",
    "FROM python:3.13-slim\nCOPY requirements.txt constraints.txt* ./\nRUN pip install -r requirements.txt\n",
    "FROM p:1\nRUN --mount=type=bind,source=requirements.txt,target=r.txt pip install -r r.txt\nCOPY . .\n",
    "FROM p:1\nCOPY . .\nRUN python -m compileall .\n",
    "FROM p:1\nCOPY . .\nRUN npm install -g serve\n",
    "FROM p:1\nCOPY main.py .\nCOPY requirements.txt .\nRUN pip install -r requirements.txt\n",
]  # fmt: skip
BAD_ORDER = [
    ("FROM p:1\nCOPY . .\nRUN pip install -r requirements.txt\n", 2),
    ("FROM p:1\nWORKDIR /app\nADD . /app\nRUN python -m pip install --no-cache-dir -r requirements.txt\n", 3),
    ("FROM p:1\nCOPY . .\nRUN npm ci\n", 2),
    ("FROM p:1 AS b\nCOPY . .\nRUN cd /x && yarn && yarn build\nFROM q:1\nCOPY --from=b /dist /dist\n", 2),
    ("FROM p:1\nCOPY src package.json ./\nRUN npm install --omit=dev\n", 2),
]


@pytest.mark.parametrize("text", GOOD)
def test_good_order_is_silent(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(("text", "line"), BAD_ORDER)
def test_bad_order(text: str, line: int) -> None:
    assert found(text) == [("copy-order", line)]


def test_bad_order_names_the_files_to_copy_first() -> None:
    (one,) = advise(build_input(BAD_ORDER[0][0]), APP, ".dockerignore", "ctx")
    assert "COPY requirements.txt ./" in one.fix
    assert "line 3" in one.fix


def test_stages_that_the_target_does_not_need_are_left_out() -> None:
    text = "FROM p:1 AS test\nCOPY . .\nRUN npm ci\nFROM p AS other\nFROM p:1 AS run\nCOPY . .\n"
    assert found(text, target="run") == []


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("debian", True), ("debian:latest", True), ("reg.example:5000/debian", True), ("debian:13", False),
        ("reg.example:5000/debian:13", False), ("debian@sha256:" + 64 * "a", False), ("scratch", False),
    ],
)  # fmt: skip
def test_base_tag(name: str, bad: bool) -> None:
    assert found(f"FROM {name}\nCOPY main.py .\n") == ([("base-tag", 1)] if bad else [])
    assert found(f"FROM p:1\nCOPY --from={name} /x /x\n") == ([("base-tag", 2)] if bad else [])


def test_base_tag_follows_arguments_and_stages() -> None:
    assert found("ARG B=debian\nFROM ${B} AS a\nFROM a\nUSER x\n") == [("base-tag", 2)]
    assert found("ARG B=debian:13\nFROM ${B} AS a\nFROM a\nUSER x\n") == []


def test_secrets_are_named_and_not_shown() -> None:
    text = (
        "FROM p:1\nARG NPM_TOKEN\nENV DB_PASSWORD=hunter22 A=1\nENV API_KEY=\nARG KEY_FILE=/k PUBLIC_KEY=x\nENV M=1\n"
    )
    made = advise(build_input(text), APP, ".dockerignore", "ctx")
    assert [(one.code, one.line) for one in made] == [("secret", 2), ("secret", 3)]
    assert "hunter22" not in repr(made)


@pytest.mark.parametrize(
    ("run", "codes"),
    [
        ("apt-get update && apt-get install -y curl", ["apt-lists"]),
        ("apt-get update && apt-get install -y curl && rm -rf /var/lib/apt/lists/*", []),
        ("--mount=type=cache,target=/var/lib/apt/lists apt-get update && apt-get -y install curl", []),
        ("--mount=type=cache,target=/var/cache/apt apt-get update && apt-get -y install curl", ["apt-lists"]),
        ("apt-get install -y gcc libpq-dev && rm -rf /var/lib/apt/lists/*", ["build-tools"]),
        ("apt-get install -y gcc=4:1 && make && apt-get purge -y gcc && rm -rf /var/lib/apt/lists/*", []),
        ("apk add --no-cache build-base", ["build-tools"]),
        ("apk add --no-cache curl", []),
    ],
)
def test_what_a_run_leaves(run: str, codes: list[str]) -> None:
    assert [code for code, _ in found(f"FROM p:1\nRUN {run}\n")] == codes
    assert found(f"FROM p:1 AS b\nRUN {run}\nFROM q:1\nCOPY --from=b /out /out\n") == []  # these layers do not ship


def test_runs_in_a_row() -> None:
    assert found("FROM p:1\nRUN a\n# why\nRUN b\nRUN c\nUSER x\n") == [("merge-runs", 4)]
    assert found("FROM p:1\nRUN a\nUSER x\nRUN b\n") == []
    assert found("FROM p:1\nRUN a\nRUN --network=none b\n") == []
    assert found("FROM p:1 AS b\nRUN a\nRUN b\nFROM q:1\nCOPY --from=b /o /o\n") == []


@pytest.mark.parametrize(
    ("copy", "bad"),
    [("/ /", True), ("/app /app", True), ("/app/. .", True), ("/app/dist /app", False), ("/opt/venv /opt/venv", False)],
)
def test_whole_stage(copy: str, bad: bool) -> None:
    text = f"FROM p:1 AS b\nWORKDIR /app\nCOPY main.py src ./\nRUN make\nFROM q:1\nCOPY --from=b {copy}\n"
    assert found(text) == ([("whole-stage", 6)] if bad else [])


def test_a_stage_without_a_run_may_be_copied_whole() -> None:
    assert found("FROM scratch AS b\nCOPY main.py src ./\nFROM q:1\nCOPY --from=b / /\n") == []


COPY_ALL = "FROM p:1\nCOPY . .\n"


def test_no_ignore_file() -> None:
    made = advise(build_input(COPY_ALL), APP, "", "ctx")
    assert [(one.code, one.file, one.size) for one in made] == [("no-ignore-file", "ctx", 680)]
    assert found(COPY_ALL) == []
    assert found("FROM p:1\nCOPY main.py .\n", ignore="") == []  # one named file needs none
    assert found("FROM p:1\nRUN a\n", ignore="") == []


@pytest.mark.parametrize(
    ("paths", "code", "pattern"),
    [
        ({".git": ("dir", 0), ".git/x": ("file", 9)}, "context-ballast", ".git"),
        ({"web/node_modules/a/b.js": ("file", 9)}, "context-ballast", "**/node_modules"),
        ({"src/__pycache__/a.pyc": ("file", 9)}, "context-ballast", "**/__pycache__"),
        ({"venv/pyvenv.cfg": ("file", 4), "venv/lib/x.py": ("file", 5)}, "context-ballast", "venv"),
        ({".env": ("file", 9)}, "context-secret", ".env"),
        ({"deploy/id_ed25519": ("file", 9)}, "context-secret", "deploy/id_ed25519"),
        ({".env.example": ("file", 9), "venv.py": ("file", 1), ".gitignore": ("file", 1)}, "", ""),
    ],
)
def test_what_does_not_belong_into_a_context(paths: dict[str, tuple[str, int]], code: str, pattern: str) -> None:
    made = advise(build_input(COPY_ALL), {**APP, **paths}, "ctx/.dockerignore", "ctx")
    if not code:
        assert made == []
        return
    assert [(one.code, one.size) for one in made] == [(code, 9)]
    assert made[0].fix == f"add the line {pattern} to ctx/.dockerignore"
    assert "line 2" in made[0].text
    aside = advise(build_input("FROM p:1\nCOPY main.py .\n"), {**APP, **paths}, "ctx/.dockerignore", "ctx")
    assert "is in the build context" in aside[0].text


def test_what_a_tool_says_too_is_said_once() -> None:
    own = Advice("base-tag", "D", 1, "t", "f")
    theirs = [
        Advice("DL3006", "D", 1, "x", source="hadolint"),
        Advice("DL3006", "D", 9, "x", source="hadolint"),
        Advice("DL3042", "D", 1, "y", source="hadolint"),
    ]
    assert [one.code + str(one.line) for one in merge([own, own], theirs)] == ["base-tag1", "DL30421", "DL30069"]


def test_lines_for_an_operator() -> None:
    assert lines([Advice("c", "D", 3, "found", "mend", 1500)]) == ["D:3: found (1.5 kB) [c] Fix: mend"]
    assert lines([Advice("c", "ctx", 0, "found", size=12_345_678)]) == ["ctx: found (12 MB) [c]"]


@pytest.mark.parametrize(
    ("dockerfile", "context", "target"),
    [
        ("backend/Dockerfile", "backend", ""),
        ("frontend/Dockerfile", "frontend", "runner"),
        ("frontend/Dockerfile", "frontend", "builder"),
        ("deployment/bases/Dockerfile", "deployment/bases", "python"),
        ("deployment/bases/Dockerfile", "deployment/bases", "node"),
    ],
)
def test_sample_application_needs_no_advice(dockerfile: str, context: str, target: str) -> None:
    sample = ROOT / "examples" / "llm-chat"
    folder, file = str(sample / context), sample / dockerfile
    ignore = load(folder, str(file))
    entries = {path: (e.type, e.size) for path, e in Context(folder, ignore).stat_entries()}
    args = {"DEBIAN_IMAGE": "debian:13", "NPM_VERSION": "10.0.0"}
    build = BuildInput(parse(file.read_bytes(), str(file)), args, "linux/amd64", "linux/amd64", target)
    assert lines(advise(build, entries, ignore.file, folder)) == []


def test_docker_check_gets_no_base_to_ask_for() -> None:
    text = (
        "# syntax=docker/dockerfile:1\nARG B=x\nFROM --platform=linux/amd64 ${B} AS a\nFROM a\nFROM scratch\nUSER 1\n"
    )
    made = without_bases(parse(text.encode()), text)
    assert made == "#\nARG B=x\nFROM --platform=linux/amd64 scratch AS a\nFROM a\nFROM scratch\nUSER 1\n"
    odd = "FROM a \\\n  AS b\n"
    assert without_bases(parse(odd.encode()), odd) is None


@pytest.mark.parametrize(
    ("engine", "buildx", "has"),
    [("28.5.2+dfsg4", "0.29.1+ds1", True), ("26.1.5", "0.13.1", False), ("28.5.2", "", False), ("20.10.24", "", False)],
)
def test_which_engines_have_the_check(engine: str, buildx: str, has: bool) -> None:
    plugins = {"buildx": buildx} if buildx else {}
    assert has_check(EngineInfo(engine, "linux", "x86_64", "classic", "overlay2", "/", "n", plugins)) is has
