"""The rows of the matrix: what is done to a run or to its host, and what has to be seen then."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .site import BUILT, DOCKERFILE, GOOD, HEALTH, PORT, PROJECT, ROOT, SRC, STATE, Site

JOURNAL = f"{STATE}/releases/{PROJECT}"
#: The newest release's file, for a shell.
NEWEST = f"$(ls -1 {JOURNAL}/*Z-??????.json | tail -n 1)"
BUILDING = "until pgrep -f 'docker[^ ]* build(x build)? '"
EXITS = "echo boom; exit 3\n"
HANGS = "exec sleep 10000\n"
#: Answers for a moment (a shell is the container's first process, so that it can be ended from inside).
DIES = "echo {version} > /www/version; httpd -p 8080 -h /www; sleep {seconds}; exit 7\n"
SLOW = "sleep 2; " + GOOD


@dataclass(frozen=True)
class Seen:
    """What came of the faulty run: one line for the table, the run's result, and whether it ended by itself."""

    text: str
    result: dict[str, Any]
    ended: bool = True


@dataclass(frozen=True)
class Fault:
    """One row.

    :param act: edits the tree and runs with the fault.
    :param audit: what the audit log must hold afterwards, each in some line; ``|`` stands between alternatives.
    :param mend: what an operator does before the rerun: repairs the tree, frees the disk.
    :param outage: seconds in which nothing may serve, at most.
    :param dark: nothing serves between the fault and the rerun; only where no version is there that could.
    :param ground: what the host is like: ``plain``, ``small state`` or ``small engine`` (a small disk there).
    :param quick: the row belongs to the subset of ``make test``.
    """

    name: str
    act: Callable[[Site], Seen]
    audit: Sequence[str] = ()
    mend: Callable[[Site], object] | None = None
    outage: float = 6.0
    dark: bool = False
    ground: str = "plain"
    quick: bool = False


def _run(site: Site, **request: Any) -> Seen:
    result = site.call("run", request=site.request(**request))
    return Seen(result["msg"], result)


def _fault(site: Site, state: str, *steps: str, after: float = 0.0, **request: Any) -> Seen:
    answer = site.call("fault", state=state, after=after, do=steps, request=site.request(**request))
    assert answer["hit"], f"the journal never showed {state}: {answer}"
    assert not [line for line in answer["said"] if line.startswith("never")], answer
    if answer["killed"]:  # what it left at work; the rerun waits for it, too
        site.host.ssh(f"flock -w 60 {STATE}/locks/{PROJECT}.guard true")
    text = f"killed, journal: {answer['left'][-1:]}" if answer["killed"] else answer["result"].get("msg", "no answer")
    return Seen(text, {**answer["result"], "said": answer["said"]}, not answer["killed"])


def _edit(site: Site, version: str) -> None:
    """``good``, ``built``, ``building`` (takes a while), ``slow`` (healthy after two seconds) or a script."""
    if version == "good":
        site.good()
    elif version in ("built", "building"):
        site.built("sleep 3; true" if version == "building" else "true")
    elif version == "slow":
        site.edit(SLOW)
    else:
        site.edit(version)


# -- the run is killed


def _kill(version: str, state: str, after: float, site: Site) -> Seen:
    _edit(site, version)
    steps = [BUILDING] if version == "building" else []
    return _fault(site, state, *steps, "kill", after=after, **(PREGATE if state == "pregating" else {}))


def _kills() -> list[Fault]:
    rows = []
    places: list[tuple[str, str, float, str]] = [
        ("good", "locked", 0.0, ""),
        ("good", "making", 0.0, "making"),
        ("good", "making", 0.05, ""),
        ("built", "making", 0.0, "making"),
        ("built", "making", 0.5, ""),
        ("building", "making", 0.3, "making"),
        ("slow", "pregating", 0.0, "pregating"),
        ("slow", "pregating", 1.0, "pregating"),
        ("good", "swapping", 0.0, "swapping"),
        ("good", "swapping", 0.1, ""),
        ("good", "swapping", 0.3, ""),
        ("built", "swapping", 0.5, ""),
        ("slow", "gating", 0.0, "gating"),
        ("slow", "gating", 0.5, "gating"),
        ("good", "done", 0.0, ""),
    ]
    for version, state, after, cut in places:
        audit = [f"was cut off in state {cut}"] if cut else []
        act = functools.partial(_kill, version, state, after)
        quick = (version, state, after) in (("building", "making", 0.3), ("good", "swapping", 0.3), ("good", "done", 0))
        # the new version is broken for two seconds, or the old one has gone and the rerun is waited for
        rows.append(Fault(f"SIGKILL {state}+{after:g} {version}", act, audit, outage=10, quick=quick))
    for state, after, cut in (
        ("rolling_back", 0.0, "rolling_back"),
        ("rolling_back", 0.2, ""),
        ("rolling_back", 0.6, ""),
        ("rolled_back", 0.0, ""),
    ):
        act = functools.partial(_kill, EXITS, state, after)
        audit = [f"was cut off in state {cut}"] if cut else ["rolling back web"]
        dark = state == "rolling_back"
        row = Fault(f"SIGKILL {state}+{after:g} bad", act, audit, Site.good, 20, dark, quick=after == 0.2)
        rows.append(row)
    return rows


# -- the engine, the host


#: Asks for a trial of the new image beside the old container, which the project's volume forbids otherwise.
PREGATE = {"pregate_services": ["web"]}


def _engine(verb: str, version: str, state: str, after: float, site: Site) -> Seen:
    _edit(site, version)
    steps = [BUILDING] if version == "building" else []
    wishes = PREGATE if state == "pregating" else {}
    seen = _fault(site, state, *steps, f"/usr/local/sbin/host-engine {verb}", after=after, **wishes)
    site.host.wait_ready()
    # what lost its engine cannot take away what it made; the rerun does
    return Seen(seen.text, seen.result, ended=False)


def _engines() -> list[Fault]:
    rows = []
    for verb in ("restart", "kill"):
        for where, version, state, after in (
            ("build", "building", "making", 0.2),
            ("pre-gate", "slow", "pregating", 0.5),
            ("swap", "good", "swapping", 0.1),
            ("swap", "good", "swapping", 0.4),
            ("gate", "slow", "gating", 0.3),
        ):
            act = functools.partial(_engine, verb, version, state, after)
            # a client that has not reached the engine yet goes on trying, and then builds all the same
            audit = ['nothing was touched|"done"'] if where == "build" else [f'"{state}"']
            audit += [] if where in ("build", "pre-gate") else ['"done"']
            quick = (verb, where) == ("restart", "gate")
            rows.append(Fault(f"engine {verb} in {where}+{after:g}", act, audit, outage=40, quick=quick))
    return rows


def _host_killed(version: str, state: str, after: float, site: Site) -> Seen:
    """The power is cut, and the host started again: its engine has to come up with its data by itself."""
    _edit(site, version)
    steps = [BUILDING] if version == "building" else []
    wishes = PREGATE if state == "pregating" else {}

    def run() -> None:
        given = {"op": "fault", "state": state, "after": after, "do": [*steps, "reached /var/tmp/reached"]}
        request = json.dumps({**given, "request": site.request(**wishes)})
        site.host.ssh(["python3", "/opt/ofr/host_driver.py"], input=request, check=False)

    site.host.ssh("rm -f /var/tmp/reached")
    running = threading.Thread(target=run)
    running.start()
    site.host.ssh("until [ -e /var/tmp/reached ]; do sleep 0.01; done; rm /var/tmp/reached", timeout=90)
    site.host.container.kill()
    running.join()
    site.host.container.start()
    site.host.wait_ready()
    site.call("watch")
    return Seen("the host was killed and started again", {}, ended=False)


def _hosts() -> list[Fault]:
    rows = []
    for version, state, after in (
        ("building", "making", 0.2),
        ("slow", "pregating", 0.5),
        ("good", "swapping", 0.0),
        ("good", "swapping", 0.3),
        ("slow", "gating", 0.2),
    ):
        act = functools.partial(_host_killed, version, state, after)
        name = f"host killed in {state}+{after:g} {version}"
        # between the old container's end and the new one's start a host that comes back has neither to start
        rows.append(Fault(name, act, ["was cut off in state"], None, 60, dark=state == "swapping"))
    return rows


# -- the disk


def _fill(folder: str) -> str:
    return f"cat /dev/zero > {folder}/ballast 2>/dev/null; true"


def _freed(site: Site) -> None:
    site.host.ssh(f"rm -f {STATE}/ballast /var/lib/docker/ballast")


def _freed_and_good(site: Site) -> None:
    _freed(site)
    site.good()


def _disk_full(folder: str, version: str, state: str, site: Site) -> Seen:
    _edit(site, version)
    steps = ["stop", _fill(folder), "continue"]
    return _fault(site, state, *steps)


def _disk_full_in_tag(site: Site) -> Seen:
    """On a full disk an engine cannot remove an image either; it goes with its release at the latest."""
    seen = _disk_full("/var/lib/docker", "good", "swapping", site)
    return Seen(seen.text, seen.result, ended=False)


def _disk_full_by_build(site: Site) -> Seen:
    site.built("dd if=/dev/zero of=/big bs=1M count=2000")
    return _run(site)


def _disks() -> list[Fault]:
    rows = []
    for version, state, nothing in (
        ("good", "making", True),
        ("good", "swapping", False),
        ("slow", "gating", False),
        (EXITS, "swapping", False),
        (EXITS, "gating", False),
        (EXITS, "rolling_back", False),
    ):
        act = functools.partial(_disk_full, STATE, version, state)
        bad = version == EXITS
        mend = _freed_and_good if bad else _freed
        name = f"disk full, journal after {state} {'bad' if bad else version}"
        rows.append(Fault(name, act, [], mend, 20, ground="small state", quick=state == "gating" and not bad))
        assert nothing or state != "making"
    engine = "/var/lib/docker"
    build = Fault("disk full in build", _disk_full_by_build, ["nothing was touched"], Site.good, ground="small engine")
    load = functools.partial(_disk_full, engine, "good", "making")
    rows += [
        build,
        Fault("disk full in load", load, [], _freed, 20, ground="small engine"),
        Fault("disk full in tag and up", _disk_full_in_tag, [], _freed, 20, dark=True, ground="small engine"),
    ]
    return rows


# -- SSH, a second run


def _ssh_cut(version: str, state: str, site: Site) -> Seen:
    """The connection of a playbook's run is ended: Ansible begins again, and waits for what goes on at the host."""
    _edit(site, version)
    known = site.call("known")["known"]
    program = str(Path(sys.executable).parent / "ansible-playbook")
    variables = {
        "offline_rebuild_project_src": SRC,
        "offline_rebuild_project_name": PROJECT,
        "offline_rebuild_gate_timeout": 30,
        "offline_rebuild_operator": "ann",
        "offline_rebuild_change_id": "C1",
        "offline_rebuild_health_checks": site.request()["health_checks"],
    }
    argv = [program, "rebuild.yml", "-i", str(site.host.directory / "inventory.yml"), "-e", json.dumps(variables)]
    with subprocess.Popen(
        argv,
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as play:
        cut = site.call("cut", state=state, known=known)
        said = play.communicate(timeout=180)[0]
    assert cut["hit"], f"{cut}\n{said}"
    # the module goes on by itself, or has ended: wait for its lock to be free or stale
    site.host.ssh(f"until ! flock -n {STATE}/locks/{PROJECT}.guard false; do sleep 0.05; done", check=False)
    site.host.ssh(f"flock -w 90 {STATE}/locks/{PROJECT}.guard true")
    assert play.returncode == 0, said
    last = [line.strip() for line in said.splitlines() if "server1" in line][-1:]
    return Seen(f"playbook ended with {play.returncode}: {' '.join(last)}", {"text": said})


def _second_run(site: Site) -> Seen:
    site.built("sleep 3; true")
    second = json.dumps({"op": "run", "request": site.request(operator="bob")})
    line = f"echo '{second}' | python3 /opt/ofr/host_driver.py"
    seen = _fault(site, "making", BUILDING, line)
    answer = json.loads(seen.result["said"][1].split(" ", 1)[1])
    assert answer["error"]["code"] == "locked", answer
    assert "ann" in answer["msg"], answer
    assert seen.result["release"]["state"] == "done", seen
    return Seen(f"the second run: {answer['msg']}", seen.result)


def _at_once(site: Site) -> Seen:
    site.good()
    request = json.dumps({"op": "run", "request": site.request()})
    line = f"echo '{request}' | python3 /opt/ofr/host_driver.py"
    text = site.host.ssh(f"({line}) > /tmp/first & ({line}); wait; echo; cat /tmp/first; rm /tmp/first").stdout
    answers = [json.loads(part) for part in text.splitlines() if part]
    kinds = sorted(answer.get("error", {}).get("code") or answer.get("msg") for answer in answers)
    assert len([a for a in answers if (a.get("release") or {}).get("state") == "done"]) == 1, kinds
    assert kinds[0] in ("locked", "nothing changed"), kinds
    return Seen(" / ".join(kinds), answers[0])


# -- images that are no good


def _bad(script: str, dockerfile: str, timeout: int, why: str, site: Site) -> Seen:
    site.edit(script, dockerfile)
    seen = _run(site, gate_timeout=timeout)
    assert seen.result["release"]["state"] == "rolled_back", seen
    assert why in seen.result["release"]["note"], seen
    return seen


def _bad_beside(site: Site) -> Seen:
    """Tried beside the old container, a bad image costs no second of service."""
    site.edit(EXITS)
    seen = _run(site, **PREGATE)
    assert "nothing was swapped" in seen.result["msg"], seen
    return seen


def _images() -> list[Fault]:
    bare = DOCKERFILE.replace(HEALTH + "\n", "")
    sick = DOCKERFILE.replace("--interval=300s --retries=1", "--interval=5s --retries=2")
    dies = DIES.replace("{seconds}", "0.4")
    cases: list[tuple[str, str, str, int, str, bool]] = [
        ("exits at once", EXITS, DOCKERFILE, 30, "shop-web-1", True),
        ("exits at once, built", EXITS, BUILT, 30, "shop-web-1", False),
        ("exits at once, no healthcheck", EXITS, bare, 30, "code 3", False),
        ("hangs", HANGS, DOCKERFILE, 3, "web", False),
        ("is unhealthy after 10 s", HANGS, sick, 30, "unhealthy", False),
        ("is healthy and dies", dies, DOCKERFILE, 30, "shop-web-1", True),
        ("is up and dies, no healthcheck", dies, bare, 30, "code 7", False),
    ]
    return [
        Fault(
            f"new image {name}",
            functools.partial(_bad, script, dockerfile, timeout, why),
            ["rolling back web", '"rolled_back"'],
            Site.good,
            outage=25,
            quick=quick,
        )
        for name, script, dockerfile, timeout, why, quick in cases
    ]


def _check_of_the_next_version(site: Site) -> Seen:
    """An operator's check that only a later version could pass: the way back must not be held to it."""
    site.good()
    wrong = [{"url": f"http://127.0.0.1:{PORT}/version", "body": f"^{site.version}-final$", "name": "version"}]
    seen = _run(site, health_checks=wrong, gate_timeout=4)
    assert seen.result["release"]["state"] == "rolled_back", seen
    return seen


_OLD = f'python3 -c \'import json,sys; print(json.load(open(sys.argv[1]))["services"]["web"]["before"])\' {NEWEST}'
_NEW = _OLD.replace("before", "after")


def _old_gone_in_gate(site: Site) -> Seen:
    site.edit(EXITS)
    seen = _fault(site, "gating", "stop", f"docker rmi -f $({_OLD})", "continue")
    assert seen.result["release"]["state"] == "failed", seen
    return seen


def _old_gone_after_kill(site: Site) -> Seen:
    site.edit(EXITS)
    return _fault(site, "rolling_back", "kill", f"docker rmi -f $({_OLD})")


def _new_gone_after_kill(site: Site) -> Seen:
    site.good()
    return _fault(site, "swapping", "kill", f"docker rmi -f $({_NEW})")


# -- what is on the disk is not what was written


def _damaged(line: str, state: str, after: float, site: Site) -> Seen:
    site.good()
    seen = _fault(site, state, "kill", after=after)
    site.host.ssh(f"flock -w 60 {STATE}/locks/{PROJECT}.guard true; f={NEWEST}; {line}")
    return Seen(f"{seen.text}; then {line}", seen.result, ended=False)


def _journals() -> list[Fault]:
    rows = []
    for name, line in (
        ("cut short", "head -c 100 $f > $f.n; mv $f.n $f"),
        ("garbage", "head -c 300 /dev/urandom > $f"),
        ("empty", ": > $f"),
        ("wrong schema", 'sed -i \'s/"schema": [0-9]*/"schema": 99/\' $f'),
    ):
        act = functools.partial(_damaged, line, "swapping", 0.3)
        rows.append(Fault(f"journal {name}", act, ["could not be read"], quick=name == "empty"))
    line = 'for f in $(ls $(dirname $f)/*.json); do echo "{" > $f; done'
    whole = functools.partial(_damaged, line, "done", 0.5)
    rows.append(Fault("journal and its compose files all garbage", whole, ["could not be read"]))
    return rows


#: Everything that a run keeps, as a clock ten years ahead would have written it.
_FUTURE = """
import glob, json, os, re, sys, time
ahead = 10 * 366 * 86400
for path in glob.glob(sys.argv[1] + "/releases/*/*Z-??????*.json"):
    data = open(path).read()
    if path.count(".") == 1:
        value = json.loads(data)
        value["id"] = "2036" + value["id"][4:]
        for key in ("started", "finished", "run_time"):
            value[key] = value[key] and value[key] + ahead
        data = json.dumps(value)
    os.unlink(path)
    folder, name = os.path.split(path)
    open(os.path.join(folder, "2036" + name[4:]), "w").write(data)
for path in glob.glob(sys.argv[1] + "/locks/*.lock/owner.json"):
    value = json.load(open(path))
    value["time"] += ahead
    json.dump(value, open(path, "w"))
for top in sys.argv[1:]:
    for folder, _, files in os.walk(top):
        for name in files:
            os.utime(os.path.join(folder, name), (time.time() + ahead,) * 2)
"""


def _clock_back(state: str, site: Site) -> Seen:
    """What was written lies in the future; then a file is edited that keeps size and time."""
    site.good()
    seen = _fault(site, state, "kill", after=0.3)
    site.host.ssh(f"flock -w 60 {STATE}/locks/{PROJECT}.guard true; python3 - {STATE} {SRC}", input=_FUTURE)
    _run(site)
    script = f"{SRC}/web/app/run.sh"
    before = site.host.ssh(f"stat -c '%s %Y' {script}").stdout
    site.good()
    site.host.ssh(f"touch -d @{before.split()[1]} {script}")
    assert site.host.ssh(f"stat -c '%s %Y' {script}").stdout == before
    return Seen(f"{seen.text}; journal, lock and files in 2036; then an edit of equal size and time", seen.result)


def _lock_left(line: str, site: Site) -> Seen:
    site.good()
    site.host.ssh(f"mkdir -p {STATE}/locks/{PROJECT}.lock && cd {STATE}/locks/{PROJECT}.lock && {line}")
    return Seen(line[:60], {}, ended=False)


def _locks() -> list[Fault]:
    owner = '{"operator": "eve", "pid": %s, "start": "1", "boot_id": "%s", "time": 4000000000}'
    boot = "$(cat /proc/sys/kernel/random/boot_id)"
    lines = {
        "without owner": "true",
        "with garbage": "echo nonsense > owner.json",
        "of a pid that is another's now": f"cat > owner.json <<E\n{owner % ('1', boot)}\nE",
        "of another boot": f"cat > owner.json <<E\n{owner % ('1', 'x')}\nE",
    }
    return [
        Fault(f"lock left {name}", functools.partial(_lock_left, line), ["took over the stale lock"])
        for name, line in lines.items()
    ]


ROWS: tuple[Fault, ...] = (
    *_kills(),
    *_images(),
    Fault("new image exits beside the old container", _bad_beside, ["nothing was swapped"], Site.good, 8, quick=True),
    Fault("a check that the old version cannot pass", _check_of_the_next_version, ['"rolled_back"'], outage=25),
    Fault("old image gone in the gate", _old_gone_in_gate, ["the rollback failed"], Site.good, 30, dark=True),
    Fault("old image gone after a kill", _old_gone_after_kill, ["rolling_back"], Site.good, 30, dark=True),
    Fault("new image gone after a kill", _new_gone_after_kill, ["is gone", '"rolled_back"']),
    Fault("a second run", _second_run, ['"done"'], quick=True),
    Fault("two runs at once", _at_once, ['"done"']),
    *_journals(),
    *_locks(),
    Fault("clock set back after swapping", functools.partial(_clock_back, "swapping"), ["was cut off"]),
    Fault("clock set back after done", functools.partial(_clock_back, "done"), ['"done"']),
    *(
        Fault(f"SSH cut in {state} {version}", functools.partial(_ssh_cut, version, state), ['"done"'], outage=10)
        for version, state in (("building", "making"), ("good", "swapping"), ("slow", "gating"))
    ),
    *_engines(),
    *_hosts(),
    *_disks(),
)
