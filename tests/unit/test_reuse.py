"""Reuse: what may be reused, and above all what may not. Images on disk, the real readers, no engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from module_utils.offline_rebuild.derive import blocked_reason
from module_utils.offline_rebuild.errors import OfflineRebuildError
from module_utils.offline_rebuild.image import ImageStore
from module_utils.offline_rebuild.records import RecordStore, StageRecord
from module_utils.offline_rebuild.reuse import Analyzer, StageReuse, same_platform, weakest
from module_utils.offline_rebuild.stage import canonical
from tests.unit.depot import Depot, tar_of

BASE = "FROM scratch\nADD root.tar /\nENV LANG=C KIND=bind\nCMD base\n"
APP = """FROM base
ARG VERSION=1
COPY reqs.txt /reqs.txt
RUN pip install -r /reqs.txt
ENV VERSION=$VERSION
COPY app.py /app.py
CMD ["python", "/app.py"]
"""
FILES = {"reqs.txt": "fastapi\n", "app.py": "print(1)\n"}
LAYERS = {3: {"reqs.txt": "fastapi\n"}, 6: {"app.py": "print(1)\n"}}


def write(folder: Path, files: Mapping[str, str | tuple[int, str]]) -> Path:
    for name, value in files.items():
        mode, text = value if isinstance(value, tuple) else (0o644, value)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
    return folder


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    made = Depot(tmp_path)
    made.build("base:latest", BASE)
    made.build("app:latest", APP, LAYERS, base="base:latest")
    return made


def record(analyzer: Analyzer, index: int | None = None) -> StageReuse:
    """What ``prime`` writes when the tree is what the image holds."""
    index = analyzer.target if index is None else index
    stage = analyzer.stage(index)
    assert stage.alignment is not None
    assert stage.whole
    image = stage.alignment.image
    keys, manifests = analyzer.keys(index)
    analyzer.records.write(
        image.id,
        image.config_digest,
        StageRecord(
            base=stage.timeline.base,
            base_id=stage.base.id if stage.base else "",
            boundary=stage.alignment.boundary,
            positions=stage.alignment.positions,
            keys=keys,
            texts=tuple(canonical(step.instruction) for step in stage.timeline.steps),
            manifests={str(place): manifest.digest() for place, manifest in manifests.items()},
            images=analyzer.images_of(index),
        ),
    )
    return stage


def judged(depot: Depot, text: str, context: Path, args: Mapping[str, str] | None = None, **options: Any) -> StageReuse:
    analyzer = depot.analyzer(text, context, args, **options)
    return analyzer.stage(analyzer.target)


@dataclass(frozen=True)
class Edit:
    """A change of the tree, and how many of APP's six instructions may be reused after it."""

    name: str
    reused: int
    reused_with_record: int
    text: str = APP
    files: Mapping[str, Any] = field(default_factory=dict)
    args: Mapping[str, str] = field(default_factory=dict)


EDITS = (
    Edit("nothing", 6, 6),
    Edit("a source changed", 4, 4, files={"app.py": "print(2)\n"}),
    Edit("a source's mode changed", 4, 4, files={"app.py": (0o755, "print(1)\n")}),
    Edit("a requirement changed", 1, 1, files={"reqs.txt": "fastapi==2\n"}),
    Edit("a build argument changed", 2, 0, args={"VERSION": "2"}),
    Edit("a default changed", 0, 0, APP.replace("VERSION=1", "VERSION=2")),
    Edit("a RUN changed", 2, 2, APP.replace("pip install", "pip install -U")),
    Edit("a network flag", 6, 2, APP.replace("RUN pip", "RUN --network=none pip")),
    Edit("a cache mount", 6, 2, APP.replace("RUN pip", "RUN --mount=type=cache,target=/c pip")),
    Edit("a context mount", 2, 2, APP.replace("RUN pip", "RUN --mount=source=app.py,target=/c pip")),
    Edit("a mount whose type is a variable", 2, 2, APP.replace("RUN pip", "RUN --mount=type=$KIND,target=/c pip")),
    Edit("an ENV changed", 3, 3, APP.replace("ENV VERSION=$VERSION", "ENV VERSION=9")),
    Edit("a destination changed", 4, 4, APP.replace("app.py /app.py", "app.py /b.py")),
    Edit("the owner changed", 4, 4, APP.replace("COPY app.py", "COPY --chown=7:7 app.py")),
    Edit("the mode changed", 4, 4, APP.replace("COPY app.py", "COPY --chmod=600 app.py")),
    Edit("CMD changed", 5, 5, APP.replace('"/app.py"', '"/b.py"')),
    Edit("an instruction added", 1, 1, APP.replace("COPY reqs", "WORKDIR /x\nCOPY reqs")),
    Edit("an instruction taken out", 3, 3, APP.replace("ENV VERSION=$VERSION\n", "")),
    Edit("a shell given", 1, 1, APP.replace("COPY reqs", 'SHELL ["/bin/ash", "-c"]\nCOPY reqs')),
)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
@pytest.mark.parametrize("recorded", [False, True], ids=["observed", "recorded"])
@pytest.mark.parametrize("base_present", [True, False], ids=["base", "no base"])
def test_what_is_reused_after_an_edit(
    depot: Depot, tmp_path: Path, edit: Edit, recorded: bool, base_present: bool
) -> None:
    context = write(tmp_path / "context", FILES)
    if recorded:
        record(depot.analyzer(APP, context))
    if not base_present:
        depot.remove("base:latest")
    write(context, edit.files)
    stage = judged(depot, edit.text, context, edit.args)
    if not (edit.reused or recorded or base_present):
        assert stage.alignment is None  # nothing tells where the base ends
        return
    assert stage.alignment is not None, stage.reason
    assert stage.proven == (edit.reused_with_record if recorded else edit.reused), stage.reason
    assert stage.whole or stage.reason
    if recorded and stage.proven:
        assert stage.evidence == "recorded"
    elif not base_present and not recorded:
        assert stage.evidence == "assumed"
        assert "FROM base" in stage.assumed[0]


@pytest.mark.parametrize("recorded", [False, True])
def test_another_base_is_never_reused(depot: Depot, tmp_path: Path, recorded: bool) -> None:
    context = write(tmp_path / "context", FILES)
    if recorded:
        record(depot.analyzer(APP, context))
    depot.build("base:latest", BASE.replace("LANG=C", "LANG=D"))
    stage = judged(depot, APP, context)
    assert stage.proven == 0
    assert stage.alignment is not None
    assert stage.alignment.image.name == "base:latest"  # the new base, and nothing of the old image


def test_another_from_with_a_record_is_not_reused(depot: Depot, tmp_path: Path) -> None:
    context = write(tmp_path / "context", FILES)
    record(depot.analyzer(APP, context))
    stage = judged(depot, APP.replace("FROM base", "FROM other"), context)
    assert stage.alignment is None
    assert "FROM was base and is other" in stage.reason


def test_a_base_that_is_gone_and_whose_end_is_in_doubt(depot: Depot, tmp_path: Path) -> None:
    """The entry before the first instruction may be one that the Dockerfile no longer has."""
    context = write(tmp_path / "context", FILES)
    depot.build("open:1", BASE.replace("CMD base\n", ""))
    text = APP.replace("FROM base", "FROM open:1")
    depot.remove("app:latest")
    depot.build("app:latest", text, LAYERS, base="open:1")
    record_later = depot.analyzer(text, context)
    depot.remove("open:1")
    stage = judged(depot, text, context)
    assert stage.alignment is None
    assert "where the base ends in app:latest cannot be told" in stage.reason
    record(record_later)
    assert judged(depot, text, context).whole


def test_an_image_of_the_same_instructions_on_another_base_is_no_ancestor(depot: Depot, tmp_path: Path) -> None:
    context = write(tmp_path / "context", FILES)
    depot.build("twin:1", BASE.replace("LANG=C", "LANG=D"))
    depot.build("twin:2", APP.replace("FROM base", "FROM twin:1"), LAYERS, base="twin:1")
    depot.remove("base:latest")
    stage = judged(depot, APP, context)
    assert stage.alignment is not None
    assert stage.alignment.image.name == "app:latest"


def test_an_image_that_cannot_win_is_not_read(depot: Depot, tmp_path: Path) -> None:
    """Another image with the same instructions, whose layers are gone: reading one of them would fail."""
    context = write(tmp_path / "context", FILES)
    other = depot.build("other:1", APP, {3: {"reqs.txt": "flask\n"}, 6: {"app.py": "print(2)\n"}}, base="base:latest")
    layers = depot.inspects[other]["RootFS"]["Layers"]
    own = set(depot.inspects[depot.build("app:latest", APP, LAYERS, base="base:latest")]["RootFS"]["Layers"])
    record(depot.analyzer(APP, context))
    for digest in set(layers) - own:
        (depot.blobs / digest.split(":")[1]).unlink()
    assert judged(depot, APP, context).evidence == "recorded"
    write(context, {"app.py": "print(3)\n"})
    assert judged(depot, APP, context).proven == 4  # nor is it looked at in the hope that it is just this tree
    depot.remove("app:latest")
    with pytest.raises(AssertionError, match="read a whole image"):
        judged(depot, APP, context)


def test_another_platform_is_not_reused(depot: Depot, tmp_path: Path) -> None:
    context = write(tmp_path / "context", FILES)
    assert judged(depot, APP.replace("FROM base", "FROM --platform=linux/arm64 base"), context).alignment is None


@pytest.mark.parametrize(("least", "reused"), [("assumed", True), ("observed", False), ("recorded", False)])
def test_the_least_evidence_is_kept_to(depot: Depot, tmp_path: Path, least: str, reused: bool) -> None:
    depot.remove("base:latest")
    stage = judged(depot, APP, write(tmp_path / "context", FILES), least=least)
    assert (stage.alignment is not None) == reused
    assert reused or f"offline_rebuild_evidence is {least}" in stage.reason


MULTI = """FROM tools AS builder
COPY src.c /src.c
RUN cc -o /prog /src.c
FROM base
COPY --from=builder /prog /prog
RUN --mount=from=builder,target=/b /prog > /out
"""


@pytest.fixture
def multi(depot: Depot) -> Depot:
    depot.build("tools:latest", BASE.replace("LANG=C", "TOOLS=1"))
    depot.build("app:builder", MULTI, {2: {"src.c": "1"}, 3: {"prog": "binary"}}, base="tools:latest", target="builder")
    depot.build("app:latest", MULTI, {5: {"prog": "binary"}}, base="base:latest")
    return depot


def test_a_stage_that_is_in_an_image(multi: Depot, tmp_path: Path) -> None:
    context = write(tmp_path / "context", {"src.c": "1"})
    stage = judged(multi, MULTI, context)
    assert stage.proven == 1  # what a mount read left no trace
    assert "it reads stage builder through a mount" in stage.reason
    record(multi.analyzer(MULTI, context, trusting=True))
    assert judged(multi, MULTI, context).whole


def test_a_source_of_a_stage_changed(multi: Depot, tmp_path: Path) -> None:
    stage = judged(multi, MULTI, write(tmp_path / "context", {"src.c": "2"}))
    assert stage.proven == 0
    assert "stage builder is not wholly inside an image" in stage.reason


def test_a_stage_whose_image_is_another_than_was_copied(multi: Depot, tmp_path: Path) -> None:
    multi.remove("app:builder")
    multi.build("app:builder", MULTI, {2: {"src.c": "1"}, 3: {"prog": "other"}}, base="tools:latest", target="builder")
    stage = judged(multi, MULTI, write(tmp_path / "context", {"src.c": "1"}))
    assert stage.proven == 0
    assert "prog" in stage.reason


@pytest.mark.parametrize("name", ["tools:latest", "data:1"])
def test_another_image_behind_a_name_that_went_in(multi: Depot, tmp_path: Path, name: str) -> None:
    """The base of a source stage and the image of a ``--from`` are in no key: the record holds their digests."""
    text = MULTI + "COPY --from=data:1 /d /d\n"
    multi.build("data:1", "FROM scratch\nCOPY d /d\n", {2: {"d": "1"}})
    layers = {5: {"prog": "binary"}, 7: {"d": "1"}}
    multi.build("app:latest", text, layers, base="base:latest")
    context = write(tmp_path / "context", {"src.c": "1"})
    record(multi.analyzer(text, context, trusting=True))
    assert judged(multi, text, context).whole
    multi.add(name, {"os": "linux", "architecture": "amd64", "config": {}, "history": []}, [tar_of({"d": "2"})])
    stage = judged(multi, text, context)
    assert stage.proven == (0 if name == "tools:latest" else 2)
    assert f"the image {name.removesuffix(':latest')} that it reads is another than then" in stage.reason


def test_an_image_that_is_gone_is_taken_for_the_one_of_then(multi: Depot, tmp_path: Path) -> None:
    context = write(tmp_path / "context", {"src.c": "1"})
    record(multi.analyzer(MULTI, context, trusting=True))
    for name in ("tools:latest", "app:builder", "base:latest"):
        multi.remove(name)
    stage = judged(multi, MULTI, context)
    assert stage.whole
    assert stage.evidence == "recorded"


@pytest.mark.parametrize("recorded", [False, True])
def test_files_beside_an_address(depot: Depot, tmp_path: Path, recorded: bool) -> None:
    text = "FROM base\nADD https://example.org/x local.txt /d/\n"
    depot.build("app:latest", text, {2: {"d": None, "d/x": "x", "d/local.txt": "1"}}, base="base:latest")
    context = write(tmp_path / "context", {"local.txt": "1"})
    assert judged(depot, text, context).proven == 0
    if recorded:
        analyzer = depot.analyzer(text, context)
        keys, _ = analyzer.keys(0)
        write(context, {"local.txt": "2"})
        assert depot.analyzer(text, context).keys(0)[0] != keys


@pytest.mark.parametrize("line", ["ADD --chown=7 https://x/y /y", "COPY --from=gone:1 --chmod=600 /y /y"])
def test_flags_that_old_engines_left_out_are_believed_only_where_files_are_compared(
    depot: Depot, tmp_path: Path, line: str
) -> None:
    plain = line.replace("--chown=7 ", "").replace("--chmod=600 ", "")
    depot.build("app:latest", f"FROM base\n{plain}\n", base="base:latest")
    assert judged(depot, f"FROM base\n{plain}\n", tmp_path).whole
    assert judged(depot, f"FROM base\n{line}\n", tmp_path).proven == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('ENV A="1 B=2"', "ENV A=1 B=2"),
        ("ENV A=1 B=2", 'ENV A="1 B=2"'),
        ('SHELL ["/bin/sh", "-e", "-c"]', 'SHELL ["/bin/sh", "-e -c"]'),
        ('SHELL ["/bin/sh", "-e -c"]', 'SHELL ["/bin/sh", "-e", "-c"]'),
    ],
)
def test_texts_that_are_alike_for_another_environment(depot: Depot, tmp_path: Path, old: str, new: str) -> None:
    """Quotes are not in the history: the RUN after them saw something else."""
    text = f"FROM base\n{old}\nRUN x\n"
    depot.build("app:latest", text, base="base:latest")
    assert judged(depot, text, tmp_path).whole
    assert judged(depot, text.replace(old, new), tmp_path).proven == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ONBUILD RUN a\n", ""),
        ("ONBUILD RUN a\n", "ONBUILD RUN b\n"),
        ("", "ONBUILD RUN a\n"),
        ('VOLUME ["/a /b"]\n', "VOLUME /a /b\n"),
        ('LABEL a="1 b=2"\n', "LABEL a=1 b=2\n"),
        ('HEALTHCHECK CMD ["a b"]\n', 'HEALTHCHECK CMD ["a", "b"]\n'),
    ],
)
def test_a_changed_config_with_the_same_history_is_no_unchanged_image(
    depot: Depot, tmp_path: Path, old: str, new: str
) -> None:
    text = "FROM base\nRUN x\n"
    depot.build("app:latest", text + old, base="base:latest")
    same = judged(depot, text + old, tmp_path)
    assert same.alignment is not None
    assert same.alignment.whole
    changed = judged(depot, text + new, tmp_path)
    assert changed.alignment is not None
    assert not (changed.whole and changed.alignment.whole)


def test_the_words_of_an_exec_form_are_assumed(depot: Depot, tmp_path: Path) -> None:
    depot.build("app:latest", 'FROM base\nRUN ["touch", "a b"]\n', base="base:latest")
    stage = judged(depot, 'FROM base\nRUN ["touch", "a", "b"]\n', tmp_path)
    assert stage.evidence == "assumed"
    assert judged(depot, 'FROM base\nRUN ["touch", "a", "b"]\n', tmp_path, least="observed").proven == 0


def test_values_of_inherited_arguments_that_the_history_does_not_show_are_assumed(depot: Depot, tmp_path: Path) -> None:
    text = "FROM base AS a\nARG A=1\nFROM a\nRUN x\n"
    depot.build("app:latest", text, base="base:latest")
    image = ImageStore(depot).find("app:latest")  # type: ignore[arg-type]
    assert image is not None
    assert judged(depot, text, tmp_path, {"A": "2"}).proven == 1
    old = [{**e, "created_by": e["created_by"].replace("|1 A=1 ", "")} for e in image.config["history"]]
    depot.remove("app:latest")
    depot.add("app:latest", {**image.config, "history": old}, [depot.read(d) for d in image.diff_ids])
    assert judged(depot, text, tmp_path).evidence == "assumed"
    assert judged(depot, text, tmp_path, least="observed").proven == 1
    record(depot.analyzer(text, tmp_path))
    assert judged(depot, text, tmp_path).evidence == "recorded"
    assert judged(depot, text, tmp_path, {"A": "2"}).proven == 0


def test_a_base_whose_history_does_not_account_for_its_layers(depot: Depot, tmp_path: Path) -> None:
    """Where such a base ends is not known: a graft at its end would have none of its layers."""
    depot.add("odd:1", {"os": "linux", "architecture": "amd64", "config": {}}, [tar_of({"a": "1"})])
    config = {
        "os": "linux",
        "architecture": "amd64",
        "config": {},
        "history": [{"created_by": "RUN x # buildkit", "comment": "buildkit.dockerfile.v0"}],
    }
    depot.add("app:latest", config, [tar_of({"a": "1"})])
    stage = judged(depot, "FROM odd:1\nRUN y\n", tmp_path)
    assert stage.alignment is None
    assert stage.base is not None


def test_heredocs_of_run_need_a_record(depot: Depot, tmp_path: Path) -> None:
    text = "FROM base\nRUN <<EOF\n#!/bin/sh\necho 1\nEOF\n"
    depot.build("app:latest", text, base="base:latest")
    assert "heredoc" in judged(depot, text, tmp_path).reason
    record_text = text.replace("echo 1", "echo 2")
    assert depot.analyzer(text, tmp_path).keys(0)[0] != depot.analyzer(record_text, tmp_path).keys(0)[0]


def test_images_that_cannot_be_read_are_no_ancestors(depot: Depot, tmp_path: Path) -> None:
    for number, config in enumerate(
        [
            {"config": [1], "history": 7},
            {"config": {"Env": [1, None]}, "history": [{"created_by": 5}]},
            {"config": {"Labels": {"a": None}}},
            {"config": None, "history": [None]},
            {"config": {"Env": "A=1"}},
            {"config": {"OnBuild": {}}},
        ]
    ):
        depot.add(f"bad:{number}", config, [tar_of({"x": str(number)})])
        depot.add("base:latest", config, [tar_of({"y": str(number)})])
        judged(depot, APP, write(tmp_path / "context", FILES))


def test_too_many_stages_in_a_row(depot: Depot, tmp_path: Path) -> None:
    text = "FROM scratch AS s0\nCOPY a /a\n"
    text += "".join(f"FROM scratch AS s{n}\nCOPY --from=s{n - 1} /a /a\n" for n in range(1, 2000))
    with pytest.raises(OfflineRebuildError, match="dockerfile-unsupported"):
        depot.analyzer(text, write(tmp_path / "context", {"a": "1"}))


def test_a_stage_that_cannot_be_built_is_blocked(multi: Depot, tmp_path: Path) -> None:
    for name in ("tools:latest", "app:builder"):
        multi.remove(name)
    reason, remedy = blocked_reason(multi.analyzer(MULTI, write(tmp_path / "context", {"src.c": "2"})))
    assert "stage builder must be built again" in reason
    assert "docker build --target builder" in remedy


def test_a_damaged_record_counts_as_none(depot: Depot, tmp_path: Path) -> None:
    context = write(tmp_path / "context", FILES)
    record(depot.analyzer(APP, context))
    (path,) = (tmp_path / "state/records").iterdir()
    path.write_text(path.read_text().replace('"boundary": 3', '"boundary": 1'))
    assert judged(depot, APP, context).evidence == "observed"
    assert RecordStore(str(tmp_path / "nowhere")).of("sha256:1", "sha256:2") == ()


def test_small_rules() -> None:
    assert weakest("recorded", "", "observed") == "observed"
    assert weakest() == ""
    assert same_platform("linux/arm64", "linux/arm64/v8")
    assert not same_platform("linux/arm/v6", "linux/arm/v7")
    assert not same_platform("linux/arm64", "linux/amd64")
