"""The command line: its options against the core's, its help in two languages, its output, the file it comes in.

What needs an engine is in tests/engine/test_pyz_engine.py.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from module_utils.offline_rebuild import commands, messages
from module_utils.offline_rebuild.commands import Answer, Command
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.run import Request

ROOT = Path(__file__).resolve().parents[2]
#: The oldest Python that a host may have, where this machine has it; else the one that runs the tests.
OLDEST = next(
    (str(path) for path in sorted(Path("~/.pyenv/versions").expanduser().glob("3.9.*/bin/python"))), sys.executable
)


def parsed(*argv: str, environ: dict[str, str] | None = None) -> Request:
    name, given = commands.parse(argv, "x")
    given.command = name
    return commands.request_of(given, environ=environ or {"USER": "ann"})


def ran(*argv: str, **environ: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return commands.main(argv, "x", environ, out, err), out.getvalue(), err.getvalue()


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A command ``status`` that does what the test says."""

    def put(act: Any) -> None:
        known = commands.COMMANDS["status"]
        made = {**commands.COMMANDS, "status": Command(act, (*known.options, "build_args"))}
        monkeypatch.setattr(commands, "COMMANDS", made)

    return put


# -- help


def keys_in_use() -> set[str]:
    sources = [ROOT / "module_utils/offline_rebuild/commands.py"]
    words = {
        w
        for path in sources
        for w in re.findall(r'(?:say|messages\.text)\(["\']([a-z_-]+)["\'][,)]', path.read_text("utf-8"))
    }
    words |= {f"command.{name}" for name in commands.COMMANDS}
    words |= {f"{part}.{c.arguments}" for c in commands.COMMANDS.values() for part in ("arg", "meta")}
    words |= {f"option.{name}" for c in commands.COMMANDS.values() for name in (*c.options, *commands._COMMON)}
    return words | {f"exit.{code}" for code in commands.EXIT_CODES}


def test_the_messages_are_complete_and_all_in_use() -> None:
    assert set(messages.MESSAGES) == keys_in_use()
    for key, (english, chinese) in messages.MESSAGES.items():
        assert english.isascii(), key
        assert english.strip() == english != "", key
        assert re.search("[\u4e00-\u9fff]", chinese), key


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readme_names_every_command_and_exit_code(readme: str) -> None:
    text = (ROOT / readme).read_text("utf-8")
    part = next(part for part in text.split("\n## ") if "make pyz" in part)
    for name in commands.COMMANDS:
        assert re.search(rf"`{name}`|(offline-rebuild\.pyz|bash /opt/offline/)\W*{name}\b", part), name
    rows = re.findall(r"^\| ([\d, 、]+) \|", part, re.MULTILINE)
    assert [int(code) for row in rows for code in re.findall(r"\d+", row)] == list(commands.EXIT_CODES)


def test_every_option_is_of_some_command() -> None:
    used = {name for c in commands.COMMANDS.values() for name in (*c.options, *commands._COMMON)}
    assert used == set(commands.OPTIONS)


@pytest.mark.parametrize(
    ("environ", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "C", "LC_ALL": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "en_US", "LC_MESSAGES": "zh_CN"}, "zh"),
        ({"LANG": "zh_CN", "LC_ALL": ""}, "zh"),
    ],
)
def test_the_locale_decides_the_language(environ: dict[str, str], language: str) -> None:
    assert messages.language_of(environ) == language


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("command", [None, *commands.COMMANDS])
def test_help_is_there_for_every_command_and_fits(command: str | None, language: str) -> None:
    locale = {"LANG": "zh_CN.UTF-8" if language == "zh" else "C"}
    code, out, err = ran(*([command] if command else []), "--help", **locale)
    assert (code, err) == (0, "")
    assert all(commands._width(line) <= 100 for line in out.splitlines())
    if command:
        for name in commands.COMMANDS[command].options:
            assert commands.OPTIONS[name].flags[-1] in out
    else:
        assert all(name in out for name in commands.COMMANDS)
    assert ("用法" in out) == (language == "zh")


# -- options


def test_rebuild_has_an_option_for_everything_that_the_core_can_be_told() -> None:
    asked = {f.name for f in fields(Request)} - {"check", "services", "run_time", "action", "release", "project_pushed"}
    asked -= {"strategy", "sent", "make_services"}  # what a control node decides
    assert asked <= set(commands.COMMANDS["rebuild"].options), "Request has fields that the command line cannot set"


def test_every_option_reaches_the_core() -> None:
    request = parsed(
        *"rebuild backend -f a.yml --compose-file b.yml --env-file e --profile p -p shop --build-arg A=1=2".split(),
        *"--evidence recorded --modes image --gate-timeout 7 --change-id C1 --operator bob --state-dir /s".split(),
        *"--keep-releases 2".split(),
        *"--reuse overlay --dependency-file a --dependency-file b --overlay-run 5 --advise".split(),
        *"--wheelhouse /w --npm-cache c".split(),
        *"--health-check http://h/ --health-check tcp://h:1 --project-src /srv frontend".split(),
    )
    assert request == Request(
        project_src="/srv",
        compose_files=["a.yml", "b.yml"],
        env_files=["e"],
        profiles=["p"],
        project_name="shop",
        services=("backend", "frontend"),
        build_args={"A": "1=2"},
        health_checks=[{"url": "http://h/"}, {"tcp": "h:1"}],
        gate_timeout=7,
        evidence="recorded",
        modes="image",
        reuse="overlay",
        dependency_files=["a", "b"],
        overlay_run=["5"],
        wheelhouse="/w",
        npm_cache=str(Path.cwd() / "c"),
        advise=True,
        state_dir="/s",
        keep_releases=2,
        change_id="C1",
        operator="bob",
    )


def test_without_options_it_is_as_the_role_does_it() -> None:
    assert parsed("rebuild") == Request(project_src=str(Path.cwd()), operator="ann", health_checks=[])
    assert parsed("rebuild", environ={"USER": "root", "SUDO_USER": "eve"}).operator == "eve"


def test_a_build_argument_without_a_value_comes_from_the_environment() -> None:
    assert parsed("plan", "--build-arg", "A", environ={"A": "x", "USER": "u"}).build_args == {"A": "x"}


def test_a_file_may_hold_options_and_what_follows_it_wins(tmp_path: Path) -> None:
    file = tmp_path / "rebuild.options"
    file.write_text("-f 'a b.yml'  # the project\n--gate-timeout 7\n", encoding="utf-8")
    for words in (["--options", str(file)], [f"--options={file}"]):
        request = parsed("rebuild", *words, "--gate-timeout", "9", "backend")
        assert (request.compose_files, request.gate_timeout, request.services) == (["a b.yml"], 9, ("backend",))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "a command is missing"),
        (["bogus"], "there is no command 'bogus' (there are: plan, rebuild"),
        (["plan", "--bogus"], "--bogus"),
        (["plan", "--gate-timeout", "7"], "--gate-timeout"),
        (["rebuild", "--gate-timeout", "0"], "'0' is no whole number above 0"),
        (["rebuild", "--gate-timeout", "soon"], "'soon'"),
        (["rebuild", "--evid", "recorded"], "--evid"),
        (["rebuild", "--evidence", "none"], "'none'"),
        (["rebuild", "--health-check", "h:80"], "tcp://HOST:PORT"),
        (["rebuild", "--build-arg", "=x"], "NAME=VALUE"),
        (["rebuild", "--build-arg", "NOT_THERE"], "NOT_THERE is not in the environment"),
        (["rebuild", "--options"], "--options"),
        (["rebuild", "--options", "/nowhere"], "/nowhere"),
        (["rebuild", "a b"], "'a b' is no name of a service"),
        (["releases", "../x"], "'../x' is no name of a release"),
    ],
)
def test_wrong_usage_is_told_in_one_line_and_ends_with_64(argv: list[str], said: str) -> None:
    code, out, err = ran(*argv)
    assert (code, out) == (64, "")
    assert said in err
    assert "[usage]" in err
    assert "remedy: " in err
    assert len(err.splitlines()) == 2


def test_a_file_with_options_names_no_other(tmp_path: Path) -> None:
    (tmp_path / "o").write_text("--options x", encoding="utf-8")
    code, _, err = ran("plan", "--options", str(tmp_path / "o"))
    assert code == 64
    assert "cannot name another" in err


# -- output


@pytest.mark.parametrize(
    ("code", "ends"),
    [("locked", 75), ("plan-blocked", 3), ("image-missing", 3), ("journal-write", 1), ("option-invalid", 64)],
)
def test_an_error_has_place_code_and_remedy_and_an_exit_code(answering: Any, code: str, ends: int) -> None:
    def act(*_: Any) -> Answer:
        raise OfflineRebuildError(code, "it is so", "do this", file="/f", line=3)

    answering(act)
    found, out, err = ran("status")
    assert (found, out) == (ends, "")
    assert re.fullmatch(rf"\S+: /f:3: it is so \[{code}\]\nremedy: do this\n", err)
    found, out, err = ran("status", "--json")
    document = json.loads(out)
    assert (found, document["exit"], document["command"]) == (ends, ends, "status")
    assert document["error"]["code"] == code
    assert "[" + code + "]" in err


def test_a_defect_is_told_in_one_line(answering: Any) -> None:
    def act(*_: Any) -> Answer:
        raise KeyError("x")

    answering(act)
    code, _, err = ran("status")
    assert code == 70
    assert "a defect of this program: KeyError: 'x' at test_commands.py:" in err
    assert "Traceback" not in err


def test_what_the_system_refuses_is_an_error_with_a_remedy(answering: Any) -> None:
    def act(*_: Any) -> Answer:
        raise PermissionError(13, "Permission denied", "/f")

    answering(act)
    code, _, err = ran("status")
    assert code == 1
    assert "/f: the host refused it: Permission denied [host-refused]" in err


def test_an_interrupt_is_no_traceback(answering: Any) -> None:
    def act(*_: Any) -> Answer:
        raise KeyboardInterrupt

    answering(act)
    code, _, err = ran("status")
    assert code == 130
    assert "the next one" in err


def test_no_secret_and_no_control_character_is_printed(answering: Any) -> None:
    def act(_given: Any, say: Any) -> Answer:
        say("with hunter22")
        return Answer(0, {"a": ["hunter22"]}, ["a \x1b[31mred\x1b[0m hunter22", "odd \x9b \udce4 \x07"])

    answering(act)
    argv = ["status", "--build-arg", "DB_PASSWORD=hunter22"]
    code, out, err = ran(*argv)
    assert (code, out, err) == (0, "a red ***\nodd \\x9b \\xe4 \\x07\n", "with ***\n")
    assert json.loads(ran(*argv, "--json")[1])["a"] == ["***"]


def test_a_reader_that_is_gone_does_not_end_a_run(tmp_path: Path) -> None:
    """``... | head -1``: the pipe is closed long before the last line; the exit code is the command's."""
    program = (
        "import sys; from module_utils.offline_rebuild import commands as c\n"
        "act = lambda given, say: [say('x' * 5000) for _ in range(99)] and c.Answer(4, {}, ['y' * 5000] * 99)\n"
        "c.COMMANDS = {**c.COMMANDS, 'status': c.Command(act, ())}\n"
        "sys.exit(c.main(['status']))\n"
    )
    script = f'({sys.executable} -c "$PROGRAM"; echo $? > {tmp_path}/rc) 2>&1 | :'
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "PROGRAM": program}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert (tmp_path / "rc").read_text().strip() == "4"


@pytest.mark.parametrize(("swaps", "ends"), [(True, 0), (False, -signal.SIGHUP)])
def test_a_lost_session_does_not_cut_a_swap(swaps: bool, ends: int) -> None:
    program = (
        "import os, signal, sys; from module_utils.offline_rebuild import commands as c\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "act = lambda given, say: os.kill(os.getpid(), signal.SIGHUP) or c.Answer(0, {}, ['done'])\n"
        f"c.COMMANDS = {{**c.COMMANDS, 'status': c.Command(act, (), swaps={swaps})}}\n"
        "sys.exit(c.main(['status']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (ends, "done\n" if swaps else "")
    assert {name for name, command in commands.COMMANDS.items() if command.swaps} == {"rebuild", "rollback"}


# -- the file


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, ROOT / "scripts/make-pyz", folder], check=True, capture_output=True)
    return folder / "offline-rebuild.pyz"


def test_the_file_holds_the_core_and_nothing_else(pyz: Path) -> None:
    core = {f"offline_rebuild/{path.name}" for path in (ROOT / "module_utils/offline_rebuild").glob("*.py")}
    with zipfile.ZipFile(pyz) as archive:
        assert set(archive.namelist()) == core | {"__main__.py"}
        assert archive.testzip() is None
    assert pyz.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    assert os.access(pyz, os.X_OK)


def test_the_file_has_the_same_bytes_whoever_makes_it(pyz: Path, tmp_path: Path) -> None:
    subprocess.run(
        ["sh", "-c", f'umask 077; TZ=Asia/Shanghai "{OLDEST}" "{ROOT}/scripts/make-pyz" "{tmp_path}"'],
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "offline-rebuild.pyz").read_bytes() == pyz.read_bytes()


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_it_runs_alone_on_the_oldest_python(pyz: Path, tmp_path: Path, command: str) -> None:
    """Every command gets as far as it can without an engine, and every module of the core can be imported."""
    env = {"PATH": str(tmp_path), "HOME": str(tmp_path), "LANG": "C"}
    (tmp_path / "compose.yaml").write_text("services: {}\n", encoding="utf-8")
    argv = [OLDEST, pyz, command, "--state-dir", str(tmp_path / "state")]
    argv += ["images.tar"] if command == "import" else []
    if command == "delta":
        (tmp_path / "there").write_text('{"schema": 1, "store": "classic", "platform": "linux/amd64", "images": []}')
        argv += ["shop:1", "--for", str(tmp_path / "there"), "-o", str(tmp_path / "delta.tar")]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "there is no `docker` command on this host [docker-missing]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "state").exists()


def test_every_module_can_be_imported_by_the_oldest_python(pyz: Path) -> None:
    names = [path.stem for path in (ROOT / "module_utils/offline_rebuild").glob("[a-z]*.py")]
    program = f"import sys; sys.path.insert(0, {str(pyz)!r})\n" + "\n".join(
        f"import offline_rebuild.{n}" for n in names
    )
    subprocess.run([OLDEST, "-I", "-S", "-c", program], check=True)


def test_rebuild_sh_is_a_rebuild_of_the_current_folder(pyz: Path, tmp_path: Path) -> None:
    (tmp_path / "python3").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    (tmp_path / "python3").chmod(0o755)
    script = pyz.parent / "rebuild.sh"
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def said(*argv: str) -> list[str]:
        done = subprocess.run(
            ["bash", script, *argv], cwd=tmp_path, env=env, check=True, capture_output=True, text=True
        )
        return done.stdout.splitlines()

    head = [str(pyz), "rebuild", "--project-src", str(tmp_path)]
    assert said() == head
    assert said("backend") == [*head, "backend"]
    options = pyz.parent / "rebuild.options"
    options.write_text("-f x.yml\n", encoding="utf-8")
    try:
        assert said("backend", "--diff") == [*head, "--options", str(options), "backend", "--diff"]
    finally:
        options.unlink()
