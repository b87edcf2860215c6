"""The corpus: cases read from tests/corpus, their trees made, their edits applied. See tests/corpus/README.md."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CORPUS = Path(__file__).resolve().parents[1] / "corpus"
#: A name under an address that refuses at once: an engine that insists on asking a registry loses no time.
REGISTRY = "127.0.0.1:1/corpus"
MODES = ("fresh", "primed", "refused")


class CorpusError(Exception):
    """A case is not well formed."""


@dataclass
class Edit:
    """One edit of a case: what is done, and what the plan must say then."""

    name: str
    do: list[dict[str, Any]]
    expect: dict[str, Any]
    args: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    target: str = ""
    dockerfile_lines: list[str] = field(default_factory=list)


@dataclass
class Case:
    """One case. ``observed`` is whether all its bases are on the air-gapped host (or there are none).
    ``exports`` are stages that are brought as images; ``engines`` those it can be built with; with ``modes: image`` the
    air-gapped host's trees have lost theirs."""

    name: str
    directory: Path
    prepare: list[dict[str, Any]]
    target: str
    dockerfile: str
    secrets: dict[str, str]
    exports: list[str]
    engines: list[str]
    compose: bool
    observed: bool
    modes: str
    edits: list[Edit]

    @property
    def tag(self) -> str:
        return f"corpus-{self.name}:1"

    def stage_tag(self, stage: str) -> str:
        """The name of a stage that is brought; what stands after ``@`` is no part of it."""
        return f"corpus-{self.name}:stage-{stage.partition('@')[0]}"


def load_cases(names: list[str] | None = None, engine: str = "") -> list[Case]:
    """The cases of the corpus that ``engine`` can build, in order of name."""
    files = sorted(CORPUS.glob("*/case.yml"))
    cases = [_case(path) for path in files if not names or path.parent.name in names]
    return [case for case in cases if not engine or not case.engines or engine in case.engines]


def _case(path: Path) -> Case:
    raw = yaml.safe_load(path.read_text("utf-8"))
    fields = {
        "about", "prepare", "args", "labels", "target", "dockerfile", "secrets", "exports", "engines", "compose",
        "observed", "modes", "untouched", "edits",
    }  # fmt: skip
    if set(raw) - fields:
        raise CorpusError(f"{path}: unknown keys {sorted(set(raw) - fields)}")
    args = {key: str(value) for key, value in (raw.get("args") or {}).items()}
    target = raw.get("target", "")
    untouched = raw.get("untouched") or {"reuse": "unchanged"}
    labels = {key: str(value) for key, value in (raw.get("labels") or {}).items()}
    edits = [Edit("untouched", [], untouched, dict(args), dict(labels), target)]
    for entry in raw["edits"]:
        edit = Edit(entry["name"], list(entry["do"]), dict(entry["expect"]), dict(args), dict(labels), target)
        for action in edit.do:
            if "arg" in action:
                edit.args[action["arg"]] = str(action["value"])
            elif "label" in action:
                edit.labels.pop(action["label"], None)
                if "value" in action:
                    edit.labels[action["label"]] = str(action["value"])
            elif "target" in action:
                edit.target = action["target"]
        edits.append(edit)
    return Case(
        name=path.parent.name,
        directory=path.parent,
        prepare=list(raw.get("prepare") or []),
        target=target,
        dockerfile=raw.get("dockerfile", "Dockerfile"),
        secrets=dict(raw.get("secrets") or {}),
        exports=list(raw.get("exports") or []),
        engines=list(raw.get("engines") or []),
        compose=bool(raw.get("compose")),
        observed=bool(raw.get("observed")),
        modes=raw.get("modes", "exact"),
        edits=edits,
    )


# --- trees


def make_trees(case: Case, where: Path) -> dict[str, Path]:
    """The tree of every edit, ``where/<case>-<edit>``, and ``where/compose.yaml`` with a service for each."""
    trees: dict[str, Path] = {}
    for edit in case.edits:
        tree = where / f"{case.name}-{edit.name}"
        shutil.copytree(case.directory / "tree", tree, symlinks=True)
        _settle_modes(tree)
        for action in [*case.prepare, *edit.do]:
            apply(tree, action)
        edit.dockerfile_lines = (tree / case.dockerfile).read_text("utf-8").splitlines()
        trees[edit.name] = tree
    (where / "compose.yaml").write_text(compose_text(case), "utf-8")
    return trees


def _settle_modes(tree: Path) -> None:
    """0755 and 0644, whatever the umask of the checkout."""
    for folder, names, files in os.walk(tree):
        for name in [*names, *files]:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    tree.chmod(0o755)


def compose_text(case: Case) -> str:
    """A compose file with one service for each edit; all of them stand for the same image."""
    services: dict[str, Any] = {}
    for edit in case.edits:
        build: dict[str, Any] = {
            "context": f"./{case.name}-{edit.name}",
            "dockerfile": case.dockerfile,
            "args": edit.args,
        }
        if edit.labels:
            build["labels"] = edit.labels
        if edit.target:
            build["target"] = edit.target
        if case.secrets:
            build["secrets"] = list(case.secrets)
        services[edit.name] = {"image": case.tag, "build": build}
    document: dict[str, Any] = {"name": case.name, "services": services}
    if case.secrets:
        document["secrets"] = {name: {"file": f"./{case.name}-untouched/{path}"} for name, path in case.secrets.items()}
    text: str = yaml.dump(document, Dumper=_Plain, sort_keys=False, allow_unicode=True)
    return text.replace("$", "$$")


class _Plain(yaml.SafeDumper):
    """YAML without anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def apply(tree: Path, action: Mapping[str, Any]) -> None:
    """Apply one action of the edit language to a tree.

    :raises CorpusError: an action that is not known, or that changes nothing.
    """
    verbs = [verb for verb in _ACTIONS if verb in action]
    if len(verbs) != 1:
        raise CorpusError(f"{tree.name}: not one action: {action}")
    _ACTIONS[verbs[0]](tree, action)


def _write(tree: Path, action: Mapping[str, Any]) -> None:
    path = tree / action["write"]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    path.write_bytes(action["text"].encode("utf-8"))
    if fresh or "mode" in action:
        path.chmod(int(action.get("mode", "0644"), 8))


def _append(tree: Path, action: Mapping[str, Any]) -> None:
    with (tree / action["append"]).open("ab") as handle:
        handle.write(action["text"].encode("utf-8"))


def _replace(tree: Path, action: Mapping[str, Any]) -> None:
    path = tree / action["replace"]
    data = path.read_bytes()
    old, new = action["old"].encode("utf-8"), action["new"].encode("utf-8")
    if data.count(old) != 1:
        raise CorpusError(f"{path}: {action['old']!r} is there {data.count(old)} times")
    path.write_bytes(data.replace(old, new))


def _delete(tree: Path, action: Mapping[str, Any]) -> None:
    path = tree / action["delete"]
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _mkdir(tree: Path, action: Mapping[str, Any]) -> None:
    path = tree / action["mkdir"]
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(int(action.get("mode", "0755"), 8))


def _rename(tree: Path, action: Mapping[str, Any]) -> None:
    target = tree / action["to"]
    target.parent.mkdir(parents=True, exist_ok=True)
    (tree / action["rename"]).rename(target)


def _symlink(tree: Path, action: Mapping[str, Any]) -> None:
    path = tree / action["symlink"]
    path.unlink(missing_ok=True)
    path.symlink_to(action["to"])


def _archive(tree: Path, action: Mapping[str, Any]) -> None:
    """A tar archive (compressed if the name says so) with the files given: name to text."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if action["archive"].endswith("gz") else "w") as tar:
        for name, text in action["files"].items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.uid, entry.gid = len(text.encode()), 0o640, 12, 34
            tar.addfile(entry, io.BytesIO(text.encode()))
    (tree / action["archive"]).write_bytes(out.getvalue())
    (tree / action["archive"]).chmod(0o644)


_ACTIONS = {
    "write": _write,
    "append": _append,
    "replace": _replace,
    "delete": _delete,
    "chmod": lambda tree, action: (tree / action["chmod"]).chmod(int(action["mode"], 8)),
    "rename": _rename,
    "symlink": _symlink,
    "hardlink": lambda tree, action: (tree / action["hardlink"]).hardlink_to(tree / action["to"]),
    "mkdir": _mkdir,
    "archive": _archive,
    "arg": lambda tree, action: None,  # noqa: ARG005  (in the build, not in the tree)
    "label": lambda tree, action: None,  # noqa: ARG005
    "target": lambda tree, action: None,  # noqa: ARG005
}
