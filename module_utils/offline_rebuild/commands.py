"""The command line for a host that no control node reaches: the same core, plan, lock, journal and state folder.

Parsing and rendering are functions of their arguments; :data:`COMMANDS` names, per command, its options and the one
function that acts. A command's answer is a value (exit code, document, lines); ``main`` writes it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import sys
import unicodedata
from dataclasses import asdict, dataclass, replace
from typing import Any, Callable, Dict, List, Mapping, NoReturn, Optional, Sequence, TextIO, Tuple, Union

from . import messages, render
from .cli import Docker
from .errors import OfflineRebuildError, on_this_host
from .image import ImageStore
from .planner import image_store
from .release import Journal, mask, secrets_of
from .run import Outcome, Request, execute, settings_of, survey

__all__ = ["COMMANDS", "Answer", "Command", "exit_code_of", "help_text", "main", "parse", "request_of"]

SCHEMA = 1
#: Exit codes; messages.py says what they mean.
DONE, FAILED, CHANGES, BLOCKED, BACK, USAGE, DEFECT, LOCKED, INTERRUPTED = 0, 1, 2, 3, 4, 64, 70, 75, 130
#: All of them; 69 is scripts/pyz/__main__.py's.
EXIT_CODES = (DONE, FAILED, CHANGES, BLOCKED, BACK, USAGE, 69, DEFECT, LOCKED, INTERRUPTED)
_CODE_OF = {
    "usage": USAGE,
    "option-invalid": USAGE,
    "defect": DEFECT,
    "locked": LOCKED,
    "plan-blocked": BLOCKED,
    "image-missing": BLOCKED,
}
#: Lines of a failed container's log that are shown.
_EVIDENCE_LINES = 20
Say = Callable[[str], None]


@dataclass(frozen=True)
class Option:
    """An option of the command line.

    :param kind: ``one``, ``many``, ``number`` (from 1 on) or ``count`` (from 0 on) value, or ``flag``.
    :param choices: the values that it may have; empty: any.
    """

    flags: Tuple[str, ...]
    kind: str = "one"
    meta: str = ""
    choices: Tuple[str, ...] = ()


#: By the name of the field of :class:`run.Request`, where there is such a field.
OPTIONS: Mapping[str, Option] = {
    "project_src": Option(("--project-src",), meta="DIR"),
    "compose_files": Option(("-f", "--compose-file"), "many", "FILE"),
    "env_files": Option(("--env-file",), "many", "FILE"),
    "profiles": Option(("--profile",), "many", "NAME"),
    "project_name": Option(("-p", "--project-name"), meta="NAME"),
    "build_args": Option(("--build-arg",), "many", "NAME[=VALUE]"),
    "evidence": Option(("--evidence",), meta="LEVEL", choices=("recorded", "observed", "assumed")),
    "modes": Option(("--modes",), meta="WHOSE", choices=("exact", "image")),
    "reuse": Option(("--reuse",), meta="HOW", choices=("exact", "overlay")),
    "dependency_files": Option(("--dependency-file",), "many", "PATTERN"),
    "overlay_run": Option(("--overlay-run",), "many", "TEXT"),
    "wheelhouse": Option(("--wheelhouse",), meta="DIR"),
    "npm_cache": Option(("--npm-cache",), meta="DIR"),
    "advise": Option(("--advise",), "flag"),
    "state_dir": Option(("--state-dir",), meta="DIR"),
    "health_checks": Option(("--health-check",), "many", "URL"),
    "gate_timeout": Option(("--gate-timeout",), "number", "SECONDS"),
    "pregate_services": Option(("--pregate",), "many", "NAME"),
    "no_pregate_services": Option(("--no-pregate",), "many", "NAME"),
    "rolling_services": Option(("--rolling",), "many", "NAME"),
    "keep_releases": Option(("--keep-releases",), "number", "N"),
    "change_id": Option(("--change-id",), meta="ID"),
    "operator": Option(("--operator",), meta="NAME"),
    "diff": Option(("--diff",), "flag"),
    "exit_code": Option(("--exit-code",), "flag"),
    "check": Option(("--check",), "flag"),
    "lines": Option(("-n", "--lines"), "number", "N"),
    "since": Option(("--since",), meta="TIME"),
    "cache_days": Option(("--cache-days",), "count", "N"),
    "receiver": Option(("--for",), meta="FILE"),
    "output": Option(("-o", "--output"), meta="FILE"),
    "json": Option(("--json",), "flag"),
    "options": Option(("--options",), meta="FILE"),
    "help": Option(("-h", "--help"), "flag"),
}
_PROJECT = ("project_src", "compose_files", "env_files", "profiles", "project_name", "state_dir")
_BUILD = (*_PROJECT, "build_args", "evidence", "modes")
_MAKE = (*_BUILD, "reuse", "dependency_files", "overlay_run", "wheelhouse", "npm_cache", "advise")
_SWAP = ("pregate_services", "no_pregate_services", "rolling_services")
_GATED = ("health_checks", "gate_timeout", *_SWAP, "keep_releases", "change_id", "operator")
_RUN = (*_MAKE, *_GATED)
_COMMON = ("json", "options", "help")


@dataclass(frozen=True)
class Answer:
    """What a command found or did: exit code, a JSON-ready document, and the same as lines of text."""

    code: int
    document: Mapping[str, Any]
    lines: Sequence[str]


@dataclass(frozen=True)
class Command:
    """A command.

    :param act: given the parsed options and a function that tells of progress.
    :param arguments: what its arguments are: ``services``, ``releases``, ``archives`` (paths), ``names`` of images, or
        ``nothing``.
    :param swaps: whether it may swap services.
    """

    act: Callable[[argparse.Namespace, Say], Answer]
    options: Tuple[str, ...]
    arguments: str = "services"
    swaps: bool = False


# -- the commands -----------------------------------------------------------------------------------------------------


def _plan(given: argparse.Namespace, _say: Say) -> Answer:
    outcome = execute(request_of(given, check=True))
    code = CHANGES if given.exit_code and outcome.changed else DONE
    lines = [*_plan_lines(outcome, given.diff), *_advice(outcome)]
    return Answer(BLOCKED if outcome.failed else code, _document(outcome), lines)


def _advice(outcome: Outcome) -> List[str]:
    return [f"advice: {one['says']}" for one in outcome.advice or ()]


def _plan_lines(outcome: Outcome, detail: bool) -> List[str]:
    assert outcome.plan is not None
    lines = render.plan_lines(outcome.plan, detail)
    if outcome.failed:
        return [*lines, "blocked; nothing was touched"]
    names = ", ".join(s.service for s in outcome.plan.services if s.changed)
    if outcome.changed and not outcome.plan.changed:  # a run that was cut off is to be finished
        return [*lines, outcome.msg]
    return [*lines, f"a rebuild would change {names}" if names else "a rebuild would change nothing"]


def _rebuild(given: argparse.Namespace, say: Say) -> Answer:
    request = request_of(given)
    outcome = execute(request, lambda _event, text: say(text))
    if outcome.release is None:
        if outcome.failed:
            return Answer(BLOCKED, _document(outcome), [*_plan_lines(outcome, given.diff), *_advice(outcome)])
        return Answer(DONE, _document(outcome), ["nothing to do", *_advice(outcome)])
    answer = _released(outcome, request, given.diff)
    return replace(answer, lines=[*answer.lines, *_advice(outcome)])


def _rollback(given: argparse.Namespace, say: Say) -> Answer:
    if len(given.arguments) > 1:
        raise OfflineRebuildError("usage", "rollback goes back to one release", "name one, or none for the one before")
    request = request_of(given, check=bool(given.check), action="rollback")
    request = replace(request, release="".join(given.arguments))
    outcome = execute(request, lambda _event, text: say(text))
    if outcome.release is None:
        return Answer(DONE, _document(outcome), [outcome.msg])
    answer = _released(outcome, request, given.diff)
    return answer if outcome.failed else replace(answer, lines=[*answer.lines, outcome.msg])


def _released(outcome: Outcome, request: Request, detail: bool) -> Answer:
    assert outcome.plan is not None
    assert outcome.release is not None
    # as the journal has it: with the project's secrets masked
    release = Journal(request.state_dir, outcome.plan.project).read(str(outcome.release["id"]))
    document = {**_document(outcome), "release": release.to_dict()}
    lines = [line for line in render.plan_lines(outcome.plan, detail) if not line.endswith(": unchanged")]
    total = release.timings.get("total", 0.0)
    lines.append(f"release {release.id}: {release.state}" + (f" in {total:.1f} s" if total else ""))
    if not outcome.failed:
        return Answer(DONE, document, lines)
    document["msg"] = f"{release.state}: {release.note}"
    lines.append(f"  {' '.join(release.note.split())}")
    for entry in release.evidence:
        if entry.get("logs"):
            lines.append(f"  log of {entry.get('service')} ({entry.get('phase')}):")
            lines += [f"    {line}" for line in entry["logs"][-_EVIDENCE_LINES:]]
    # refused by the pre-gate: tried beside the old version, which was not touched
    refused = release.state == "failed" and not release.swapped and "pregate" in release.timings
    return Answer(BACK if refused or release.state == "rolled_back" else FAILED, document, lines)


def _document(outcome: Outcome) -> Dict[str, Any]:
    document: Dict[str, Any] = {"changed": outcome.changed, "msg": outcome.msg, "timings": dict(outcome.timings)}
    if outcome.plan is not None:
        document["plan"] = outcome.plan.to_dict()
    for name in ("primed", "advice"):
        if getattr(outcome, name) is not None:
            document[name] = [dict(item) for item in getattr(outcome, name)]
    return document


def _prime(given: argparse.Namespace, _say: Say) -> Answer:
    outcome = execute(request_of(given, action="prime"))
    lines = []
    for item in outcome.primed or ():
        word = "recorded" if item["recorded"] else "already recorded"
        lines.append(f"{item['service']}: " + (f"not recorded: {item['reason']}" if item["reason"] else word))
    return Answer(FAILED if outcome.failed else DONE, _document(outcome), lines or ["no service is built"])


def _import(given: argparse.Namespace, _say: Say) -> Answer:
    from .importer import ImportRequest, import_archives

    if not given.arguments:
        raise OfflineRebuildError("usage", "no archive is named", "name the files that docker save made")
    archives = [os.path.abspath(path) for path in given.arguments]
    state_dir = request_of(given).state_dir
    found = import_archives(ImportRequest(archives, check=bool(given.check), state_dir=state_dir))
    rows = [[a["status"], a["path"], ", ".join(r for i in a["images"] for r in i["refs"])] for a in found["archives"]]
    return Answer(DONE, found, [*render.table(rows), found["msg"]])


def _holdings(given: argparse.Namespace, _say: Say) -> Answer:
    from .delta import holdings

    found = {"holdings": holdings(_store(given)).to_dict()}
    return Answer(DONE, found, [json.dumps(found["holdings"])])


def _delta(given: argparse.Namespace, _say: Say) -> Answer:
    from .delta import make, read_holdings

    if not (given.arguments and given.receiver and given.output):
        raise OfflineRebuildError("usage", "images, --for or --output is missing", "delta NAME ... --for FILE -o FILE")
    with open(given.receiver, encoding="utf-8", errors="surrogateescape") as stream:
        there = read_holdings(stream.read(), given.receiver)
    made = make(_store(given), given.arguments, there, os.path.abspath(given.output))
    lines = [
        f"{part.ref}: {len(part.carried)} of {len(part.layers)} layers go along"
        + ("" if part.left_out else "; the receiver has none of them, it is the whole image")
        for part in made.parts
    ]
    return Answer(DONE, {"delta": made.to_dict()}, [*lines, f"{given.output}: {made.size} bytes"])


def _store(given: argparse.Namespace) -> ImageStore:
    docker = Docker()
    docker.require(compose=None)
    return image_store(docker, settings_of(request_of(given, check=True)))


def _status(given: argparse.Namespace, _say: Say) -> Answer:
    from .status import status

    found = status(request_of(given, check=True))
    return Answer(DONE, {"status": found.to_dict()}, render.status_lines(found))


def _layers(given: argparse.Namespace, _say: Say) -> Answer:
    from .status import layers

    found = layers(request_of(given, check=True))
    return Answer(DONE, {"layers": [item.to_dict() for item in found]}, render.layer_lines(found))


def _context(given: argparse.Namespace, _say: Say) -> Answer:
    from .status import contexts

    found = contexts(request_of(given, check=True))
    return Answer(DONE, {"contexts": [asdict(item) for item in found]}, render.context_lines(found))


def _images(given: argparse.Namespace, _say: Say) -> Answer:
    found = survey(request_of(given, check=True))
    code = BLOCKED if any(need.remedy for need in found) else DONE
    return Answer(code, {"images": [need.to_dict() for need in found]}, render.image_lines(found))


def _releases(given: argparse.Namespace, _say: Say) -> Answer:
    from .status import release, releases

    request = request_of(given, check=True)
    if given.arguments:
        full = [release(request, name) for name in given.arguments]
        lines = [line for item in full for line in render.release_lines(item)]
        return Answer(DONE, {"releases": [item.to_dict() for item in full]}, lines)
    found = releases(request)
    return Answer(DONE, {"releases": [asdict(item) for item in found]}, render.releases_lines(found))


def _logs(given: argparse.Namespace, _say: Say) -> Answer:
    from .status import logs

    lines = 100 if given.lines is None else given.lines
    found = logs(request_of(given, check=True), lines, given.since or "")
    return Answer(DONE, {"logs": [asdict(item) for item in found]}, render.log_lines(found))


def _debug(given: argparse.Namespace, _say: Say) -> Answer:
    from .debug import debug

    found = debug(request_of(given, check=bool(given.check)))
    return Answer(DONE, found.to_dict(), found.lines())


def _prune(given: argparse.Namespace, _say: Say) -> Answer:
    from .prune import CACHE_DAYS, prune

    days = CACHE_DAYS if given.cache_days is None else given.cache_days
    found = prune(request_of(given, check=bool(given.check)), days)
    return Answer(DONE, found.to_dict(), found.lines())


#: Name to command, in the order of the help.
COMMANDS: Mapping[str, Command] = {
    "plan": Command(_plan, (*_MAKE, *_SWAP, "diff", "exit_code")),
    "rebuild": Command(_rebuild, (*_RUN, "diff"), swaps=True),
    "rollback": Command(_rollback, (*_PROJECT, *_GATED, "check", "diff"), "releases", swaps=True),
    "import": Command(_import, ("state_dir", "check"), "archives"),
    "holdings": Command(_holdings, ("state_dir",), "nothing"),
    "delta": Command(_delta, ("receiver", "output", "state_dir"), "names"),
    "status": Command(_status, _PROJECT),
    "layers": Command(_layers, _BUILD),
    "context": Command(_context, _PROJECT),
    "images": Command(_images, (*_PROJECT, "build_args")),
    "prime": Command(_prime, (*_PROJECT, "build_args")),
    "releases": Command(_releases, _PROJECT, "releases"),
    "logs": Command(_logs, (*_PROJECT, "lines", "since")),
    "debug": Command(_debug, (*_BUILD, "operator", "check")),
    "prune": Command(_prune, (*_PROJECT, "cache_days", "operator", "check"), "nothing"),
}


# -- parsing ----------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _usage(message, self.prog)


def _usage(message: str, program: str) -> OfflineRebuildError:
    return OfflineRebuildError("usage", message, f"{program} --help")


def parse(argv: Sequence[str], program: str) -> Tuple[Optional[str], argparse.Namespace]:
    """Parse a command line.

    :param program: its name, for messages.
    :returns: the command and its options; ``None`` and an empty namespace where the help of all was asked for.
    :raises OfflineRebuildError: ``usage``.
    """
    if not argv:
        raise _usage("a command is missing", program)
    name, rest = argv[0], list(argv[1:])
    if name in OPTIONS["help"].flags or name == "help":
        return None, argparse.Namespace()
    if name not in COMMANDS:
        raise _usage(f"there is no command {name!r} (there are: {', '.join(COMMANDS)})", program)
    command = COMMANDS[name]
    parser = _Parser(prog=f"{program} {name}", add_help=False, allow_abbrev=False)
    for key in (*command.options, *_COMMON):
        option = OPTIONS[key]
        more: Dict[str, Any] = {"dest": key}
        if option.kind == "flag":
            more["action"] = "store_true"
        elif option.kind == "many":
            more.update(action="append", default=[])
        elif option.kind in ("number", "count"):
            more["type"] = _number if option.kind == "number" else _count
        if option.choices:
            more["choices"] = option.choices
        parser.add_argument(*option.flags, **more)
    parser.add_argument("arguments", nargs="*")
    given = parser.parse_intermixed_args(_with_files(rest, parser.prog))
    for word in given.arguments:
        if command.arguments == "nothing":
            raise _usage(f"there are no arguments ({word!r})", parser.prog)
        if command.arguments in ("services", "releases") and not re.match(r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", word):
            raise _usage(f"{word!r} is no name of a {command.arguments[:-1]}", parser.prog)
    return name, given


def _number(text: str) -> int:
    if not re.match(r"^[0-9]{1,9}$", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _count(text: str) -> int:
    return 0 if text == "0" else _number(text)


def _with_files(argv: Sequence[str], program: str) -> List[str]:
    """``--options FILE`` and ``--options=FILE``: the words of the file take its place, so that what follows wins."""
    words: List[str] = []
    todo = iter(argv)
    for word in todo:
        if word == "--options":
            words += _words_of(next(todo, ""), program)
        elif word.startswith("--options="):
            words += _words_of(word.partition("=")[2], program)
        else:
            words.append(word)
    return words


def _words_of(path: str, program: str) -> List[str]:
    if not path:
        raise _usage("--options: a file is missing", program)
    try:
        with open(path, encoding="utf-8") as stream:
            words = shlex.split(stream.read(), comments=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OfflineRebuildError(
            "usage", f"the file with options cannot be read: {reason}", "mend it", file=path
        ) from None
    if any(word.split("=")[0] == "--options" for word in words):
        raise OfflineRebuildError("usage", "a file with options cannot name another", "join the two", file=path)
    return words


def request_of(
    given: argparse.Namespace, check: bool = False, action: str = "rebuild", environ: Optional[Mapping[str, str]] = None
) -> Request:
    """:returns: the request that the options describe; what a command has no option for is as the role's default.

    :raises OfflineRebuildError: ``usage``.
    """
    environ = os.environ if environ is None else environ
    more = {key: getattr(given, key) for key in _RUN if getattr(given, key, None)}
    more["project_src"] = os.path.abspath(more.get("project_src") or os.curdir)
    if "state_dir" in more:
        more["state_dir"] = os.path.abspath(more["state_dir"])
    more["build_args"] = _build_args(more.get("build_args", ()), environ)
    more["health_checks"] = [_health_check(text) for text in more.get("health_checks", ())]
    more.update((key, os.path.abspath(more[key])) for key in ("wheelhouse", "npm_cache") if key in more)
    if "operator" not in more:
        more["operator"] = environ.get("SUDO_USER") or environ.get("USER") or _user()
    services = given.arguments if COMMANDS[given.command].arguments == "services" else []
    return Request(check=check, action=action, services=tuple(services), **more)


def _build_args(texts: Sequence[str], environ: Mapping[str, str]) -> Dict[str, str]:
    found: Dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise OfflineRebuildError("usage", f"--build-arg: {text!r}", "give NAME=VALUE")
        if equals:
            found[name] = value
        elif name in environ:
            found[name] = environ[name]
        else:
            raise OfflineRebuildError("usage", f"--build-arg: {name} is not in the environment", "give NAME=VALUE")
    return found


def _health_check(text: str) -> Dict[str, Union[str, int]]:
    if re.match(r"^https?://", text):
        return {"url": text}
    if text.startswith("tcp://"):
        return {"tcp": text[len("tcp://") :].rstrip("/")}
    raise OfflineRebuildError("usage", f"--health-check: {text!r}", "give http://..., https://... or tcp://HOST:PORT")


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user id without a name
        return str(os.getuid())


# -- help -------------------------------------------------------------------------------------------------------------


def help_text(command: Optional[str], program: str, language: str) -> List[str]:
    """:returns: the lines of ``--help``, of all commands or of one."""

    def say(key: str) -> str:
        return messages.text(key, language)

    if command is None:
        lines = [f"{say('usage')}: {program} {say('command')} {say('options-word')} {say('meta.services')}", ""]
        lines += [say("about"), "", f"{say('commands')}:"]
        lines += _columns([(name, say(f"command.{name}")) for name in COMMANDS])
        lines += ["", f"{say('exit')}:", *_columns([(str(code), say(f"exit.{code}")) for code in EXIT_CODES])]
        return [*lines, "", say("more")]
    known = COMMANDS[command]
    lines = [f"{say('usage')}: {program} {command} {say('options-word')} {say('meta.' + known.arguments)}", ""]
    lines += [say(f"command.{command}"), "", say(f"arg.{known.arguments}"), "", f"{say('options')}:"]
    rows = []
    for key in (*known.options, *_COMMON):
        option = OPTIONS[key]
        flags = ", ".join(option.flags) + (f" {option.meta}" if option.meta else "")
        rows.append((flags, say(f"option.{key}")))
    return lines + _columns(rows)


def _columns(rows: Sequence[Tuple[str, str]]) -> List[str]:
    width = max(_width(left) for left, _ in rows)
    return [f"  {left}{' ' * (width - _width(left))}  {right}" for left, right in rows]


def _width(text: str) -> int:
    """Columns on a terminal: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


# -- acting -----------------------------------------------------------------------------------------------------------


def exit_code_of(error: OfflineRebuildError) -> int:
    """:returns: the exit code for an error."""
    return _CODE_OF.get(error.code, FAILED)


def main(
    argv: Sequence[str],
    program: str = "offline-rebuild.pyz",
    environ: Optional[Mapping[str, str]] = None,
    stdout: Optional[TextIO] = None,
    stderr: Optional[TextIO] = None,
) -> int:
    """Run a command line. :returns: the exit code; a traceback is never shown."""
    environ = os.environ if environ is None else environ
    out = _Sink(stdout if stdout is not None else sys.stdout)
    err = _Sink(stderr if stderr is not None else sys.stderr)
    language = messages.language_of(environ)
    as_json = "--json" in argv
    name = argv[0] if argv and argv[0] in COMMANDS else ""
    secrets: List[str] = []
    try:
        command, given = parse(argv, program)
        if command is None or given.help:
            out.lines(help_text(command, program, language))
            return DONE
        given.command = command
        as_json = given.json
        secrets = _secrets_of(given, environ)
        answer = _act(command, given, err, messages.text("working", language), secrets)
    except OfflineRebuildError as error:
        return _fail(error, name, as_json, out, err, secrets)
    except KeyboardInterrupt:
        err.lines(["interrupted; a run that had begun is finished or taken back by the next one"])
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - a defect is told in one line; a traceback tells an operator nothing
        return _fail(_defect(error), name, as_json, out, err, secrets)
    if as_json:
        out.json({"schema": SCHEMA, "command": command, "exit": answer.code, **mask(answer.document, secrets)})
    else:
        out.lines(mask(list(answer.lines), secrets))
    return answer.code


def _act(
    command: str,
    given: argparse.Namespace,
    err: "_Sink",
    working: str,
    secrets: Sequence[str],
) -> Answer:
    if COMMANDS[command].swaps:
        # A lost SSH session must not cut a run in the middle; it ends by itself when the gate is through.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if err.terminal and command in ("plan", "rebuild", "layers", "images", "prime", "import"):
        err.lines([working])
    with on_this_host():
        return COMMANDS[command].act(given, lambda text: err.lines([mask(text, secrets)] if text else []))


def _secrets_of(given: argparse.Namespace, environ: Mapping[str, str]) -> List[str]:
    """Values of build arguments that look like secrets by their name; those of the compose files are masked before."""
    args = _build_args(getattr(given, "build_args", ()), environ)
    return secrets_of({"services": {"": {"build": {"args": args}}}})


def _defect(error: BaseException) -> OfflineRebuildError:
    frame, line, file = error.__traceback__, 0, ""
    while frame is not None:
        file, line = frame.tb_frame.f_code.co_filename, frame.tb_lineno
        frame = frame.tb_next
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    place = f"{os.path.basename(file)}:{line}"
    return OfflineRebuildError("defect", f"a defect of this program: {said} at {place}", "report it with this line")


def _fail(
    error: OfflineRebuildError, command: str, as_json: bool, out: "_Sink", err: "_Sink", secrets: Sequence[str]
) -> int:
    code = exit_code_of(error)
    if as_json:
        document = {"schema": SCHEMA, "command": command, "exit": code, "error": error.to_dict()}
        out.json(mask(document, secrets))
    err.lines(mask(error_lines(error), secrets))
    return code


def error_lines(error: OfflineRebuildError) -> List[str]:
    """:returns: where and what, with the code; then the remedy."""
    place = error.file or ""
    if error.file and error.line is not None:
        place += f":{error.line}"
    where = "".join(f"{part}: " for part in (error.host, place) if part)
    lines = f"{where}{error.message} [{error.code}]".splitlines()
    return lines + ([f"remedy: {error.remedy}"] if error.remedy else [])


class _Sink:
    """A stream that never makes a run fail: not by a reader that is gone, nor by a character it has no code for."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.terminal = stream.isatty()
        self.lost = False
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def lines(self, lines: Sequence[str]) -> None:
        self._write("".join(render.printable(line) + "\n" for line in lines))

    def json(self, document: Mapping[str, Any]) -> None:
        self._write(json.dumps(document, indent=1) + "\n")

    def _write(self, text: str) -> None:
        if self.lost:
            return
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            self.lost = True
            self._leave()

    def _leave(self) -> None:
        """What is still in the buffer goes nowhere, or the interpreter would complain at its end."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            return
