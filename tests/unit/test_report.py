"""The report: its model, its three forms, secrets, markup in names, and a run of real ansible-playbook."""

from __future__ import annotations

import contextlib
import html.parser
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from control_node import hadolint, render, report
from module_utils.offline_rebuild.plan import FileChange, Plan, ServicePlan, Start
from module_utils.offline_rebuild.run import Outcome

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hunter22secret"  # noqa: S105 - planted
START = 1_790_000_000.0


def plan(action: str = "rebuild", path: str = "main.py") -> Plan:
    """A plan for one service."""
    service = ServicePlan(
        "backend", "app:latest", action, "assemble" if action == "rebuild" else "", ("Dockerfile:6 COPY . .",),
        (FileChange(path, "changed", ("content",)),) if action != "unchanged" else (), "Dockerfile", 3, 5,
        Start(6, "COPY . ."), "recorded", (), "app:latest", "sha256:" + "a" * 64,
    )  # fmt: skip
    return Plan("shop", "28.5.2", "classic", (service,))


def release(state: str = "done", **more: Any) -> dict[str, Any]:
    """A release's document."""
    record = {"image": "app:latest", "action": "rebuild", "before": "sha256:" + "a" * 64, "after": "sha256:" + "b" * 64}
    gate = {
        "ok": state == "done", "reason": "", "seconds": 1.0,
        "services": {"backend": {"verdict": "ok" if state == "done" else "failed", "detail": "answers"}},
        "checks": [{"name": "http://127.0.0.1/health", "ok": state == "done", "detail": "status 500", "tries": 3}],
    }  # fmt: skip
    timings = {"making": 0.3, "swap": 1.2, "gate": 2.0}
    return {
        "id": "20260921T133320Z-abc123", "project": "shop", "state": state, "note": "", "gate": gate,
        "services": {"backend": record}, "timings": timings, "plan": {}, "evidence": [], "rollback_gate": None, **more,
    }  # fmt: skip


def done(**more: Any) -> dict[str, Any]:
    """The module's result of a host that was changed."""
    made = Outcome(True, "backend: rebuild by assemble", plan=plan(), release=release(), timings={"plan": 0.2})
    return {**made.to_dict(), **more}


def failed(**more: Any) -> dict[str, Any]:
    """The module's result of a host that was rolled back."""
    evidence = [
        {"phase": "swap", "container": "shop-backend-1", "state": {"Status": "exited", "ExitCode": 3}, "health_log": [],
         "logs": ["Traceback", "boom & <b>bust</b>"]},
        {"phase": "swap", "compose": ["Container shop-backend-1 Error"]},
    ]  # fmt: skip
    document = release("rolled_back", evidence=evidence, note="backend exited", **more)
    return Outcome(True, "rolled_back: backend exited", True, plan(), document, timings={"plan": 0.1}).to_dict()


def run_of(results: dict[str, tuple[str, dict[str, Any]]], **more: Any) -> report.Run:
    """A run with these hosts: name to (status, result)."""
    run = report.Run("20260921T133320Z-0a1b2c", "rebuild.yml", START, START + 30, operator="ann", change_id="CHG-7")
    for place, (name, (status, result)) in enumerate(results.items()):
        began = START + 1 + place * 2
        values = dict(result)
        details = values.pop("details", {})
        run.hosts[name] = report.HostRun(
            name, 1 + place // 10 if status else 0, began if status else 0, began + 4 if status else 0, status, values,
            details, "Rebuild", run.check,
        )  # fmt: skip
    for name, value in more.items():
        setattr(run, name, value)
    return run


class Reader(html.parser.HTMLParser):
    """Elements with their attributes, in order; checks that tags are closed in order."""

    VOID = frozenset({"meta", "br", "line", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def test_one_host() -> None:
    made = report.build(run_of({"app-1": ("ok", done())}))
    assert (made["kind"], made["outcome"], made["ok"], made["summary"]) == ("run", "done", True, "1 changed")
    (host,) = made["hosts"]
    assert [(p["name"], p["start"], p["seconds"]) for p in host["phases"]] == [
        ("plan", 1.0, 0.2), ("make", 1.2, 0.3), ("swap", 1.5, 1.2), ("gate", 2.7, 2.0),
    ]  # fmt: skip
    (group,) = made["groups"]
    (service,) = group["services"]
    assert (service["before"][7:10], service["after"][7:10], service["files"][0]["path"]) == ("aaa", "bbb", "main.py")
    assert [row["ok"] for row in group["gate"]] == [True, True]
    assert made["rollback"][0]["command"] == "ansible-playbook playbooks/rollback.yml -l app-1"
    page = render.to_html(made)
    for word in ("CHG-7", "ann", "main.py", "app-1", "1 changed", "playbooks/rollback.yml", "Timeline"):
        assert word in page
    assert json.loads(render.to_json(made)) == made


def test_forty_hosts_are_one_part() -> None:
    made = report.build(run_of({f"app-{n}": ("ok", done()) for n in range(40)}))
    assert len(made["groups"]) == 1
    assert len(made["groups"][0]["hosts"]) == len(made["hosts"]) == 40
    assert {host["batch"] for host in made["hosts"]} == {1, 2, 3, 4}
    page = Reader(render.to_html(made))
    assert page.count("section") == 1
    assert sum(attributes.get("scope") == "row" for _, attributes in page.elements) == 40
    assert render.to_html(made).count("<title>plan ") == 40


def test_hosts_that_differ_are_told_apart() -> None:
    other = Outcome(True, "x", plan=plan(path="other.py"), release=release(), timings={}).to_dict()
    made = report.build(run_of({"a": ("ok", done()), "b": ("ok", other), "c": ("ok", done())}))
    assert [group["hosts"] for group in made["groups"]] == [["a", "c"], ["b"]]
    assert [host["group"] for host in made["hosts"]] == [1, 2, 1]


def test_failed_run() -> None:
    error = {"msg": "h: no space [disk-full] Remedy: free some", "error": {
        "code": "disk-full", "message": "no space", "remedy": "free some", "file": "/x", "line": None}}  # fmt: skip
    blocked = Outcome(False, "backend is blocked: why", True, plan("blocked")).to_dict()
    made = report.build(
        run_of(
            {
                "same": ("ok", {"changed": False, "msg": "nothing changed"}),
                "good": ("ok", done()),
                "back": ("failed", failed()),
                "disk": ("failed", error),
                "gone": ("unreachable", {"msg": "ssh: no route"}),
                "stuck": ("failed", blocked),
                "late": ("", {}),
            }
        )
    )
    assert {host["host"]: host["state"] for host in made["hosts"]} == {
        "same": "unchanged", "good": "done", "back": "rolled_back", "disk": "failed", "gone": "unreachable",
        "stuck": "blocked", "late": "not_reached",
    }  # fmt: skip
    assert (made["outcome"], made["ok"]) == ("failed", False)
    assert [group["state"] for group in made["groups"]][:2] == ["failed", "rolled_back"]
    page, ticket = render.to_html(made), render.to_markdown(made)
    for text in (
        "boom &amp; &lt;b&gt;bust&lt;/b&gt;",
        "exit code 3",
        "status 500",
        "✗ failed",
        "free some",
        "not reached",
    ):
        assert text in page
    assert "boom & <b>bust</b>" in ticket  # inside a fence
    assert "**failed**" in ticket


def test_check_mode_is_marked_as_a_plan() -> None:
    run = run_of({})
    run.check = True
    planned = Outcome(True, "backend: rebuild", plan=plan(), timings={"plan": 0.5}).to_dict()
    run.hosts["a"] = report.HostRun("a", 1, START, START + 1, "ok", planned, check=True)
    made = report.build(run)
    assert (made["kind"], made["outcome"], made["rollback"]) == ("plan", "planned", [])
    assert "This is a plan." in render.to_html(made)
    assert "This is a plan" in render.to_markdown(made)


def test_broken_off() -> None:
    made = report.build(run_of({"a": ("ok", done()), "b": ("", {})}, complete=False))
    assert not made["ok"]
    assert "the run was broken off" in render.to_html(made)


PLANTED = [
    f"DB_PASSWORD={SECRET}", f"export API_TOKEN='{SECRET}'", f'{{"client_secret": "{SECRET}"}}', f"password: {SECRET}",
    f"postgres://app:{SECRET}@db/x", f"ENV NPM_TOKEN={SECRET} A=1", f"npm_auth_token = {SECRET}",
]  # fmt: skip


@pytest.mark.parametrize("text", PLANTED)
def test_no_secret_anywhere(text: str) -> None:
    evidence = [{"phase": "swap", "container": "c", "state": {}, "health_log": [{"output": text}], "logs": [text]}]
    document = release("rolled_back", evidence=[*evidence, {"phase": "swap", "compose": [text]}], note=text)
    document["gate"]["checks"][0]["detail"] = text
    service = ServicePlan("backend", "i", "rebuild", reasons=(text,), start=Start(1, text), assumed=(text,))
    result = Outcome(True, text, True, Plan("p", "1", "classic", (service,)), document).to_dict()
    error = {"msg": text, "error": {"code": "build-failed", "message": text, "remedy": text, "file": text}}
    run = run_of({"a": ("failed", result), "b": ("failed", error), "c": ("unreachable", {"msg": text})})
    run.extra = [{"file": "D", "line": 1, "code": "DL1", "text": text, "fix": text, "size": 0, "source": "hadolint"}]
    made = report.build(run)
    for form in (render.to_json(made), render.to_html(made), render.to_markdown(made)):
        assert SECRET not in form
        assert "***" in form or "\\*\\*\\*" in form


def test_the_module_masks_by_value_too() -> None:
    said = f"it said {SECRET} aloud"
    document = release("rolled_back", note=said, evidence=[{"phase": "swap", "compose": [said]}])
    result = Outcome(True, f"x {SECRET}", True, plan(), document, secrets=(SECRET,)).to_dict()
    assert SECRET not in json.dumps(result)
    assert result["details"]["release"]["services"]["backend"]["before"] == "sha256:" + "a" * 64
    assert set(result["release"]) == {"id", "state", "note"}


def test_plain_text_is_left_alone() -> None:
    for text in ("COPY --from=builder /a /b", "RUN --mount=type=secret,id=ca pip install", "author=me", "key: public"):
        assert report.hidden(text) == text


def test_markup_in_names_is_text() -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>.py"
    result = Outcome(True, evil, plan=plan(path=evil), release=release(), timings={}).to_dict()
    result["advice"] = [{"code": evil, "file": evil, "line": 1, "text": evil, "fix": evil, "size": 0, "source": evil}]
    made = report.build(run_of({evil: ("ok", result)}, change_id=evil, operator=evil, playbook=evil))
    page = Reader(render.to_html(made))
    assert page.count("script") == page.count("img") == 0
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "<script" not in re.sub(r"(?s)```text\n.*?\n```", "", render.to_markdown(made))


def test_page_loads_nothing_and_is_accessible_by_structure() -> None:
    made = report.build(run_of({"a": ("failed", failed()), "b": ("ok", done())}))
    text = render.to_html(made)
    page = Reader(text)
    assert not re.findall(r"(?:src|href)=\"(?!#)|url\(|@import|http-equiv=\"refresh", text)
    assert ("html", {"lang": "en"}) in page.elements
    assert page.count("h1") == page.count("main") == 1
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.elements if tag == "th")
    assert page.count("table") == page.count("caption")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "href"):
            if attributes.get(name):
                assert str(attributes[name]).lstrip("#") in ids


def test_advice_is_told_once_with_the_number_of_hosts() -> None:
    one = {"code": "base-tag", "file": "D", "line": 1, "text": "t", "fix": "f", "size": 0, "source": "offline-rebuild"}
    theirs = {**one, "code": "DL3006", "source": "hadolint"}
    other = {**theirs, "code": "DL3042"}
    run = run_of({"a": ("ok", done(advice=[one])), "b": ("ok", done(advice=[one]))}, extra=[theirs, other])
    assert [(item["code"], item["hosts"]) for item in report.build(run)["advice"]] == [("base-tag", 2), ("DL3042", 0)]


def test_hadolint_is_asked_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hadolint.ask({"D": "FROM a\n"}) == []
    tool = tmp_path / "hadolint"
    answer = [{"code": "DL3042", "line": 2, "message": "no cache"}, {"code": "DL1000", "line": 1, "message": "parse"}]
    tool.write_text(f"#!{sys.executable}\nprint({json.dumps(json.dumps(answer))})\n")
    tool.chmod(0o755)
    (found,) = hadolint.ask({"D": "FROM a\n"})
    assert (found["file"], found["line"], found["code"], found["source"]) == ("D", 2, "DL3042", "hadolint")


# -- through ansible-playbook: the real role, plugins and configuration; only the module is a stand-in ---------------

MODULE = """
import json, os, time
from ansible.module_utils.basic import AnsibleModule
OPTIONS = {names}
module = AnsibleModule({{name: {{"type": "raw"}} for name in OPTIONS}}, supports_check_mode=True)
folder = module.params["project_src"]
if os.path.exists(folder + "/wait"):
    open(folder + "/waiting", "w").close()
    time.sleep(60)
with open(folder + "/result.json") as handle:
    result = json.load(handle)
if module.params["action"] == "preflight":
    module.exit_json(changed=False, msg="ready", plan=result.get("plan") or result.get("details", {{}}).get("plan"))
(module.fail_json if result.get("failed") else module.exit_json)(**result)
"""


@pytest.fixture
def control(tmp_path: Path) -> Path:
    """A copy of the project as it stands on a control node, with four hosts that answer as their folder says."""
    for name in ("action_plugins", "callback_plugins", "control_node", "playbooks", "roles", "module_utils"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("rebuild.yml", "ansible.cfg"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "library").mkdir()
    source = (ROOT / "library" / "compose_rebuild.py").read_text()
    names = re.findall(r'^    "(\w+)": \{', source, re.MULTILINE)
    (tmp_path / "library" / "compose_rebuild.py").write_text(MODULE.format(names=names))
    same = {"changed": False, "msg": "nothing changed"}
    answers = {"one": done(), "two": {**failed(), "failed": True}, "three": done(), "four": same}
    hosts: dict[str, Any] = {}
    for name, answer in answers.items():
        folder = tmp_path / "hosts" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(answer))
        hosts[name] = {"offline_rebuild_project_src": str(folder)}
    hosts["gone"] = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9,
                     "offline_rebuild_project_src": "/x"}  # fmt: skip
    common = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = {"offline-servers": {"hosts": hosts, "vars": common}}
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory" / "hosts.yml").write_text(json.dumps(inventory))
    return tmp_path


def play(control: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run rebuild.yml with no terminal, as ansible-runner and CI do."""
    argv = [str(Path(sys.executable).with_name("ansible-playbook")), "rebuild.yml", *words]
    return subprocess.run(
        argv, cwd=control, env={**_environment(control), **env}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip


def _environment(control: Path) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    return {**clean, "ANSIBLE_LOCAL_TEMP": str(control / "tmp"), "ANSIBLE_HOME": str(control / "home")}


def written(control: Path) -> dict[str, Any]:
    """The one report that was written."""
    (folder,) = (control / "reports").iterdir()
    assert {path.name for path in folder.iterdir()} == {"report.html", "report.json", "report.md"}
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{6}", folder.name)
    made: dict[str, Any] = json.loads((folder / "report.json").read_text())
    assert made["id"] == folder.name
    return made


def test_playbook_writes_a_report(control: Path) -> None:
    words = ("-e", "offline_rebuild_serial=2", "-e", "offline_rebuild_max_fail_percentage=50")
    ran = play(control, *words, "-e", "offline_rebuild_operator=ann", "-e", "offline_rebuild_change_id=CHG-7")
    made = written(control)
    states = {host["host"]: (host["state"], host["batch"]) for host in made["hosts"]}
    assert states == {
        "one": ("done", 1), "two": ("rolled_back", 1), "three": ("done", 2), "four": ("unchanged", 2),
        "gone": ("unreachable", 0),
    }, ran.stdout  # fmt: skip
    assert (made["operator"], made["change_id"], made["kind"], made["playbook"]) == (
        "ann",
        "CHG-7",
        "run",
        "rebuild.yml",
    )
    back = next(group for group in made["groups"] if group["state"] == "rolled_back")
    assert any("boom" in line for log in back["logs"] for line in log["lines"])
    # Ansible's own output is as it always is, with one line more, and what only the report needs is not in it
    for text in ("PLAY [Rebuild what changed]", "PLAY RECAP", "backend exited", "Report: "):
        assert text in ran.stdout, ran.stdout + ran.stderr
    assert "boom" not in ran.stdout
    assert "details" not in ran.stdout


def test_playbook_in_check_mode_writes_a_plan(control: Path) -> None:
    play(control, "--check", "-l", "one")
    made = written(control)
    assert (made["kind"], made["hosts"][0]["state"]) == ("plan", "planned")


def test_playbook_without_a_report(control: Path) -> None:
    ran = play(control, "-l", "one", "-e", "offline_rebuild_report_dir=")
    assert ran.returncode == 0
    assert "Report:" not in ran.stdout
    assert not (control / "reports").exists()


def test_playbook_where_others_set_the_callback_path(control: Path, tmp_path: Path) -> None:
    """ansible-runner puts its own folder of callbacks into the environment, over the one of ansible.cfg."""
    ran = play(control, "-l", "four", ANSIBLE_CALLBACK_PLUGINS=str(tmp_path / "none"))
    assert written(control)["hosts"][0]["state"] == "unchanged", ran.stderr


def test_playbook_outside_the_window_touches_no_host(control: Path) -> None:
    window = json.dumps({"offline_rebuild_window": {"start": "2020-01-01 00:00", "end": "2020-01-02 00:00",
                                                    "timezone": "Europe/Berlin"}})  # fmt: skip
    ran = play(control, "-l", "one,gone", "-e", window)
    assert ran.returncode == 2
    assert "[outside-window]" in ran.stdout
    assert "UNREACHABLE" not in ran.stdout  # not even asked
    made = written(control)
    assert {host["state"] for host in made["hosts"]} == {"refused"}
    assert play(control, "--check", "-l", "one", "-e", window).returncode == 0


def test_playbook_wants_the_number_of_the_change(control: Path) -> None:
    words = ("-l", "one", "-e", "offline_rebuild_require_change_id=true")
    assert "[change-id-missing]" in play(control, *words).stdout
    assert play(control, *words, "-e", "offline_rebuild_change_id=CHG-7").returncode == 0


def test_playbook_that_is_broken_off(control: Path) -> None:
    (control / "hosts" / "one" / "wait").touch()
    argv = [str(Path(sys.executable).with_name("ansible-playbook")), "rebuild.yml", "-l", "one,four"]
    with subprocess.Popen(
        argv, cwd=control, env=_environment(control), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a test run may ignore it
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not (control / "hosts" / "one" / "waiting").exists():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGINT)
            process.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    made = written(control)
    assert not made["complete"]
    assert not made["ok"]


def test_playbook_waits_for_a_yes_and_takes_the_digest_without_a_terminal(control: Path) -> None:
    for name in ("two", "four"):
        (control / "hosts" / name / "result.json").write_text(json.dumps(done()))
    words = ("-l", "one,two,four", "-e", "offline_rebuild_confirm=ask")
    ran = play(control, *words)
    assert ran.returncode == 2
    assert "[plan-not-confirmed]" in ran.stdout
    assert "3 host(s): one, two, four" in ran.stdout
    assert {host["state"] for host in written(control)["hosts"]} == {"refused"}
    (digest,) = set(re.findall(r"offline_rebuild_confirm=([0-9a-f]{12})", " ".join(ran.stdout.split())))
    again = ("-l", "one,two,four", "-e", f"offline_rebuild_confirm={digest}")
    assert play(control, *again).returncode == 0
    changed = {**done(), "plan": plan(path="other.py").to_dict()}
    (control / "hosts" / "two" / "result.json").write_text(json.dumps(changed))
    other = play(control, *again)
    assert other.returncode == 2
    assert "[plan-not-confirmed]" in other.stdout
    assert play(control, "--check", *words).returncode == 0


def test_playbook_confirmed_at_a_terminal(control: Path) -> None:
    for answer, code in (("yes", 0), ("no", 2)):
        assert _typed(control, answer, "-l", "one", "-e", "offline_rebuild_confirm=ask") == code


def _typed(control: Path, answer: str, *words: str) -> int:
    """Run rebuild.yml at a terminal of its own and type the answer when it is asked for."""
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(control)
        tool = str(Path(sys.executable).with_name("ansible-playbook"))
        os.execve(tool, [tool, "rebuild.yml", *words], _environment(control))  # noqa: S606
    said = b""
    typed = False
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        asked = b"Type yes" in said
        if asked and not select.select([terminal], [], [], 1.0)[0]:  # what is typed before it listens is lost
            os.write(terminal, answer.encode() + b"\r")
            typed = True
            continue
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        said += part
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(terminal)
    assert typed, said
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_estimate_is_told_for_each_host_and_splits_no_group() -> None:
    span = {"seconds": 8.0, "least": 7.0, "most": 9.5, "releases": 3}
    results = {}
    for name, long in (("a", span), ("b", None), ("c", {**span, "seconds": 12.0})):
        values = done()
        values["plan"] = {**values["plan"], "estimated": True, "time": long}
        values["plan"]["services"][0]["times"] = {"make": long, "away": None}
        results[name] = ("ok", values)
    results["d"] = ("ok", done())
    made = report.build(run_of(results))
    assert len(made["groups"]) == 1
    assert made["hosts"][0]["estimate"] == {"all": span, "services": {"backend": {"make": span, "away": None}}}
    assert made["hosts"][3]["estimate"] is None
    words = "- Estimated: 12.0 s (7.0 s to 9.5 s) on the slowest host; no history yet on 1 of 4 hosts"
    assert words in render.to_markdown(made)
    page = render.to_html(made)
    assert "8.0 s (7.0 s to 9.5 s)</td>" in page
    assert "no history yet</td>" in page
