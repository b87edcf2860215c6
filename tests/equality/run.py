"""Runs the corpus on one combination of engine and image store, and judges what came of it.

    python -m tests.equality.run [--engine trixie] [--store classic] [--keep] [--hosts NAME] [CASE ...]

Two hosts: on ``connected`` the untouched trees are built and saved, and every edited tree is built in full with
``--no-cache`` (the truth); ``airgapped`` has nothing but the saved images and works offline.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hosts import Host, Hosts

from .bases import ABSENT, PRESENT, make_bases
from .corpus import CORPUS, Case, Edit, load_cases, make_trees

ROOT = Path(__file__).resolve().parents[2]
REMOTE = "/srv/corpus"
STATE = "/var/lib/ofr-corpus"


@dataclass
class Finding:
    """What is wrong with one edit of one case; ``false_reuse`` is the kind that must never be."""

    case: str
    edit: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.case}/{self.edit}: {self.text}"


@dataclass
class Report:
    """The counts and the findings of one combination."""

    engine: str
    store: str
    cases: int = 0
    cases_equal: int = 0
    edits: int = 0
    edits_equal: int = 0
    compared: int = 0
    ways: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    judged: dict[str, Case] = field(default_factory=dict)

    @property
    def false_reuse(self) -> int:
        return len({(f.case, f.edit) for f in self.findings if f.kind == "false_reuse"})

    def __str__(self) -> str:
        times = ", ".join(f"{name} {value:.0f} s" for name, value in self.times.items())
        lines = [
            f"{self.engine} {self.store}: {self.cases_equal} of {self.cases} cases equal ({self.edits_equal} of "
            f"{self.edits} edits, {self.compared} images compared, made by "
            f"{', '.join(f'{way} {count}' for way, count in sorted(self.ways.items()))}), {self.false_reuse} false "
            f"reuse; {times}"
        ]
        return "\n".join([*lines, *(str(finding) for finding in self.findings)])


def run(
    engine: str, store: str, hosts: Hosts, names: list[str] | None = None, known: dict[str, Any] | None = None
) -> Report:
    """The whole corpus, or the cases named, on two hosts that are up (connected, airgapped).

    :param known: truths of an earlier run; those of trees that are still the same are not built again.
    """
    report = Report(engine, store)
    cases = load_cases(names, engine)
    connected, airgapped = hosts[0], hosts[1]
    with tempfile.TemporaryDirectory(prefix="offline-rebuild-corpus-") as folder:
        where = Path(folder)
        _stage(cases, where)
        keys = _tree_keys(cases, where, engine)
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(lambda host: _install(host, where), (connected, airgapped)))
        # The frontend that the engine has in it is what `# syntax=` would fetch; there is no registry here.
        connected.ssh(f"find {REMOTE} -name '*Dockerfile' -exec sed -i '1{{/^# *syntax *=/d}}' {{}} +")
    _check_cases(cases)
    clock = _Clock(report)
    make_bases(connected)
    originals = _build(connected, _original_jobs(cases))
    for case in cases:
        for name, answer in originals.items():
            if name.split("/")[0] == case.name and "error" in answer:
                report.findings.append(Finding(case.name, "untouched", "broken case", answer["error"]))
    broken = {finding.case for finding in report.findings}
    cases = [case for case in cases if case.name not in broken]
    clock("original builds")
    tags = [*PRESENT, *(case.tag for case in cases), *(case.stage_tag(s) for case in cases for s in case.exports)]
    _transfer(connected, airgapped, tags)
    absent = airgapped.ssh(["docker", "image", "inspect", *ABSENT], check=False)
    if absent.stdout.strip() not in ("", "[]"):
        raise RuntimeError(f"an image is on the air-gapped host that must not be there:\n{absent.stdout}")
    clock("transfer")
    with ThreadPoolExecutor(max_workers=2) as pool:
        same = {name: truth for name, truth in (known or {}).items() if truth.get("key") == keys.get(name, "")}
        jobs = [job for job in _truth_jobs(cases) if job["id"] not in same]
        truth_later = pool.submit(_build, connected, jobs)
        offline_later = pool.submit(_offline, airgapped, cases)
        truths, offline = {**same, **truth_later.result()}, offline_later.result()
    for name, truth in truths.items():
        truth["key"] = keys.get(name, "")
    clock("truth and offline")
    for name in offline["left"]:
        report.findings.append(Finding("all", "-", "left behind", name))
    report.answers = {"truth": {**originals, **truths}, "offline": offline["cases"]}
    for case in cases:
        judge_case(case, report.answers["truth"], offline["cases"][case.name], report)
    report.cases += len(broken)
    return report


def _tree_keys(cases: list[Case], where: Path, engine: str) -> dict[str, str]:
    """A digest of all that a full build depends on, by ``case/edit``."""
    common = [engine, *(path.read_text("utf-8") for path in sorted((CORPUS / "_bases").iterdir()))]
    keys = {}
    for case in cases:
        for edit in case.edits:
            digest = hashlib.sha256(json.dumps([common, _job(case, edit)], sort_keys=True).encode())
            tree = where / "srv/corpus" / case.name / f"{case.name}-{edit.name}"
            for path in sorted(tree.rglob("*")):
                entry = path.lstat()
                content = b""
                if path.is_symlink():
                    content = os.fsencode(path.readlink())
                elif path.is_file():
                    content = path.read_bytes()
                digest.update(repr((os.fsencode(path.relative_to(tree)), entry.st_mode, content)).encode())
            keys[f"{case.name}/{edit.name}"] = digest.hexdigest()
    return keys


def _check_cases(cases: list[Case]) -> None:
    """Every expectation names a line that is there, before anything is built."""
    for case in cases:
        for edit in case.edits:
            for mode in ("fresh", "primed"):
                _lines(case, edit, _due(edit, mode))


class _Clock:
    def __init__(self, report: Report) -> None:
        self.report, self.last = report, time.monotonic()

    def __call__(self, name: str) -> None:
        now = time.monotonic()
        self.report.times[name], self.last = now - self.last, now


# --- on the hosts


def _pipe(first: list[str], second: list[str]) -> None:
    with subprocess.Popen(first, stdout=subprocess.PIPE) as source:
        done = subprocess.run(second, stdin=source.stdout, capture_output=True, check=False)
    if source.returncode or done.returncode:
        raise RuntimeError(f"{first} | {second}\n{done.stderr.decode()[-2000:]}")


def _ssh(host: Host, command: str) -> list[str]:
    return ["ssh", *host.ssh_options(), f"root@{host.address}", command]


def _stage(cases: list[Case], where: Path) -> None:
    """All that goes to the hosts: trees, core (a copy: it may be edited meanwhile) and driver."""
    for case in cases:
        make_trees(case, where / "srv/corpus" / case.name)
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "module_utils" / "offline_rebuild", where / "opt/ofr/offline_rebuild", ignore=skip)
    shutil.copy(Path(__file__).parent / "driver.py", where / "opt/ofr/driver.py")


def _install(host: Host, where: Path) -> None:
    """What was staged onto a host; nothing of an earlier run stays."""
    # pax keeps nanoseconds: BuildKit takes a file of the same size and time for the one that it had before.
    tar = [
        "tar",
        "--format=posix",
        "--numeric-owner",
        "--owner=0",
        "--group=0",
        "-C",
        str(where),
        "-c",
        "srv/corpus",
        "opt/ofr",
    ]
    gone = (
        f"rm -rf {REMOTE} {STATE} /opt/ofr && docker image ls -aq | sort -u | xargs -r docker image rm -f >/dev/null; "
        "docker builder prune -af >/dev/null"
    )
    _pipe(tar, _ssh(host, f"{{ {gone}; }} </dev/null; tar -C / -xp"))


def _transfer(source: Host, target: Host, tags: Iterable[str]) -> None:
    _pipe(_ssh(source, "docker save " + " ".join(tags)), _ssh(target, "docker load"))


def _driver(host: Host, request: dict[str, Any]) -> Any:
    done = host.ssh("python3 /opt/ofr/driver.py", input=json.dumps(request), timeout=2700)
    return json.loads(done.stdout)


def _job(case: Case, edit: Edit, **more: Any) -> dict[str, Any]:
    return {
        "context": f"{REMOTE}/{case.name}/{case.name}-{edit.name}",
        "dockerfile": case.dockerfile,
        "args": edit.args,
        "labels": edit.labels,
        "secrets": case.secrets,
        "target": edit.target,
        **more,
    }


def _original_jobs(cases: list[Case]) -> list[dict[str, Any]]:
    jobs = []
    for case in cases:
        edit = case.edits[0]
        compose = f"{REMOTE}/{case.name}/compose.yaml" if case.compose else ""
        jobs.append(_job(case, edit, id=f"{case.name}/untouched", tag=case.tag, snapshot=True, compose=compose))
        for export in case.exports:
            stage, _, name = export.partition("@")
            tree = next(each for each in case.edits if each.name == (name or "untouched"))
            more = {"id": f"{case.name}/stage-{stage}", "tag": case.stage_tag(stage)}
            jobs.append({**_job(case, tree), **more, "target": stage})
    return jobs


def _truth_jobs(cases: list[Case]) -> list[dict[str, Any]]:
    more = {"snapshot": True, "no_cache": True}
    return [
        _job(case, edit, id=f"{case.name}/{edit.name}", tag=f"truth-{case.name}:{edit.name}", **more)
        for case in cases
        for edit in case.edits[1:]
    ]


def _build(host: Host, jobs: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = _driver(host, {"action": "build", "jobs": jobs, "workers": 3})
    return found


def _due(edit: Edit, mode: str) -> list[str]:
    """Where the plan may start, the earliest first: instructions, or ``unchanged``, ``whole``, ``blocked``."""
    wanted = edit.expect["reuse"] if mode == "fresh" else edit.expect.get("primed", edit.expect["reuse"])
    return [wanted] if isinstance(wanted, str) else list(wanted)


def _modes(case: Case, edit: Edit) -> dict[str, list[str]]:
    modes = ["fresh", "primed"] if edit is not case.edits[0] else ["fresh", "primed", "refused"]
    make = ["primed"] if edit.expect.get("hidden") else ["fresh"]
    if edit.expect.get("primed", edit.expect["reuse"]) != edit.expect["reuse"]:
        make.append("primed")
    return {"modes": modes, "make": make}


def _offline(host: Host, cases: list[Case]) -> dict[str, Any]:
    jobs = []
    for case in cases:
        edits = [{"name": edit.name, **_modes(case, edit)} for edit in case.edits]
        jobs.append({"name": case.name, "project": f"{REMOTE}/{case.name}", "edits": edits, "modes": case.modes})
    found: dict[str, Any] = _driver(host, {"action": "rebuild", "state": STATE, "cases": jobs})
    return found


# --- judging


def judge_case(case: Case, truths: dict[str, Any], offline: dict[str, Any], report: Report) -> None:
    """Hold one case's answers against the truth and its expectations."""
    before = len(report.findings)
    for edit in case.edits:
        count = len(report.findings)
        key = f"{case.name}/{edit.name}"
        truth = truths[key]
        if "error" in truth:
            report.findings.append(Finding(case.name, edit.name, "broken case", truth["error"]))
            continue
        for mode in _modes(case, edit)["modes"]:
            answer = offline[f"{edit.name}/{mode}"]
            for kind, text in _judge(case, edit, mode, answer, truth, _recorded(offline)):
                report.findings.append(Finding(case.name, edit.name, kind, f"({mode}) {text}"))
            report.compared += "files" in answer
            for way, other in answer.get("ways", {}).items():
                report.ways[way] = report.ways.get(way, 0) + (other is True or "files" in other)
        report.edits += 1
        report.edits_equal += len(report.findings) == count
    report.judged[case.name] = case
    report.cases += 1
    report.cases_equal += len(report.findings) == before


def _judge(
    case: Case, edit: Edit, mode: str, answer: dict[str, Any], truth: dict[str, Any], recorded: bool
) -> Iterable[tuple[str, str]]:
    if "error" in answer:
        yield "error", f"{answer['code']}: {answer['error']}"
    if "files" in answer and not (mode == "fresh" and edit.expect.get("hidden")):
        differences = compare(truth, answer)
        if differences:
            yield "false_reuse", "not what a full build gives: " + "; ".join(differences[:8])
    yield from _judge_again(answer)
    for way, other in answer.get("ways", {}).items():
        if other is not True and not (mode == "fresh" and edit.expect.get("hidden")):
            differences = [other["error"]] if "error" in other else compare(truth, other)
            if differences:
                yield "false_reuse", f"by {way}, not what a full build gives: " + "; ".join(differences[:8])
    plan = answer.get("plan")
    if plan is None:
        return
    if mode == "refused":
        yield from _judge_refused(edit, plan)
        return
    if mode == "fresh":
        yield from _judge_fresh(case, edit, plan)
        if edit.expect.get("hidden"):
            return
    elif recorded and plan["reused"] and (plan["evidence"], *plan["assumed"]) != _due_evidence(edit):
        yield "evidence", f"the tree was recorded and the plan says {plan['evidence']}: {plan['assumed']}"
    yield from _judge_start(case, edit, mode, plan)


def _judge_again(answer: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """What was made is left alone by the next run."""
    if answer.get("again", "unchanged") not in ("unchanged", "restart"):
        yield "again", f"the next run would not leave alone what was made: {answer['again']}"


def _recorded(offline: dict[str, Any]) -> bool:
    """Whether ``prime`` recorded the untouched tree: it does so only if the image proves all of it."""
    return any(written and not why for _, written, why in offline["prime"].get("primed", []))


def _due_evidence(edit: Edit) -> tuple[str, ...]:
    """What a plan says of a tree that was recorded, and all that it assumes in spite of that."""
    assumed = edit.expect.get("primed_assumed") or []
    return ("assumed" if assumed else "recorded", *assumed)


def _judge_refused(edit: Edit, plan: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """Without a record, ``evidence: recorded`` accepts nothing: all is built again, or nothing can be."""
    if plan["action"] == "blocked" or edit.expect.get("scratch"):
        return
    if plan["action"] != "rebuild" or plan["reused"] > 0:
        yield "false_reuse", f"evidence is set to recorded, and {plan['reused']} of {plan['total']} are reused"


def _judge_fresh(case: Case, edit: Edit, plan: dict[str, Any]) -> Iterable[tuple[str, str]]:
    if plan["action"] == "blocked":
        return  # nothing is reused, so nothing is assumed
    wanted = list(edit.expect.get("assumed") or [])
    if not wanted and not case.observed and plan["reused"]:
        wanted = ["FROM "]
    said = "\n".join(plan["assumed"])
    for text in wanted:
        if text not in said:
            yield "evidence", f"{text!r} is not named among what was assumed: {plan['assumed']}"
    if plan["evidence"] == "recorded" or (wanted and plan["evidence"] != "assumed"):
        yield "evidence", f"there is no record, and the plan says {plan['evidence']}"


def _judge_start(case: Case, edit: Edit, mode: str, plan: dict[str, Any]) -> Iterable[tuple[str, str]]:
    due, seen = _due(edit, mode), _seen(plan)
    if seen in due or (seen == "start" and plan["start"]["line"] in _lines(case, edit, due)):
        return
    lines = _lines(case, edit, due)
    if "blocked" in due and not lines:
        kind = "false_reuse"
    elif not lines or seen == "blocked":
        kind = "missed_reuse"
    else:
        kind = "false_reuse" if seen != "start" or plan["start"]["line"] > max(lines) else "missed_reuse"
    yield kind, f"due was {' or '.join(due)} {lines or ''}; {_said(plan)}"


def _lines(case: Case, edit: Edit, due: list[str]) -> list[int]:
    return [line_of(case, edit, text) for text in due if text not in ("unchanged", "whole", "blocked")]


def _seen(plan: dict[str, Any]) -> str:
    if plan["action"] in ("unchanged", "restart"):
        return "unchanged"
    if plan["action"] == "blocked":
        return "blocked"
    return "start" if plan["start"] else "whole"


def _said(plan: dict[str, Any]) -> str:
    start = f"{plan['start']['line']} {plan['start']['text']}" if plan["start"] else "none"
    return f"the plan: {plan['action']} {plan['way']}, start {start}, reasons {plan['reasons']}"


def line_of(case: Case, edit: Edit, text: str) -> int:
    """The line of the one instruction that begins with ``text`` in the edited Dockerfile.

    ``text`` may end with ``#2`` for the second such instruction.
    """
    text, _, number = text.partition(" #")
    found = [n for n, line in enumerate(edit.dockerfile_lines, 1) if line.strip().startswith(text)]
    index = int(number or 1) - 1
    if len(found) <= index or (not number and len(found) > 1):
        raise ValueError(f"{case.name}/{edit.name}: {text!r} begins {len(found)} lines")
    return found[index]


def compare(truth: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """Every difference between two snapshots, in words."""
    found = []
    for path in sorted({*truth["files"], *result["files"]}):
        want, have = truth["files"].get(path), result["files"].get(path)
        if want != have:
            found.append(f"/{path}: {want} in full, {have} offline")
    for key in sorted({*truth["config"], *result["config"]}):
        want, have = truth["config"].get(key), result["config"].get(key)
        if want != have:
            found.append(f"{key}: {want} in full, {have} offline")
    return found


def rejudge(engine: str, store: str, answers: dict[str, Any]) -> Report:
    """Judge answers of an earlier run anew: expectations may have been edited since."""
    report = Report(engine, store)
    cases = [case for case in load_cases(None, engine) if case.name in answers["offline"]]
    with tempfile.TemporaryDirectory(prefix="offline-rebuild-corpus-") as folder:
        for case in cases:
            make_trees(case, Path(folder) / case.name)
    _check_cases(cases)
    for case in cases:
        judge_case(case, answers["truth"], answers["offline"][case.name], report)
    return report


def main() -> int:
    """Runs from the command line; hosts that are up are used and kept with ``--keep``."""
    parser = argparse.ArgumentParser(prog="python -m tests.equality.run", description=__doc__)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--engine", default="trixie")
    parser.add_argument("--store", default="classic")
    parser.add_argument("--hosts", default="")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--answers", type=Path, help="write all answers into this file")
    parser.add_argument("--truth", type=Path, help="take the truth of trees that are the same from such a file")
    parser.add_argument("--judge", action="store_true", help="judge the answers in that file, run nothing")
    options = parser.parse_args()
    if options.judge:
        print(rejudge(options.engine, options.store, json.loads(options.answers.read_text("utf-8"))))
        return 0
    known = json.loads(options.truth.read_text("utf-8"))["truth"] if options.truth else None
    name = options.hosts or f"corpus-{options.engine}-{options.store}"
    hosts = Hosts.up(name, count=2, engine=options.engine, store=options.store)
    try:
        report = run(options.engine, options.store, hosts, options.cases or None, known)
    finally:
        if not options.keep:
            hosts.down()
    if options.answers:
        options.answers.write_text(json.dumps(report.answers, indent=1), "utf-8")
    print(report)
    return 1 if report.findings else 0


if __name__ == "__main__":
    shutil.which("ssh") or sys.exit("ssh is missing")
    sys.exit(main())
