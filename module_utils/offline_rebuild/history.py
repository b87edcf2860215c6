"""Reading an image's history: does an entry stem from this instruction, and what was the config at that point.

The forms are those of BuildKit (DESIGN.md, fact 4), of the classic builder and buildah (``/bin/sh -c #(nop) ...``)
and of kaniko (the instruction as written).
"""

from __future__ import annotations

import copy
import json
import posixpath
import re
from typing import Any, Dict, FrozenSet, Iterator, List, Mapping, Sequence, Tuple

from .image import HistoryEntry, Image
from .stage import DEFAULT_PATH, Outcome, Step, join_workdir, set_env, split_env

__all__ = [
    "EXPORTER_COMMENT",
    "OVERLAY_COMMENT",
    "STEP_COMMENT",
    "THIN_COMMENT",
    "UNKNOWN",
    "config_at",
    "is_redundant_arg",
    "matches",
    "touches",
]

#: The classic builder writes the shell in force before its mark.
NOP = re.compile(r"^(?:/?[\w./-]+ (?:-\S+ )*-\w*c|cmd /S /C|powershell.*?) #\(nop\) +")
BUILDKIT_SUFFIX = " # buildkit"
_CLASSIC_COPY = re.compile(r"^(COPY|ADD) (?:--chown=(\S+?) ?)?(?:file|dir|multi):[0-9a-f]+ in (.*?) ?$", re.DOTALL)
#: Comment of the history entry that a thin layer has; nothing in a Dockerfile stands behind it.
THIN_COMMENT = "offline-rebuild.thin"
#: The same for a layer of new sources over RUNs that were not run again: what is above it is not what a build gives.
OVERLAY_COMMENT = "offline-rebuild.overlay"
#: Comment of an entry that stands for an instruction whose files, if any, are in the thin layer.
STEP_COMMENT = "offline-rebuild.v0"
#: Comment of an entry that BuildKit's exporter adds for a layer that no instruction accounts for
#: (normalizeLayersAndHistory); seen after a RUN with a secret mount.
EXPORTER_COMMENT = "buildkit.exporter.image"
_PAIR = re.compile(r" [^ =]*=")
_KEY = re.compile(r"(?:^| )([A-Za-z_][A-Za-z0-9_.\-/]*)=")


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


#: A value that the history does not tell.
UNKNOWN: Any = _Unknown()


def matches(entry: HistoryEntry, outcome: Outcome, step: Step, workdir: str) -> bool:
    """Whether a history entry is what this instruction leaves.

    A match says that the *text* is the same, no more: what COPY took in, and what history does not hold
    (``outcome.hidden``), is judged elsewhere.

    :param workdir: the working directory before the instruction.
    """
    has_layer = entry.layer is not None
    if entry.comment == STEP_COMMENT:
        return entry.created_by in outcome.created_by
    if entry.created_by in outcome.created_by:
        return has_layer == outcome.layer or step.kind == "workdir"
    text = entry.created_by
    classic = NOP.match(text)
    if classic:
        return _matches_classic(text[classic.end() :], has_layer, outcome, step, workdir)
    if entry.comment.startswith("buildkit"):
        return False
    plain = {form[: -len(BUILDKIT_SUFFIX)] for form in outcome.created_by if form.endswith(BUILDKIT_SUFFIX)}
    if step.kind == "run":  # the classic builder and buildah leave the bare command; no layer where nothing was changed
        return any(text == form[len("RUN ") :] for form in plain)
    return text == " ".join(step.instruction.text.split()) and has_layer == outcome.layer


def _matches_classic(text: str, has_layer: bool, outcome: Outcome, step: Step, workdir: str) -> bool:
    copied = _CLASSIC_COPY.match(text)
    if copied:
        keyword, chown, dest = copied.groups()
        instruction = outcome.expanded
        if step.kind not in ("context", "stage", "image") or keyword != instruction.keyword:
            return False
        if (chown or "") != (instruction.flag("chown") or ""):
            return False
        absolute = posixpath.normpath(join_workdir(workdir, instruction.dest))
        return dest.strip() == instruction.dest or posixpath.normpath(dest.strip()) == absolute
    if outcome.layer != has_layer and step.kind != "workdir":
        return False
    if step.instruction.keyword == "EXPOSE":
        return text == "EXPOSE " + " ".join(outcome.expanded.args) or text in outcome.created_by
    return text.strip() in outcome.created_by


def is_certain(image: Image, position: int, outcome: Outcome, labels: FrozenSet[str] = frozenset()) -> bool:
    """Whether a matching text can only stem from this instruction, as far as a RUN after it would see.

    ENV and SHELL are written without quotes: ``ENV a="1 b=2"`` and ``ENV a=1 b=2`` leave the same text. The image's
    final config tells them apart, for what no later entry changed.

    :param position: the number of the matching entry.
    :param labels: keys that the build is given besides the Dockerfile: the final config has those values.
    """
    keyword = outcome.expanded.keyword
    if keyword in ("LABEL", "VOLUME", "HEALTHCHECK"):
        return _is_certain_at_end(image, position, outcome, labels)
    if keyword not in ("ENV", "SHELL"):
        return True
    later = {(field, key) for entry in image.history[position + 1 :] for field, key, _ in touches(entry)}
    final = image.config.get("config") or {}
    if keyword == "SHELL":
        words = list(outcome.expanded.args)
        if ("Shell", "") in later:
            return not any(char.isspace() for word in words for char in word)
        return list(final.get("Shell") or []) == words
    pairs = outcome.expanded.pairs
    if len(pairs) == 1 and not _PAIR.search(pairs[0][1] or ""):
        return True
    have = dict(split_env(item) for item in final.get("Env") or [])
    open_pairs = [(key, value or "") for key, value in pairs if ("Env", key) in later]
    if len(open_pairs) > 1 or any(_PAIR.search(value) or key not in have for key, value in open_pairs):
        return False
    return all(have.get(key) == (value or "") for key, value in pairs if ("Env", key) not in later)


def is_onbuild(entry: HistoryEntry, step: Step) -> bool:
    """Whether the entry is what the classic builder leaves of this ONBUILD; BuildKit leaves nothing."""
    classic = NOP.match(entry.created_by)
    trigger = step.instruction.args[0] if step.instruction.keyword == "ONBUILD" else None
    return classic is not None and entry.layer is None and entry.created_by[classic.end() :] == f"ONBUILD {trigger}"


def is_redundant_arg(entry: HistoryEntry, args: Sequence[Tuple[str, Any]]) -> bool:
    """Whether the entry is an ARG that repeats what is in force already.

    A derived Dockerfile carries ARGs over the cut; what it leaves in the history changes nothing. One without a value
    is given it again as a build argument; that it was the same value then, the RUNs after it and expanded texts tell.
    """
    if entry.layer is not None or not entry.created_by.startswith("ARG "):
        return False
    text = entry.created_by[len("ARG ") :]
    return any(text == key or (value is not None and text == f"{key}={value}") for key, value in args)


# ---------------------------------------------------------------------------------------------------------------------
# Config at a point of the history

Touch = Tuple[str, str, Any]
_MAPS = ("Labels", "ExposedPorts", "Volumes")
_SCALARS = ("Cmd", "Entrypoint", "WorkingDir", "User", "StopSignal", "Shell", "Healthcheck")


def _quoted_list(text: str) -> Any:
    try:
        value = json.loads(text.replace('" "', '", "'))
    except ValueError:
        return UNKNOWN
    return value if isinstance(value, list) and all(isinstance(v, str) for v in value) else UNKNOWN


def _pairs(text: str) -> Iterator[Tuple[str, Any]]:
    found = list(_KEY.finditer(text))
    for match in found:
        # Several keys in one entry: where one value ends and the next begins is not certain, values are unquoted.
        yield match.group(1), (text[match.end() :] if len(found) == 1 else UNKNOWN)


def _ports(text: str) -> Iterator[str]:
    """``map[80/tcp:{}]``, ``[80/tcp]`` (BuildKit), ``80 9000-9002/udp`` (classic)."""
    for first, last, proto in re.findall(r"(\d{1,5})(?:-(\d{1,5}))?(?:/([a-z]+))?", text):
        for port in range(int(first), int(last or first) + 1):
            yield f"{port}/{proto or 'tcp'}"


def touches(entry: HistoryEntry) -> List[Touch]:
    """What an entry did to the config: ``(field, key, value)``; ``key`` is ``""`` for fields that hold one value.

    A value that cannot be told is :data:`UNKNOWN`. Entries of RUN, COPY and ADD touch nothing.
    """
    text = NOP.sub("", entry.created_by)
    text = text.removesuffix(BUILDKIT_SUFFIX)
    keyword, _, rest = text.partition(" ")
    if keyword == "ENV":
        return [("Env", key, value) for key, value in _pairs(rest)]
    if keyword == "LABEL":
        return [("Labels", key, value) for key, value in _pairs(rest)]
    if keyword == "CMD":
        return [("Cmd", "", _quoted_list(rest))]
    if keyword == "ENTRYPOINT":
        return [("Entrypoint", "", _quoted_list(rest))]
    if keyword in ("WORKDIR", "USER", "STOPSIGNAL"):
        name = {"WORKDIR": "WorkingDir", "USER": "User", "STOPSIGNAL": "StopSignal"}[keyword]
        return [(name, "", rest.strip())]
    if keyword == "SHELL":
        return [("Shell", "", UNKNOWN)]
    if keyword == "HEALTHCHECK":
        return [("Healthcheck", "", UNKNOWN)]
    if keyword == "EXPOSE":
        return [("ExposedPorts", port, {}) for port in _ports(rest)]
    if keyword == "VOLUME":
        inner = rest.strip().lstrip("[").rstrip("]")
        return [("Volumes", path, {}) for path in inner.split(" ") if path]
    return []


def _replay(entries: Sequence[HistoryEntry]) -> Dict[Tuple[str, str], Any]:
    values: Dict[Tuple[str, str], Any] = {}
    for entry in entries:
        for field, key, value in touches(entry):
            values[(field, key)] = value
            if field == "Entrypoint" and ("Cmd", "") in values:
                values[("Cmd", "")] = UNKNOWN  # kept or reset, by whether CMD was given in the same build
    return values


def _explained(config: Mapping[str, Any], values: Mapping[Tuple[str, str], Any], field: str) -> bool:
    """Whether the history accounts for all that the final config has of a field."""
    if field == "Env":
        for item in config.get("Env") or []:
            key, text = split_env(item)
            if ("Env", key) not in values and not (key == "PATH" and text == DEFAULT_PATH):
                return False
        return True
    if field in _MAPS:
        return True  # `--label` leaves no history; what it set is in the config and touched by nothing
    final = config.get(field) or None
    if field == "WorkingDir" and final == "/":
        final = None
    value = values.get((field, ""))
    if value is UNKNOWN:
        return True
    if field == "Cmd" and final is None:
        return value is None or ("Entrypoint", "") in values
    return (value or None) == final


def _is_certain_at_end(image: Image, position: int, outcome: Outcome, labels: FrozenSet[str]) -> bool:
    """LABEL, VOLUME and HEALTHCHECK matter in the final config only: what no later entry changed must be in it."""
    later = {(field, key) for entry in image.history[position + 1 :] for field, key, _ in touches(entry)}
    final = image.config.get("config") or {}
    instruction = outcome.expanded
    if instruction.keyword == "LABEL":
        pairs = instruction.pairs
        if len(pairs) == 1 and pairs[0][0] in labels and "=" not in (pairs[0][1] or ""):
            return True
        have = final.get("Labels") or {}
        return all(have.get(key) == (value or "") for key, value in instruction.pairs if ("Labels", key) not in later)
    if instruction.keyword == "VOLUME":
        return set(instruction.args) <= set(final.get("Volumes") or {})
    return ("Healthcheck", "") in later or list((final.get("Healthcheck") or {}).get("Test") or []) == list(
        instruction.healthcheck.test
    )


def _silent(entries: Sequence[HistoryEntry]) -> FrozenSet[str]:
    """The fields that the makers of these entries may have set without an entry for it.

    Docker's builders (and buildah) write one entry per instruction, ``docker import`` sets nothing by itself, and
    debuerreotype (the maker of Debian's images) sets CMD only. Others (Bazel, apko, jib, kaniko, ...) write layers and
    no instructions: what such a base has set, and a later instruction changed, cannot be told.
    """
    if not entries:
        return frozenset()
    first = entries[0]
    if first.comment.startswith("debuerreotype"):
        return frozenset(("Cmd",))
    docker = first.comment.startswith(("buildkit", "Imported from")) or first.created_by.endswith(BUILDKIT_SUFFIX)
    shell = first.created_by.startswith(("/bin/sh -c", "/bin/bash -c", "|")) or NOP.match(first.created_by)
    return frozenset() if docker or shell else frozenset(("Env", *_MAPS, *_SCALARS))


def config_at(image: Image, cut: int) -> Tuple[Dict[str, Any], FrozenSet[Tuple[str, str]]]:
    """The image's config as it was after its first ``cut`` history entries.

    What no later entry touched is as in the final config. What a later entry touched is replayed from the entries
    before, or was not there at all if the history accounts for the field; else it is unknown.

    :returns: the whole config document (``config`` section as of then, ``history`` and ``rootfs`` cut), and the set of
        ``(field, key)`` that cannot be told and were left out.
    """
    document = copy.deepcopy(dict(image.config))
    section: Dict[str, Any] = dict(document.get("config") or {})
    before = _replay(image.history[:cut])
    everything = _replay(image.history)
    silent = _silent(image.history[:cut])
    final = dict(section)
    unknown = set()
    later = {(field, key) for entry in image.history[cut:] for field, key, _ in touches(entry)}
    later |= {("Volumes", path) for path in final.get("Volumes") or {} if _names_volume(image.history[cut:], path)}
    later |= {("Labels", key) for key in final.get("Labels") or {} if names_label(image.history[cut:], key)}
    if ("Entrypoint", "") in later:
        later.add(("Cmd", ""))  # may have been reset
    for field, key in later:
        value = before.get((field, key))
        if value is None and (field in silent or not _explained(final, everything, field)):
            value = UNKNOWN
        if value is UNKNOWN:
            unknown.add((field, key))
            value = None
        elif value is None and (field, key) == ("Env", "PATH"):
            value = DEFAULT_PATH  # FROM sets it where a base has none (dispatchStages)
        _put(section, field, key, value)
    document["config"] = section
    if any(NOP.sub("", entry.created_by).startswith("MAINTAINER ") for entry in image.history[cut:]):
        document.pop("author", None)
    layers = sum(1 for entry in image.history[:cut] if entry.layer is not None)
    document["rootfs"] = {"type": "layers", "diff_ids": list(image.diff_ids[:layers])}
    document["history"] = list(image.config.get("history") or [])[:cut]
    return document, frozenset(unknown)


def _names_volume(entries: Sequence[HistoryEntry], path: str) -> bool:
    """Whether a VOLUME among the entries may have set this path: one with spaces is not told from several."""
    texts = (NOP.sub("", entry.created_by) for entry in entries)
    return " " in path and any(t.startswith("VOLUME [") and f" {path} " in f" {t[8:].rstrip(']')} " for t in texts)


def names_label(entries: Sequence[HistoryEntry], key: str) -> bool:
    """Whether a LABEL among the entries may have set this key, which may hold anything but ``=``."""
    texts = (NOP.sub("", entry.created_by) for entry in entries)
    return any(text.startswith("LABEL ") and f" {key}=" in text for text in texts)


def _put(section: Dict[str, Any], field: str, key: str, value: Any) -> None:
    if field == "Env":
        if value is None:
            section["Env"] = [item for item in section.get("Env") or [] if split_env(item)[0] != key]
        else:
            set_env(section, key, value)
    elif field in _MAPS:
        mapping = dict(section.get(field) or {})
        if value is None:
            mapping.pop(key, None)
        else:
            mapping[key] = value
        if mapping or field in section:
            section[field] = mapping or None
    elif value is None:
        section.pop(field, None)
    else:
        section[field] = value
